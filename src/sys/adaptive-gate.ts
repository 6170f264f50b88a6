// SPDX-License-Identifier: MIT
/** Whether a call may be made on the event loop: as long as those before it did not hold it up. */
import { FILE_POOL_RUN } from '../base/limits.js';

export class AdaptiveGate {
  #poolRun = 0;
  readonly #slowMs: number;
  readonly #nowMs: () => number;

  /** @param slowMs a call that takes longer closes the gate, milliseconds */
  constructor(slowMs: number, nowMs: () => number = () => performance.now()) {
    this.#slowMs = slowMs;
    this.#nowMs = nowMs;
  }

  /** Asked once per call: true on the loop, false in the pool. */
  mayRunNow(): boolean {
    if (this.#poolRun === 0) return true;
    this.#poolRun--;
    return false;
  }

  /** A call would have waited: the next few dozen go to the pool. */
  close(): void {
    this.#poolRun = FILE_POOL_RUN;
  }

  start(): number {
    return this.#nowMs();
  }

  /** Closes the gate when the call that began at `started` took too long. */
  end(started: number): void {
    if (this.#nowMs() - started > this.#slowMs) this.close();
  }
}
