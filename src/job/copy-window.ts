// SPDX-License-Identifier: MIT
/**
 * How many bytes a copy keeps in flight: as many as the way to the target holds, so that a link with
 * delay is filled, and no more, so that nobody else's request waits behind a long queue.
 *
 * What the way holds is its rate times its shortest delay. Twice that is allowed, so that a rate that
 * was held down by the window shows: the window doubles until the rate grows no more.
 */

/** Most that a job has in flight unless it is told otherwise, bytes: 1.6 GB/s over 40 ms there and back. */
export const COPY_WINDOW_MAX = 64 * 1024 * 1024;

export interface CopyWindowOptions {
  /** Bytes to begin with, and at least. */
  readonly initialLength: number;
  /** Bytes at most. */
  readonly lengthMax: number;
}

/** The rate is measured over so long at least, milliseconds. */
const MEASURE_MS = 5;
/**
 * Copies that are faster than this, milliseconds, meet no link with delay: what they need is in the
 * initial window, and what they would gain from more the processor's caches lose.
 */
const DELAY_MIN_MS = 5;

export class CopyWindow {
  /** Bytes that may be in flight. */
  length: number;
  readonly #options: CopyWindowOptions;
  #shortestMs = Number.POSITIVE_INFINITY;
  #bytes = 0;
  #since: number | undefined;

  constructor(options: CopyWindowOptions) {
    this.#options = options;
    this.length = options.initialLength;
  }

  /**
   * A copy has ended.
   * @param length bytes
   * @param began when it began, milliseconds
   * @param now milliseconds
   */
  note(length: number, began: number, now: number): void {
    this.#shortestMs = Math.min(this.#shortestMs, now - began);
    this.#since ??= began;
    this.#bytes += length;
    const elapsed = now - this.#since;
    if (elapsed < Math.max(MEASURE_MS, this.#shortestMs)) return;
    const held = (this.#bytes / elapsed) * this.#shortestMs;
    this.#bytes = 0;
    this.#since = now;
    const enough = this.#shortestMs < DELAY_MIN_MS ? this.#options.initialLength : 2 * held;
    this.length = Math.min(this.#options.lengthMax, Math.max(this.length, enough));
  }
}
