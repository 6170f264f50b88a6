// SPDX-License-Identifier: MIT
import type { Clock } from '../../../../src/base/clock.js';

const NS_PER_SECOND = 1e9;

/** Time that passes only when told; timers fire in order, each at its moment. */
export class ManualClock implements Clock {
  #now = 0;
  #timers: { at: number; fire: () => void }[] = [];

  nowNs(): number {
    return this.#now;
  }

  startTimer(delayNs: number, fire: () => void): () => void {
    const timer = { at: this.#now + delayNs, fire };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer);
    };
  }

  get timers(): number {
    return this.#timers.length;
  }

  /** Lets time pass; what the timers let go runs at its time. */
  async advance(seconds: number): Promise<void> {
    const end = this.#now + seconds * NS_PER_SECOND;
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      const next = this.#timers.reduce<{ at: number; fire: () => void } | undefined>(
        (first, timer) => (first === undefined || timer.at < first.at ? timer : first),
        undefined,
      );
      if (next === undefined || next.at > end) break;
      this.#timers = this.#timers.filter((other) => other !== next);
      this.#now = Math.max(this.#now, next.at);
      next.fire();
    }
    this.#now = end;
  }
}
