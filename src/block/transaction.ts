// SPDX-License-Identifier: MIT
/** Several changes that happen together or not at all. */

/** One of them. Its `prepare` does what can fail; what comes after it must not. */
export interface Change {
  /** @throws when it can't be done; it has then undone by itself what it had begun */
  prepare(): void | Promise<void>;
  /** All are prepared: it takes effect for good. */
  commit?(): void | Promise<void>;
  /** Another could not be prepared: all is to be as it was before `prepare`. */
  abort?(): void | Promise<void>;
}

/**
 * Prepares the changes in their order, then commits them in the same order. Where one can't be
 * prepared, the ones before it are undone, the last first.
 * @throws what the first that could not be prepared said
 */
export async function applyChanges(changes: readonly Change[]): Promise<void> {
  const prepared: Change[] = [];
  try {
    for (const change of changes) {
      await change.prepare();
      prepared.push(change);
    }
  } catch (error) {
    for (const change of prepared.reverse()) await change.abort?.();
    throw error;
  }
  for (const change of changes) await change.commit?.();
}
