// SPDX-License-Identifier: MIT
/**
 * A file in memory that can lose power: what was written since the last flush is then there in part, each
 * sector for itself, in no order.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  type BlockDriver,
  DEFAULT_LIMITS,
  type DriverDefinition,
  type TruncateOptions,
} from '../../src/block/block-driver.js';
import type { FileRange } from '../../src/block/file-range.js';
import type { Random } from './qcow2-model.js';

const SECTOR = 512;
/** Bytes that are copied at a time from another file. */
const COPY_PIECE = 8 * 1024;

export class VolatileFile implements BlockDriver {
  readonly name = 'volatile';
  readonly limits = DEFAULT_LIMITS;
  readonly features = {
    ...{ fua: false, writeZeroes: true, discard: true, backing: false, multiConn: true },
  };
  /** The first that many bytes of it are the file. */
  #bytes: Buffer;
  #size: number;
  #durable: Buffer;
  #pending: { readonly offset: number; readonly bytes: Buffer }[] = [];
  /** Writes that fail from now on. */
  failing = 0;
  /** Writes that succeed before those. */
  spared = 0;

  /** @param filename what images may note; a name of nothing that is there */
  constructor(
    content: Buffer,
    capacity: number,
    readonly filename = '',
  ) {
    this.#bytes = Buffer.alloc(capacity);
    content.copy(this.#bytes);
    this.#durable = Buffer.from(this.#bytes);
    this.#size = content.byteLength;
  }

  get size(): number {
    return this.#size;
  }

  /** All that has been written, flushed or not. */
  get content(): Buffer {
    return this.#bytes.subarray(0, this.#size);
  }

  /** What is on the medium now, were the power lost: any sectors, or only what was written last. */
  loss(random: Random): Buffer {
    const left = Buffer.from(this.#durable);
    const first = random.pick([0, 0, Math.max(this.#pending.length - 1 - random.below(4), 0)]);
    for (const { offset, bytes } of this.#pending.slice(first)) {
      for (let at = 0; at < bytes.byteLength; ) {
        const end = Math.min(bytes.byteLength, at + SECTOR - ((offset + at) % SECTOR));
        if (first > 0 || random.below(2) === 0) bytes.copy(left, offset + at, at, end);
        at = end;
      }
    }
    return left;
  }

  read(offset: number, buffer: Buffer): Promise<void> | void {
    this.#bytes.copy(buffer, 0, offset, offset + buffer.byteLength);
    if (offset % 3 === 0) return nextTurn();
  }

  write(offset: number, buffer: Buffer): Promise<void> | void {
    if (this.failing > 0 && this.spared-- <= 0) {
      this.failing--;
      throw new Error('a write that fails on purpose');
    }
    const bytes = Buffer.from(buffer);
    if (offset % 5 === 0) return nextTurn().then(() => this.#put(offset, bytes));
    this.#put(offset, bytes);
  }

  /** As the system copies: in pieces, between which others have their turn. */
  async writeFrom(offset: number, { file, offset: from, length }: FileRange): Promise<number> {
    for (let at = 0; at < length; ) {
      const piece = Buffer.alloc(Math.min(length - at, COPY_PIECE));
      await nextTurn();
      if (this.failing > 0) {
        this.failing--;
        return at;
      }
      await file.read(from + at, piece);
      this.#put(offset + at, piece);
      at += piece.byteLength;
    }
    return length;
  }

  writeZeroes(offset: number, length: number): Promise<void> | void {
    return this.write(offset, Buffer.alloc(length));
  }

  /** Whoever reads what was discarded gets to see it. */
  discard(offset: number, length: number): void {
    this.#put(offset, Buffer.alloc(Math.min(length, this.#size - offset), 0xd1));
  }

  async flush(): Promise<void> {
    const count = this.#pending.length;
    await nextTurn();
    for (const { offset, bytes } of this.#pending.slice(0, count))
      bytes.copy(this.#durable, offset);
    this.#pending = this.#pending.slice(count);
  }

  async truncate(size: number, _options: TruncateOptions): Promise<void> {
    if (size < this.#size) this.#put(size, Buffer.alloc(this.#size - size));
    this.#size = size;
  }

  #put(offset: number, bytes: Buffer): void {
    if (offset + bytes.byteLength > this.#bytes.byteLength)
      throw new Error('the file is too small');
    bytes.copy(this.#bytes, offset);
    this.#pending.push({ offset, bytes });
    this.#size = Math.max(this.#size, offset + bytes.byteLength);
  }

  close(): void {}

  definition(): DriverDefinition {
    return { name: 'volatile', kind: 'protocol', children: [], open: () => this };
  }
}
