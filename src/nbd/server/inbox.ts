// SPDX-License-Identifier: MIT
/**
 * The receive buffer of one connection. Requests are decoded where they were received; a buffer
 * that a waiting write still reads from is left to it and another takes its place.
 */
import type { PooledBuffer } from '../../base/buffer-pool.js';
import { KIB, NBD_RECEIVE_LARGE, NBD_RECEIVE_SMALL } from '../../base/limits.js';
import type { MemoryBudget } from './memory-budget.js';

/** Less free room than this is not worth a receive, bytes. */
const ROOM_MIN = 4 * KIB;
/** Receives that leave a large buffer mostly empty before it is taken for too large. */
const QUIET_RECEIVES = 64;
/** Receive this much ahead of a large payload, bytes: the head and little of the payload. */
const SHORT_RECEIVE = 4 * KIB;

export class Inbox {
  readonly #budget: MemoryBudget;
  #buffer: PooledBuffer;
  #start = 0;
  #fill = 0;
  #wanted = NBD_RECEIVE_SMALL;
  #targetSize = 0;
  #quiet = 0;
  #closed = false;
  /** Bytes that the message at the start takes, as far as known; the buffer will have room for it. */
  need = 1;
  /**
   * Receive little next time, because a large payload is likely to follow a head: that payload then
   * goes into its own buffer without passing through this one.
   */
  short = false;

  constructor(budget: MemoryBudget) {
    this.#budget = budget;
    this.#buffer = budget.pool.take(this.#wanted);
  }

  /** Position of the first byte that was not consumed. */
  get start(): number {
    return this.#start;
  }

  /** Bytes that wait to be consumed. */
  get unread(): number {
    return this.#fill - this.#start;
  }

  get buffer(): PooledBuffer {
    return this.#buffer;
  }

  consume(length: number): void {
    this.#start += length;
  }

  /** Where the next bytes go. */
  target(): Buffer {
    if (this.#start === this.#fill && this.#buffer.sole && this.#buffer.size >= this.#wanted) {
      this.#start = 0;
      this.#fill = 0;
      if (this.#buffer.size > 2 * this.#wanted) this.#move(this.#wanted);
    } else if (!this.#hasRoom()) {
      this.#makeRoom();
    }
    const { bytes } = this.#buffer;
    const end = this.short ? Math.min(this.#fill + SHORT_RECEIVE, bytes.byteLength) : undefined;
    this.#targetSize = (end ?? bytes.byteLength) - this.#fill;
    if (this.#fill === 0 && end === undefined) return bytes;
    return bytes.subarray(this.#fill, end);
  }

  /** `length` bytes came into the target. Returns true when they filled it. */
  received(length: number): boolean {
    this.#fill += length;
    const full = length === this.#targetSize;
    if (full && !this.short) {
      this.#wanted = this.#budget.scarce ? NBD_RECEIVE_SMALL : NBD_RECEIVE_LARGE;
      this.#quiet = 0;
    } else if (this.#wanted !== NBD_RECEIVE_SMALL && length < NBD_RECEIVE_SMALL / 2) {
      this.#quiet++;
      if (this.#quiet > QUIET_RECEIVES) this.#wanted = NBD_RECEIVE_SMALL;
    } else {
      this.#quiet = 0;
    }
    return full;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#buffer.release();
  }

  #hasRoom(): boolean {
    if (this.#start === this.#fill) return false;
    const room = this.#buffer.size - this.#fill;
    return room >= ROOM_MIN && this.#buffer.size - this.#start >= this.need;
  }

  #makeRoom(): void {
    const { unread } = this;
    const size = Math.max(this.#wanted, this.need, unread + NBD_RECEIVE_SMALL);
    if (this.#buffer.sole && this.#buffer.size >= size) {
      this.#buffer.bytes.copyWithin(0, this.#start, this.#fill);
      this.#start = 0;
      this.#fill = unread;
      return;
    }
    this.#move(size);
  }

  #move(size: number): void {
    const { unread } = this;
    const next = this.#budget.pool.take(size);
    this.#buffer.bytes.copy(next.bytes, 0, this.#start, this.#fill);
    this.#buffer.release();
    this.#buffer = next;
    this.#start = 0;
    this.#fill = unread;
  }
}
