// SPDX-License-Identifier: MIT
/** What became of a driver's discards. @see qapi BlockStatsSpecificFile */
import type { MaybePromise } from '../../../base/maybe-promise.js';

export class DiscardCounts {
  #succeeded = 0;
  #failed = 0;
  #bytes = 0;

  /** Runs a discard of `length` bytes, and counts how it ends. */
  counted(length: number, discard: () => MaybePromise<void>): MaybePromise<void> {
    let pending: MaybePromise<void>;
    try {
      pending = discard();
    } catch (error) {
      this.#failed++;
      throw error;
    }
    if (pending === undefined) {
      this.#done(length);
      return;
    }
    return pending.then(
      () => this.#done(length),
      (error: unknown) => {
        this.#failed++;
        throw error;
      },
    );
  }

  /** Members as QMP names them. */
  describe(): Readonly<Record<string, number>> {
    return {
      'discard-nb-ok': this.#succeeded,
      'discard-nb-failed': this.#failed,
      'discard-bytes-ok': this.#bytes,
    };
  }

  #done(length: number): void {
    this.#succeeded++;
    this.#bytes += length;
  }
}
