// SPDX-License-Identifier: MIT
/**
 * Whether a call may be made on the event loop: as long as those before it did not hold it up.
 *
 * One call that would have waited is often alone (a page that was reclaimed, a moment without the
 * processor), and the pool costs two thread switches a call. So the first time only a few calls go
 * there; each time that it is soon found in vain again, twice as many.
 */
import { FILE_POOL_RUN, FILE_POOL_RUN_FIRST } from '../base/limits.js';

/** A gate that stood open for this many calls has forgotten what was before. */
const FORGOTTEN_AFTER = 64;

export class AdaptiveGate {
  #poolRun = 0;
  /** How many calls go to the pool the next time. */
  #nextRun = FILE_POOL_RUN_FIRST;
  /** Calls on the loop since the gate was closed last. */
  #open = 0;
  readonly #slowMs: number;
  readonly #nowMs: () => number;

  /** @param slowMs a call that takes longer closes the gate, milliseconds */
  constructor(slowMs: number, nowMs: () => number = () => performance.now()) {
    this.#slowMs = slowMs;
    this.#nowMs = nowMs;
  }

  /** Asked once per call: true on the loop, false in the pool. */
  mayRunNow(): boolean {
    if (this.#poolRun === 0) {
      this.#open++;
      return true;
    }
    this.#poolRun--;
    return false;
  }

  /** A call would have waited: the next ones go to the pool, at most a few dozen. */
  close(): void {
    if (this.#open > FORGOTTEN_AFTER) this.#nextRun = FILE_POOL_RUN_FIRST;
    this.#open = 0;
    this.#poolRun = this.#nextRun;
    this.#nextRun = Math.min(2 * this.#nextRun, FILE_POOL_RUN);
  }

  start(): number {
    return this.#nowMs();
  }

  /** Closes the gate when the call that began at `started` took too long. */
  end(started: number): void {
    if (this.#nowMs() - started > this.#slowMs) this.close();
  }
}
