// SPDX-License-Identifier: MIT
/** Random requests on an image and on a buffer in memory, which must stay equal. */
import {
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_OFFLOAD,
  REQ_WRITE_COMPRESSED,
} from '../../src/block/block-driver.js';
import type { RangeFile } from '../../src/block/file-range.js';
import type { NodeLike } from '../suite/block-driver.suite.js';
import { contentOf, expectEqual, KIB, pattern } from './qcow2.js';

/** A sequence of numbers that a seed fixes. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0 || 1;
  }

  /** An integer from 0 to `below` - 1. */
  below(below: number): number {
    // xorshift32
    let x = this.#state;
    x ^= x << 13;
    x >>>= 0;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x >>> 0;
    return Math.floor((this.#state / 2 ** 32) * below);
  }

  pick<T>(choices: readonly T[]): T {
    const choice = choices[this.below(choices.length)];
    if (choice === undefined) throw new Error('nothing to pick from');
    return choice;
  }
}

/** Distance of the bytes of two writes in the file that has them all. */
const WRITE_PLACE = 2 ** 32;

/** A file with the bytes of all writes: those of the nth begin at n times that distance. */
const WRITTEN: RangeFile = {
  fd: -1,
  path: 'written',
  peek: () => -1,
  read(offset, buffer) {
    const at = offset % WRITE_PLACE;
    pattern(at + buffer.byteLength, Math.floor(offset / WRITE_PLACE)).copy(buffer, 0, at);
  },
};

export interface ModelOptions {
  readonly random: Random;
  /** The content at the start. */
  readonly content: Buffer;
  readonly clusterSize: number;
  /** Discarded clusters may keep their bytes or show what is below: those parts are not compared. */
  readonly discards: boolean;
  /** Some writes are of whole clusters, to be compressed. */
  readonly compresses?: boolean;
  /** Some writes have their bytes in a file, from which they are copied. */
  readonly offloads?: boolean;
  /** Told of each range that a request may change, before it does. */
  readonly changed?: (offset: number, length: number) => void;
  /** Gets a line for each request. */
  readonly story?: string[];
}

/** Bytes that an image should have. */
export class ImageModel {
  readonly #options: ModelOptions;
  content: Buffer;
  /** Bytes that were changed, or may have been, since `settled` was called: 1 for each. */
  touched: Buffer;
  #writes = 0;
  /** Bytes of writes that were copied to the node as they lay in a file. */
  offloaded = 0;

  constructor(options: ModelOptions) {
    this.#options = options;
    this.content = Buffer.from(options.content);
    this.touched = Buffer.alloc(this.content.byteLength);
  }

  /** Some requests at a time on ranges that don't meet, and the same on the model. */
  async step(node: NodeLike): Promise<void> {
    const { random } = this.#options;
    const count = random.pick([1, 1, 2, 4, 8]);
    const part = Math.floor(this.content.byteLength / count);
    const running: unknown[] = [];
    for (let nth = 0; nth < count; nth++) {
      running.push(this.#request(node, nth * part, part));
    }
    await Promise.all(running);
  }

  async #request(node: NodeLike, from: number, room: number): Promise<void> {
    const { random, clusterSize, discards, compresses } = this.#options;
    if (compresses === true && random.below(3) === 0) {
      return this.#writeCompressed(node, from, from + room);
    }
    const unit = random.pick([1, 512, 4 * KIB, clusterSize, clusterSize]);
    const start = Math.min(Math.floor((from + random.below(room)) / unit) * unit, from + room - 1);
    const offset = Math.max(start, from);
    const most = random.pick([1 * KIB, 20 * KIB, 2 * clusterSize, 6 * clusterSize]);
    let length = Math.min(1 + random.below(most), from + room - offset);
    if (random.below(2) === 0) length = Math.max(Math.floor(length / unit) * unit, 1);
    const kind = random.below(12);
    if (kind < 7) return this.#write(node, offset, length);
    if (kind < 9) return this.#zero(node, offset, length);
    if (kind < 10 && discards) return this.#discard(node, offset, length);
    const got = Buffer.alloc(length, 0xee);
    const expected = Buffer.from(this.content.subarray(offset, offset + length));
    await node.read(offset, got);
    expectEqual(got, expected);
  }

  async #write(node: NodeLike, offset: number, length: number): Promise<void> {
    this.#writes++;
    const bytes = pattern(length, this.#writes);
    bytes.copy(this.content, offset);
    this.#note('write', offset, length);
    const copied = await this.#offload(node, offset, { length, nth: this.#writes });
    const flags = this.#options.random.below(20) === 0 ? REQ_FUA : 0;
    if (copied < length) await node.write(offset + copied, bytes.subarray(copied), flags);
  }

  /** @returns bytes of the write that were copied, from its start */
  async #offload(
    node: NodeLike,
    offset: number,
    { length, nth }: { readonly length: number; readonly nth: number },
  ): Promise<number> {
    const { offloads, random } = this.#options;
    if (offloads !== true || random.below(3) === 0) return 0;
    const source = { file: WRITTEN, offset: nth * WRITE_PLACE, length };
    const copied = (await node.writeFrom?.(offset, source, REQ_OFFLOAD)) ?? 0;
    this.offloaded += copied;
    return copied;
  }

  /** Whole clusters between two places, of which some don't shrink. */
  async #writeCompressed(node: NodeLike, from: number, to: number): Promise<void> {
    const { random, clusterSize } = this.#options;
    const first = Math.ceil(from / clusterSize);
    const clusters = Math.floor(to / clusterSize) - first;
    const start = (first + random.below(Math.max(clusters, 1))) * clusterSize;
    const wanted = start + (1 + random.below(9)) * clusterSize;
    const toEnd = to === this.content.byteLength && start < to;
    const end = toEnd ? Math.min(wanted, to) : Math.min(wanted, (first + clusters) * clusterSize);
    if (end <= start) return;
    this.#writes++;
    const bytes = pattern(end - start, this.#writes);
    for (let at = 0; at < bytes.byteLength; at += clusterSize) {
      const last = Math.min(at + clusterSize, bytes.byteLength);
      const filled = random.below(4) > 0 ? random.below(last - at) : 0;
      bytes.fill(this.#writes, last - filled, last);
    }
    bytes.copy(this.content, start);
    this.#note('compress', start, end - start);
    await node.write(start, bytes, REQ_WRITE_COMPRESSED);
  }

  async #zero(node: NodeLike, offset: number, length: number): Promise<void> {
    this.content.fill(0, offset, offset + length);
    this.#note('zero', offset, length);
    await node.writeZeroes(offset, length, this.#options.random.pick([0, REQ_MAY_UNMAP]));
  }

  /** Whole clusters read as zeroes; the rest stays as it is. */
  async #discard(node: NodeLike, offset: number, length: number): Promise<void> {
    const { clusterSize } = this.#options;
    this.#note('discard', offset, length);
    const first = Math.ceil(offset / clusterSize) * clusterSize;
    const end = offset + length;
    const toEnd = end === this.content.byteLength;
    const last = toEnd ? end : Math.floor(end / clusterSize) * clusterSize;
    if (last > first) this.content.fill(0, first, last);
    await node.discard(offset, length);
  }

  #note(what: string, offset: number, length: number): void {
    const { changed, story } = this.#options;
    this.touched.fill(1, offset, offset + length);
    changed?.(offset, length);
    story?.push(`${what} ${offset} ${length}`);
  }

  /** From now on changes are noted anew. */
  settled(): void {
    this.touched.fill(0);
  }

  resize(size: number): void {
    const next = Buffer.alloc(size);
    this.content.copy(next);
    this.content = next;
    this.touched = Buffer.alloc(size);
  }

  async compare(node: NodeLike): Promise<void> {
    expectEqual(await contentOf(node), this.content);
  }
}
