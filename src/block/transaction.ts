// SPDX-License-Identifier: MIT
/** Several changes that happen together or not at all. */
import { ChangesAhead } from './changes-ahead.js';

/** One of them. Its `prepare` does what can fail; what comes after it must not. */
export interface Change {
  /**
   * Says what `prepare` would refuse, as far as that can be known with nothing changed yet, and notes
   * in `ahead` what later changes will find. Called when this change, or one after it, has a `make`.
   * @throws only what `prepare` would surely throw, too
   */
  check?(ahead: ChangesAhead): void | Promise<void>;
  /**
   * Makes and opens what `prepare` needs, while users go on working, after the changes were checked.
   * What was in a file is lost then, whatever becomes of the change.
   * @throws when it can't; `release` is called all the same
   */
  make?(): void | Promise<void>;
  /** @throws when it can't be done; it has then undone by itself what it had begun */
  prepare(): void | Promise<void>;
  /** All are prepared: it takes effect for good. */
  commit?(): void | Promise<void>;
  /** Another could not be prepared: all is to be as it was before `prepare`. */
  abort?(): void | Promise<void>;
  /** At the very end, whatever has happened: lets go of what `make` has made. */
  release?(): void | Promise<void>;
}

/**
 * Checks the changes and makes what they need, then prepares them in their order and commits them in the
 * same order. Where one can't be prepared, the ones before it are undone, the last first.
 * @param section surrounds the last two: a drained section
 * @throws what the first that could not be checked, made or prepared said
 */
export async function applyChanges(
  changes: readonly Change[],
  section: (apply: () => Promise<void>) => Promise<void> = (apply) => apply(),
): Promise<void> {
  try {
    await makeReady(changes);
    await section(() => prepareAndCommit(changes));
  } finally {
    for (const change of changes) await change.release?.();
  }
}

/**
 * Nothing is made when something that comes before it, or itself, is known to fail. What comes after it
 * is found out in its turn, as by QEMU.
 */
async function makeReady(changes: readonly Change[]): Promise<void> {
  const last = changes.findLastIndex(({ make }) => make !== undefined);
  const ahead = new ChangesAhead();
  for (const change of changes.slice(0, last + 1)) await change.check?.(ahead);
  for (const change of changes) await change.make?.();
}

async function prepareAndCommit(changes: readonly Change[]): Promise<void> {
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
