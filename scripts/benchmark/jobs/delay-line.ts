// SPDX-License-Identifier: MIT
/** One direction of a link: what enters comes out in order, later, and at no more than its rate. */

const MS_PER_SECOND = 1000;

/** The narrowest place of a link, which all its lines of one direction share. */
export class Narrow {
  /** When the last byte has passed, milliseconds. */
  #passedAt = 0;

  /** @param bytesPerSecond infinity where nothing is narrow */
  constructor(private readonly bytesPerSecond: number) {}

  /** When bytes that come now have passed, after all that came before, milliseconds. */
  pass(length: number, now: number): number {
    const passing = (length / this.bytesPerSecond) * MS_PER_SECOND;
    this.#passedAt = Math.max(this.#passedAt, now) + passing;
    return this.#passedAt;
  }
}

export interface DelayLineOptions {
  /** From having passed the narrowest place to leaving, milliseconds. */
  readonly delayMs: number;
  readonly narrow: Narrow;
}

interface Entry<T> {
  readonly item: T;
  readonly length: number;
  readonly due: number;
}

/**
 * A queue of items with the time at which each is due. Any number of them is on the way at once, so
 * that a delay by itself does not slow a stream down. The clock is the caller's.
 */
export class DelayLine<T> {
  /** Bytes that entered and did not leave yet. */
  queued = 0;
  readonly #options: DelayLineOptions;
  #entries: Entry<T>[] = [];
  #head = 0;

  constructor(options: DelayLineOptions) {
    this.#options = options;
  }

  /** @param length bytes of the item; @param now milliseconds, never less than the time before */
  push(item: T, length: number, now: number): void {
    const { delayMs, narrow } = this.#options;
    this.#entries.push({ item, length, due: narrow.pass(length, now) + delayMs });
    this.queued += length;
  }

  /** When the next item is due, milliseconds; undefined while there is none. */
  get nextDue(): number | undefined {
    return this.#entries[this.#head]?.due;
  }

  /** The next item if it is due; it has left then. */
  take(now: number): T | undefined {
    const entry = this.#entries[this.#head];
    if (entry === undefined || entry.due > now) return undefined;
    this.#head += 1;
    this.queued -= entry.length;
    if (this.#head === this.#entries.length) {
      this.#entries = [];
      this.#head = 0;
    }
    return entry.item;
  }
}
