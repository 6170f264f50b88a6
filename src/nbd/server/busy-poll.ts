// SPDX-License-Identifier: MIT
/**
 * Keeps the event loop awake for some tens of microseconds where requests come one at a time and
 * steadily: waking a sleeping process costs more than serving the request. It gives up as soon as
 * it does not pay, tries again less often then, and never runs when nothing comes.
 */
import {
  NBD_POLL_AFTER,
  NBD_POLL_BACKOFF_MAX,
  NBD_POLL_PAID,
  NBD_POLL_STEADY_MS,
  NBD_POLL_WINDOW_MS,
} from '../../base/limits.js';

export class BusyPoll {
  readonly #windowMs: number;
  readonly #nowMs: () => number;
  /** Requests in a row that came soon enough behind the one before. */
  #steady = 0;
  /** How many it takes: doubled each time that staying awake was in vain. */
  #needed = NBD_POLL_AFTER;
  /** Requests that came since the loop is kept awake. */
  #served = 0;
  #last = 0;
  #polling = false;
  #stopped = false;

  /**
   * @param options.windowMs how long the loop stays awake behind a reply; 0: never
   * @param options.nowMs the time; never steps back
   */
  constructor(options: { windowMs?: number; nowMs?: () => number } = {}) {
    this.#windowMs = options.windowMs ?? NBD_POLL_WINDOW_MS;
    this.#nowMs = options.nowMs ?? (() => performance.now());
  }

  /** True while the loop is kept awake. */
  get polling(): boolean {
    return this.#polling;
  }

  /** A single request was answered just now. */
  touch(): void {
    if (this.#windowMs === 0) return;
    const now = this.#nowMs();
    const gap = now - this.#last;
    this.#last = now;
    if (gap > NBD_POLL_STEADY_MS) {
      this.#steady = 0;
      return;
    }
    this.#steady++;
    if (this.#polling) {
      this.#served++;
    } else if (this.#steady >= this.#needed && !this.#stopped) {
      this.#polling = true;
      this.#served = 0;
      setImmediate(this.#spin);
    }
  }

  stop(): void {
    this.#stopped = true;
  }

  readonly #spin = (): void => {
    if (this.#stopped || this.#nowMs() - this.#last > this.#windowMs) {
      this.#polling = false;
      this.#steady = 0;
      // One wait in vain is paid for by what was served before it; a busy machine has such moments.
      const paid = this.#served >= NBD_POLL_PAID;
      this.#needed = paid ? NBD_POLL_AFTER : Math.min(2 * this.#needed, NBD_POLL_BACKOFF_MAX);
      return;
    }
    setImmediate(this.#spin);
  };
}
