// SPDX-License-Identifier: MIT
/** The requests of one node that have not ended: how many there are, which bytes they write. */

/** Requests that had to wait; those that complete at once are never in flight. */
export class InFlight {
  #count = 0;
  #idle: { promise: Promise<void>; resolve: () => void } | undefined;
  readonly #writes = new Set<TrackedWrite>();

  get count(): number {
    return this.#count;
  }

  begin(): void {
    this.#count++;
  }

  end(): void {
    this.#count--;
    if (this.#count === 0 && this.#idle !== undefined) {
      const idle = this.#idle;
      this.#idle = undefined;
      idle.resolve();
    }
  }

  /** Nothing when nothing is in flight, else a promise for the moment when that is so. */
  whenIdle(): void | Promise<void> {
    if (this.#count === 0) return;
    if (this.#idle === undefined) {
      let resolve = (): void => {};
      const promise = new Promise<void>((done) => {
        resolve = done;
      });
      this.#idle = { promise, resolve };
    }
    return this.#idle.promise;
  }

  addWrite(write: TrackedWrite): void {
    this.#writes.add(write);
  }

  removeWrite(write: TrackedWrite): void {
    this.#writes.delete(write);
  }

  /** Waits for the writes that overlap the range and were in flight when it was called. */
  whenNoWriteOverlaps(offset: number, length: number): void | Promise<void> {
    const overlapping: Promise<unknown>[] = [];
    for (const write of this.#writes) {
      if (write.offset < offset + length && offset < write.offset + write.length) {
        overlapping.push(write.done);
      }
    }
    if (overlapping.length > 0) return Promise.allSettled(overlapping).then(() => undefined);
  }
}

export interface TrackedWrite {
  readonly offset: number;
  readonly length: number;
  readonly done: Promise<unknown>;
}
