// SPDX-License-Identifier: MIT
/** One limit at work. @see throttle.txt "The Leaky bucket algorithm" */

const NS_PER_SECOND = 1e9;
/** Part of a second's worth that may pass at once where no burst is configured. */
const SLACK_SECONDS = 0.1;

export interface BucketRates {
  /** Units a second in the long run, above 0. */
  readonly average: number;
  /** Units a second during a burst; 0: no bursts beyond a tenth of a second's worth. */
  readonly max: number;
  /** Seconds for which a burst may last, at least 1. */
  readonly burstSeconds: number;
}

/**
 * What passes is poured in and leaks out at the average rate; who finds it too full waits. A burst of
 * more than a second has a second bucket, which leaks at the burst's rate.
 */
export class LeakyBucket {
  readonly #rates: BucketRates;
  readonly #capacity: number;
  readonly #burstCapacity: number;
  readonly #longBurst: boolean;
  #level = 0;
  #burstLevel = 0;

  constructor(rates: BucketRates) {
    this.#rates = rates;
    const { average, max, burstSeconds } = rates;
    this.#capacity = max === 0 ? average * SLACK_SECONDS : max * burstSeconds;
    this.#burstCapacity = max * SLACK_SECONDS;
    this.#longBurst = burstSeconds > 1;
  }

  leak(elapsedNs: number): void {
    const seconds = elapsedNs / NS_PER_SECOND;
    this.#level = Math.max(this.#level - this.#rates.average * seconds, 0);
    if (this.#longBurst) {
      this.#burstLevel = Math.max(this.#burstLevel - this.#rates.max * seconds, 0);
    }
  }

  pour(units: number): void {
    this.#level += units;
    if (this.#longBurst) this.#burstLevel += units;
  }

  /** Whole nanoseconds until the next request may pass; 0: at once. */
  waitNs(): number {
    const extra = this.#level - this.#capacity;
    if (extra > 0) return Math.ceil((extra / this.#rates.average) * NS_PER_SECOND);
    if (!this.#longBurst) return 0;
    const burst = this.#burstLevel - this.#burstCapacity;
    return burst > 0 ? Math.ceil((burst / this.#rates.max) * NS_PER_SECOND) : 0;
  }
}
