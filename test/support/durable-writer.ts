// SPDX-License-Identifier: MIT
/** A writer that flushes, and knows what has to be there after a crash at any moment. */
import { pattern } from './qcow2.js';
import type { SeededRandom } from './seeded-random.js';

/** What it writes to: a node, or a client of the daemon. */
export interface Disk {
  readonly size: number;
  write(offset: number, buffer: Buffer): unknown;
  writeZeroes(offset: number, length: number): unknown;
  flush(): unknown;
}

export class DurableWriter {
  readonly #disk: Disk;
  readonly #random: SeededRandom;
  /** The disk as it was acknowledged. */
  readonly #model: Buffer;
  /** What it has to hold, where nothing was written since. */
  readonly #stable: Buffer;
  /** Bytes that were written, or may have been, since the last flush began: 1 for each. */
  readonly #touched: Buffer;
  #writes = 0;
  #steps = 0;
  #wanted = { count: Number.POSITIVE_INFINITY, resolve: (): void => undefined };
  #ended = false;

  constructor(disk: Disk, content: Buffer, random: SeededRandom) {
    this.#disk = disk;
    this.#random = random;
    this.#model = Buffer.from(content);
    this.#stable = Buffer.from(content);
    this.#touched = Buffer.alloc(content.byteLength);
  }

  /** Writes until `stop`, or until a request fails, as it does when the daemon is killed. */
  async run(): Promise<void> {
    try {
      while (!this.#ended) {
        await this.step();
        this.#steps++;
        if (this.#steps >= this.#wanted.count) this.#wanted.resolve();
      }
    } catch {
      this.#ended = true;
      this.#wanted.resolve();
    }
  }

  /** Requests made so far. */
  get steps(): number {
    return this.#steps;
  }

  /** Fulfilled when so many requests have been made, or no more will be. */
  reach(count: number): Promise<void> {
    if (this.#ended || this.#steps >= count) return Promise.resolve();
    return new Promise((resolve) => {
      this.#wanted = { count, resolve };
    });
  }

  stop(): void {
    this.#ended = true;
  }

  /** One request. @throws what it says */
  async step(): Promise<void> {
    const random = this.#random;
    if (random.chance(0.2)) return this.flush();
    const length = 1 + random.int(random.pick([600, 30_000, 100_000]));
    const offset = random.int(this.#stable.byteLength - length);
    const zero = random.chance(0.2);
    this.#writes++;
    const bytes = zero ? Buffer.alloc(length) : pattern(length, this.#writes);
    this.#touched.fill(1, offset, offset + length);
    if (zero) await this.#disk.writeZeroes(offset, length);
    else await this.#disk.write(offset, bytes);
    bytes.copy(this.#model, offset);
  }

  /** Nothing else is under way. */
  async flush(): Promise<void> {
    await this.#disk.flush();
    this.#model.copy(this.#stable);
    this.#touched.fill(0);
  }

  /** Says where `seen` lacks what was flushed; undefined: it has it all. */
  missing(seen: Buffer): string | undefined {
    return this.moment()(seen);
  }

  /** Judges by what had been flushed when it was called. */
  moment(): (seen: Buffer) => string | undefined {
    const stable = Buffer.from(this.#stable);
    const touched = Buffer.from(this.#touched);
    return (seen) => {
      if (seen.byteLength < stable.byteLength) return `only ${seen.byteLength} bytes`;
      for (let at = 0; at < stable.byteLength; at++) {
        if (touched[at] !== 0 || seen[at] === stable[at]) continue;
        return `byte ${at} is ${seen[at]} instead of ${stable[at]}`;
      }
      return undefined;
    };
  }
}
