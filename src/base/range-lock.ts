// SPDX-License-Identifier: MIT
/**
 * The one lock for overlapping byte ranges: allocation, copy-on-read, read-modify-write,
 * copy-before-write, mirroring.
 */
import type { MaybePromise } from './maybe-promise.js';

/** A range that is held, or waited for. Release exactly once. */
export interface RangeHold {
  readonly offset: number;
  readonly length: number;
  release(): void;
}

type Waiter = { hold: Hold; grant: () => void };

class Hold implements RangeHold {
  /** Later requests that wait for this one to end, in order of arrival. */
  readonly waiters: Waiter[] = [];
  /** How many earlier overlapping holds this one waits for. */
  blockedBy = 0;

  constructor(
    readonly lock: RangeLock,
    readonly offset: number,
    readonly length: number,
    readonly shared: boolean,
  ) {}

  release(): void {
    this.lock.releaseHold(this);
  }
}

/**
 * Ranges are granted in order of arrival: who overlaps an earlier hold, granted or waiting, waits
 * for it (unless both are shared), so nobody starves and no two can wait for each other.
 * The number of holds at a time is small (requests in flight that need the lock), so a list does.
 */
export class RangeLock {
  readonly #holds = new Set<Hold>();

  /** Ranges held or waited for; 0 means that a request may pass without asking. */
  get count(): number {
    return this.#holds.size;
  }

  /** Every range that is held or waited for. */
  get ranges(): Iterable<{ readonly offset: number; readonly length: number }> {
    return this.#holds;
  }

  /**
   * Takes `length` bytes from `offset`; at once when nothing overlaps, else when the overlapping
   * holds that came before are released.
   */
  acquire(
    offset: number,
    length: number,
    options: { readonly shared?: boolean } = {},
  ): MaybePromise<RangeHold> {
    const hold = new Hold(this, offset, length, options.shared === true);
    const before = this.#overlapping(hold);
    this.#holds.add(hold);
    if (before.length === 0) return hold;
    hold.blockedBy = before.length;
    return new Promise<RangeHold>((resolve) => {
      for (const other of before) other.waiters.push({ hold, grant: () => resolve(hold) });
    });
  }

  /** Takes the range only when that is possible at once. */
  tryAcquire(offset: number, length: number): RangeHold | undefined {
    const hold = new Hold(this, offset, length, false);
    if (this.#overlapping(hold).length > 0) return undefined;
    this.#holds.add(hold);
    return hold;
  }

  /** True when an exclusive hold, granted or waiting, overlaps the range. */
  isHeld(offset: number, length: number): boolean {
    for (const other of this.#holds) {
      if (!other.shared && other.offset < offset + length && offset < other.offset + other.length) {
        return true;
      }
    }
    return false;
  }

  /** Called by a hold's `release`. A second release of the same hold is a bug and throws. */
  releaseHold(hold: Hold): void {
    if (!this.#holds.delete(hold)) throw new Error('range lock: released twice');
    for (const { hold: waiting, grant } of hold.waiters) {
      waiting.blockedBy--;
      if (waiting.blockedBy === 0) grant();
    }
  }

  #overlapping(hold: Hold): Hold[] {
    const found: Hold[] = [];
    for (const other of this.#holds) {
      const overlaps =
        other.offset < hold.offset + hold.length && hold.offset < other.offset + other.length;
      if (overlaps && !(other.shared && hold.shared)) found.push(other);
    }
    return found;
  }
}
