// SPDX-License-Identifier: MIT
/**
 * Payload memory of all connections together. What is out of the buffer pool is what clients hold.
 * Small pieces are never refused, so that everybody makes progress whatever others hold; large ones
 * wait in line until there is room. Memory is so bounded by `max` and a small piece a connection.
 */
import type { BufferPool, PooledBuffer } from '../../base/buffer-pool.js';
import { NBD_BYTES_TOTAL_MAX, NBD_PIECE_MAX, NBD_PIECE_SCARCE } from '../../base/limits.js';

interface Waiter {
  readonly size: number;
  resolve(): void;
}

export class MemoryBudget {
  readonly #max: number;
  readonly #waiters: Waiter[] = [];

  /** @param max bytes */
  constructor(
    readonly pool: BufferPool,
    max = NBD_BYTES_TOTAL_MAX,
  ) {
    this.#max = max;
    pool.onRelease = () => this.#serve();
  }

  /** True when large requests must be cut into small pieces. */
  get scarce(): boolean {
    return this.pool.takenBytes > this.#max / 2;
  }

  /** Requests that wait for memory. */
  get waiting(): number {
    return this.#waiters.length;
  }

  /** Longest piece that a READ or WRITE should take now, bytes. */
  get pieceMax(): number {
    return this.scarce ? NBD_PIECE_SCARCE : NBD_PIECE_MAX;
  }

  /** True when `size` bytes may be taken at once. */
  fits(size: number): boolean {
    return this.#waiters.length === 0 && this.pool.takenBytes + size <= this.#max;
  }

  /** A buffer of `size` bytes once there is room, in order of asking. */
  async take(size: number): Promise<PooledBuffer> {
    if (!this.fits(size)) {
      await new Promise<void>((resolve) => {
        this.#waiters.push({ size, resolve });
      });
    }
    return this.pool.take(size);
  }

  #serve(): void {
    const first = this.#waiters[0];
    if (first === undefined) return;
    // One at a time: the next is served when this one has taken its buffer and another comes back,
    // or at once when nothing is out at all, however large it is.
    if (this.pool.takenBytes + first.size > this.#max && this.pool.taken > 0) return;
    this.#waiters.shift();
    first.resolve();
    if (this.#waiters.length > 0) setImmediate(() => this.#serve());
  }
}
