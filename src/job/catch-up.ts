// SPDX-License-Identifier: MIT
/** Judges whether a mirror is as good as in sync with a source that is being written to. */
import { BlockError } from '../base/errors.js';

/** Time that a writer gets to pause before little dirt counts as none, milliseconds. */
const NEARLY_READY_MS = 250;
/** Time that users wait for the last copies at most, milliseconds; then the job fails. */
export const LAST_COPIES_MS = 30_000;
/** Time for catching up before the drained section copies whatever is left, milliseconds. */
const CATCH_UP_MS = 5_000;

export interface CatchUpOptions {
  /** Dirty bytes that may be left for the drained section; its users wait that long. */
  readonly small: () => number;
  /** Dirty bytes now. */
  readonly dirty: () => number;
  /** Counts the writes to the source. */
  readonly generation: () => number;
}

export class CatchUp {
  readonly #options: CatchUpOptions;
  /** Since when, and since which write, no more than `small` is dirty. */
  #littleLeft: { readonly since: number; readonly generation: number } | undefined;
  /** When the drained section copies whatever is left; set once the job is to end. */
  #until: number | undefined;
  #troubleUntil = 0;

  constructor(options: CatchUpOptions) {
    this.#options = options;
  }

  /** Something could not be copied and is tried again: what is left now is left because of that. */
  noteTrouble(): void {
    this.#troubleUntil = performance.now() + NEARLY_READY_MS;
  }

  /** Begins to look anew. */
  forget(): void {
    this.#littleLeft = undefined;
  }

  /**
   * A writer that never pauses leaves something dirty at every instant. When it keeps at it, and so
   * little is left that the drained section at the end copies it in no time, that is in sync. What
   * is left because it can't be copied is not.
   */
  keepsUp(): boolean {
    const { small, dirty, generation } = this.#options;
    if (dirty() > small() || this.#inTrouble) {
      this.#littleLeft = undefined;
      return false;
    }
    this.#littleLeft ??= { since: performance.now(), generation: generation() };
    if (this.#littleLeft.generation === generation()) return false;
    return performance.now() - this.#littleLeft.since >= NEARLY_READY_MS;
  }

  /** For a job that is to end: the drained section may copy the rest, which is likely to go well. */
  isDone(): boolean {
    if (this.#options.dirty() === 0) return true;
    if (this.#inTrouble) {
      this.#until = undefined;
      return false;
    }
    this.#until ??= performance.now() + CATCH_UP_MS;
    return this.keepsUp() || performance.now() > this.#until;
  }

  get #inTrouble(): boolean {
    return performance.now() < this.#troubleUntil;
  }
}

/** DF_TIMEOUT: users have waited for LAST_COPIES_MS. */
export function lastCopiesLate(): BlockError {
  const text = `the target took more than ${LAST_COPIES_MS / 1000} s for the last copies`;
  return new BlockError('DF_TIMEOUT', text, { op: 'write', errno: 'ETIMEDOUT' });
}
