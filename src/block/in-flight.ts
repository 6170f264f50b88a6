// SPDX-License-Identifier: MIT
/** The requests of one node that have not ended: how many there are, which bytes they write. */

/** Requests that had to wait; those that complete at once are never in flight. */
export class InFlight {
  #count = 0;
  #idle: { promise: Promise<void>; resolve: () => void } | undefined;
  readonly #plainWrites = new Set<PlainWrite>();

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

  /**
   * Remembers a write that went to the driver without the range lock, for who takes the lock while
   * it is under way. Returns `done`.
   */
  plainWrite(offset: number, length: number, done: Promise<void>): Promise<void> {
    const write = { offset, length, done };
    const forget = (): void => {
      this.#plainWrites.delete(write);
    };
    this.#plainWrites.add(write);
    done.then(forget, forget);
    return done;
  }

  /** Waits for the plain writes that overlap the range; more can't begin while it is locked. */
  whenNoPlainWriteOverlaps(offset: number, length: number): void | Promise<void> {
    const overlapping: Promise<void>[] = [];
    for (const write of this.#plainWrites) {
      if (write.offset < offset + length && offset < write.offset + write.length) {
        overlapping.push(write.done);
      }
    }
    if (overlapping.length > 0) return Promise.allSettled(overlapping).then(() => undefined);
  }
}

interface PlainWrite {
  readonly offset: number;
  readonly length: number;
  readonly done: Promise<void>;
}
