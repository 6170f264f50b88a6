// SPDX-License-Identifier: MIT
/** Memory that the copies of one quorum node are read into, all reads together: bounded. */
import { BufferPool, type PooledBuffer } from '../../../base/buffer-pool.js';
import { QUORUM_POOL_IDLE_MAX, QUORUM_READ_BYTES_MAX } from '../../../base/limits.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';

interface Waiter {
  readonly count: number;
  readonly length: number;
  resolve(buffers: PooledBuffer[]): void;
}

export class SpareMemory {
  readonly #pool = new BufferPool({ idleMax: QUORUM_POOL_IDLE_MAX });
  readonly #waiters: Waiter[] = [];
  readonly #max: number;

  /** @param max bytes; one read alone may take more */
  constructor(max = QUORUM_READ_BYTES_MAX) {
    this.#max = max;
    this.#pool.onRelease = () => this.#serve();
  }

  /** `count` buffers of at least `length` bytes, when there is room, in order of asking. */
  take(count: number, length: number): MaybePromise<PooledBuffer[]> {
    if (this.#waiters.length === 0 && this.#fits(count * length)) {
      return this.#takeNow(count, length);
    }
    return new Promise((resolve) => {
      this.#waiters.push({ count, length, resolve });
    });
  }

  #fits(bytes: number): boolean {
    return this.#pool.taken === 0 || this.#pool.takenBytes + bytes <= this.#max;
  }

  #takeNow(count: number, length: number): PooledBuffer[] {
    return Array.from({ length: count }, () => this.#pool.take(length));
  }

  #serve(): void {
    for (;;) {
      const first = this.#waiters[0];
      if (first === undefined || !this.#fits(first.count * first.length)) return;
      this.#waiters.shift();
      first.resolve(this.#takeNow(first.count, first.length));
    }
  }
}
