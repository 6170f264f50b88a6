// SPDX-License-Identifier: MIT
/**
 * Keeps the event loop awake for some tens of microseconds where requests come one at a time and
 * steadily: waking a sleeping process costs more than serving the request. It gives up as soon as
 * it does not pay, and never runs when nothing has come.
 */
import {
  NBD_POLL_AFTER,
  NBD_POLL_BACKOFF,
  NBD_POLL_STEADY_MS,
  NBD_POLL_WINDOW_MS,
} from '../../base/limits.js';

export class BusyPoll {
  readonly #windowMs: number;
  /** Requests in a row that came soon enough to have been worth waiting for. */
  #steady = 0;
  #last = 0;
  #polling = false;
  #stopped = false;

  /** @param windowMs how long the loop stays awake behind a reply; 0: never */
  constructor(windowMs = NBD_POLL_WINDOW_MS) {
    this.#windowMs = windowMs;
  }

  /** A single request was answered just now. */
  touch(): void {
    if (this.#windowMs === 0) return;
    const now = performance.now();
    const gap = now - this.#last;
    this.#last = now;
    if (gap > NBD_POLL_STEADY_MS) {
      if (this.#steady > 0) this.#steady = 0;
      return;
    }
    if (this.#steady < NBD_POLL_AFTER) this.#steady++;
    if (this.#steady >= NBD_POLL_AFTER && !this.#polling && !this.#stopped) {
      this.#polling = true;
      setImmediate(this.#spin);
    }
  }

  stop(): void {
    this.#stopped = true;
  }

  readonly #spin = (): void => {
    if (this.#stopped || performance.now() - this.#last > this.#windowMs) {
      this.#polling = false;
      // It did not pay this time: many steady requests have to come before it is tried again.
      this.#steady = -NBD_POLL_BACKOFF;
      return;
    }
    setImmediate(this.#spin);
  };
}
