// SPDX-License-Identifier: MIT
/**
 * How many connections pay off: doubles while requests queue up and the throughput grows with it,
 * goes back when it does not. Over loopback that ends at one, over a slow path at many; so over a way
 * that is known to be long it begins with some.
 */
import { FAR_ROUND_TRIP_MS, NBD_GROWTH_HOLD_MS, NBD_GROWTH_WINDOW_MS } from '../../base/limits.js';

/** Connections to begin with to a server that is far away, where opening one takes many round trips. */
const FAR_CONNECTIONS = 4;
/** A trial has to bring this factor, or the connections are not worth keeping. */
const GAIN_MIN = 1.25;

export class ConnectionGrowth {
  /** Connections that there should be. */
  wanted: number;
  readonly #max: number;
  #windowStart = Number.NEGATIVE_INFINITY;
  #bytes = 0;
  #samples = 0;
  #busySamples = 0;
  #trial: { readonly before: number; readonly rate: number; warm: boolean } | undefined;
  #holdUntil = Number.NEGATIVE_INFINITY;

  /** @param options `eager`: all of them at once, without measuring; `roundTripMs`: where it is known */
  constructor(max: number, options: { eager: boolean; roundTripMs?: number | undefined }) {
    const { eager, roundTripMs = 0 } = options;
    const first = roundTripMs < FAR_ROUND_TRIP_MS ? 1 : FAR_CONNECTIONS;
    this.#max = max;
    this.wanted = eager ? max : Math.min(max, first);
  }

  /**
   * A request has ended.
   * @param bytes its payload
   * @param waiting requests that are under way or queued
   * @param now milliseconds
   * @returns true when `wanted` has changed
   */
  note(bytes: number, waiting: number, now: number): boolean {
    if (this.#max === 1) return false;
    const elapsed = now - this.#windowStart;
    if (elapsed > 4 * NBD_GROWTH_WINDOW_MS) return this.#restart(now);
    this.#bytes += bytes;
    this.#samples++;
    if (waiting >= 2 * this.wanted) this.#busySamples++;
    if (elapsed < NBD_GROWTH_WINDOW_MS) return false;
    const rate = this.#bytes / elapsed;
    const busy = this.#busySamples * 2 > this.#samples;
    this.#newWindow(now);
    return this.#decide(rate, busy, now);
  }

  #decide(rate: number, busy: boolean, now: number): boolean {
    const trial = this.#trial;
    const before = this.wanted;
    if (trial === undefined) {
      if (!busy || now < this.#holdUntil || this.wanted >= this.#max || rate === 0) return false;
      this.#trial = { before: this.wanted, rate, warm: false };
      this.wanted = Math.min(this.#max, this.wanted * 2);
    } else if (!trial.warm) {
      trial.warm = true; // its first window includes connecting
    } else {
      this.#trial = undefined;
      if (rate < trial.rate * GAIN_MIN) {
        this.wanted = trial.before;
        this.#holdUntil = now + NBD_GROWTH_HOLD_MS;
      }
    }
    return this.wanted !== before;
  }

  /** There was a pause: what was measured before it says nothing now. */
  #restart(now: number): boolean {
    this.#newWindow(now);
    if (this.#trial === undefined) return false;
    this.wanted = this.#trial.before;
    this.#trial = undefined;
    return true;
  }

  #newWindow(now: number): void {
    this.#windowStart = now;
    this.#bytes = 0;
    this.#samples = 0;
    this.#busySamples = 0;
  }
}
