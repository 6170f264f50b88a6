// SPDX-License-Identifier: MIT
/**
 * How many bytes a copy keeps in flight: as many as the way to the target holds, so that a link with
 * delay is filled, and no more, so that nobody else's request waits behind a long queue.
 *
 * What the way holds is its rate times its shortest delay. Twice that is allowed, so that a rate that
 * was held down by the window shows: the window doubles until the rate grows no more. Where the way is
 * known to be long it begins with what fills a fast link, and is as small as it should be one round
 * trip after the first copy.
 */

import { FAR_ROUND_TRIP_MS } from '../base/limits.js';

/** Most that a job has in flight unless it is told otherwise, bytes: 1.6 GB/s over 40 ms there and back. */
export const COPY_WINDOW_MAX = 64 * 1024 * 1024;

export interface CopyWindowOptions {
  /** Bytes to begin with, and at least. */
  readonly initialLength: number;
  /** Bytes at most. */
  readonly lengthMax: number;
  /** What is known of the shortest delay before the first copy, milliseconds. */
  readonly roundTripMs?: number | undefined;
}

/** Of a fast link, bytes a millisecond: with it the longest window lasts for 40 ms there and back. */
const FAST_LINK_RATE = COPY_WINDOW_MAX / 40;

/** The rate is measured over so long at least, milliseconds. */
const MEASURE_MS = 5;

export class CopyWindow {
  /** Bytes that may be in flight. */
  length: number;
  readonly #options: CopyWindowOptions;
  #shortestMs = Number.POSITIVE_INFINITY;
  #bytes = 0;
  /** `length` is what a fast link takes, and nothing has been measured. */
  #guessed = false;
  #since: number | undefined;

  constructor(options: CopyWindowOptions) {
    this.#options = options;
    const { initialLength, lengthMax, roundTripMs = 0 } = options;
    this.length = initialLength;
    if (roundTripMs < FAR_ROUND_TRIP_MS) return;
    this.length = Math.max(initialLength, Math.min(lengthMax, roundTripMs * FAST_LINK_RATE));
    this.#guessed = true;
  }

  /**
   * A copy has ended.
   * @param length bytes
   * @param began when it began, milliseconds
   * @param now milliseconds
   */
  note(length: number, began: number, now: number): void {
    this.#shortestMs = Math.min(this.#shortestMs, now - began);
    if (this.#guessed && this.#since === undefined) {
      // From the first to arrive on, others arrive as fast as the link carries them.
      this.#since = now;
      return;
    }
    this.#since ??= began;
    this.#bytes += length;
    const elapsed = now - this.#since;
    if (elapsed < Math.max(MEASURE_MS, this.#shortestMs)) return;
    const held = (this.#bytes / elapsed) * this.#shortestMs;
    this.#bytes = 0;
    this.#since = now;
    // Faster copies meet no link with delay: what they need is in the initial window, and what they
    // would gain from more the processor's caches lose.
    const { initialLength, lengthMax } = this.#options;
    const enough = this.#shortestMs < FAR_ROUND_TRIP_MS ? initialLength : 2 * held;
    const least = this.#guessed ? initialLength : this.length;
    this.#guessed = false;
    this.length = Math.min(lengthMax, Math.max(least, enough));
  }
}
