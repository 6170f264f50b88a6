// SPDX-License-Identifier: MIT
/**
 * What every node does, whatever its driver: run on each driver alone and stacked, on a node or on
 * whatever else has its requests. Content is compared with a model in memory.
 */
import { readSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { MaybePromise } from '../../src/base/maybe-promise.js';
import {
  type Extent,
  REQ_FUA,
  REQ_MAY_UNMAP,
  type RequestFlags,
  STATUS_ZERO,
  type TruncateOptions,
} from '../../src/block/block-driver.js';
import type { FileRange, RangeUse } from '../../src/block/file-range.js';

/** The requests of a node, a child edge or a backend. */
export interface NodeLike {
  readonly size: number;
  read(offset: number, buffer: Buffer, flags?: RequestFlags): MaybePromise<void>;
  readRange?(offset: number, length: number, use: RangeUse): MaybePromise<number>;
  write(offset: number, buffer: Buffer, flags?: RequestFlags): MaybePromise<void>;
  writeFrom?(offset: number, source: FileRange, flags?: RequestFlags): MaybePromise<number>;
  writeZeroes(offset: number, length: number, flags?: RequestFlags): MaybePromise<void>;
  discard(offset: number, length: number): MaybePromise<void>;
  flush(): MaybePromise<void>;
  blockStatus(offset: number, length: number): MaybePromise<Pick<Extent, 'length' | 'flags'>>;
  truncate?(size: number, options?: TruncateOptions): Promise<void>;
}

export interface SuiteNode {
  readonly node: NodeLike;
  /** Closes the node and all that was made for it. */
  close(): Promise<void>;
}

export interface SuiteOptions {
  /** False for drivers that store nothing. */
  readonly keepsContent?: boolean;
  /** False where the size is fixed. */
  readonly resizes?: boolean;
}

const KIB = 1024;
const SIZE = 1024 * KIB;

/** @param makeNode an empty (all zero), writable node of `size` bytes, a multiple of 4 KiB */
export function blockDriverSuite(
  name: string,
  makeNode: (size: number) => Promise<SuiteNode>,
  { keepsContent = true, resizes = true }: SuiteOptions = {},
): void {
  describe(`block driver contract: ${name}`, () => {
    let made: SuiteNode;
    let node: NodeLike;
    beforeEach(async () => {
      made = await makeNode(SIZE);
      node = made.node;
    });
    afterEach(() => made.close());

    anyNode(() => node);
    if (keepsContent) contentRules(() => node);
    if (keepsContent && resizes) resizeRules(() => node);
  });
}

function anyNode(current: () => NodeLike): void {
  it('has the size that it was made with', () => {
    expect(current().size).toBe(SIZE);
  });

  it('reads zeroes where nothing was written', async () => {
    expectSame(await readBack(current(), 0, SIZE), Buffer.alloc(SIZE));
  });

  it('takes requests of every kind', async () => {
    const node = current();
    await node.write(4 * KIB, Buffer.alloc(4 * KIB, 1));
    await node.write(4 * KIB, Buffer.alloc(4 * KIB, 1), REQ_FUA);
    await node.writeZeroes(0, 64 * KIB);
    await node.writeZeroes(0, 64 * KIB, REQ_MAY_UNMAP | REQ_FUA);
    await node.discard(0, 64 * KIB);
    await node.flush();
  });

  it('does nothing for empty requests', async () => {
    const node = current();
    await node.read(SIZE, Buffer.alloc(0));
    await node.write(SIZE, Buffer.alloc(0));
    await node.writeZeroes(SIZE, 0);
    await node.discard(SIZE, 0);
  });

  it('refuses requests that reach past the end', async () => {
    const node = current();
    const outOfRange = { code: 'DF_OUT_OF_RANGE' };
    await expect(called(() => node.read(SIZE - 1, Buffer.alloc(2)))).rejects.toMatchObject(
      outOfRange,
    );
    await expect(called(() => node.write(SIZE, Buffer.alloc(1)))).rejects.toMatchObject(outOfRange);
    await expect(called(() => node.writeZeroes(0, SIZE + 1))).rejects.toMatchObject(outOfRange);
    await expect(called(() => node.discard(SIZE, 512))).rejects.toMatchObject(outOfRange);
    await expect(called(() => node.blockStatus(SIZE, 1))).rejects.toMatchObject(outOfRange);
    await expect(called(() => node.read(-1, Buffer.alloc(1)))).rejects.toMatchObject(outOfRange);
  });

  it('reports status without gaps from the start to the end', async () => {
    const node = current();
    await node.write(128 * KIB, Buffer.alloc(64 * KIB, 7));
    for (let at = 0; at < SIZE; ) {
      const { length } = await node.blockStatus(at, SIZE - at);
      expect(length).toBeGreaterThan(0);
      expect(length).toBeLessThanOrEqual(SIZE - at);
      at += length;
    }
  });
}

function contentRules(current: () => NodeLike): void {
  it('reads what was written, at and across every boundary', async () => {
    const node = current();
    const model = Buffer.alloc(SIZE);
    for (const boundary of [0, 512, 4 * KIB, 64 * KIB, 512 * KIB, SIZE]) {
      for (const [before, length] of [
        [0, 1],
        [1, 2],
        [511, 513],
        [4 * KIB, 8 * KIB],
      ] as const) {
        const start = Math.max(0, Math.min(boundary - before, SIZE - length));
        await writeBoth(node, model, start, pattern(start, length));
      }
    }
    expectSame(await readBack(node, 0, SIZE), model);
    expectSame(await readBack(node, 511, 4097), model.subarray(511, 511 + 4097));
  });

  it('hands out as ranges of a file only what a read would give', async () => {
    const node = current();
    const model = Buffer.alloc(SIZE);
    const random = seeded(77);
    for (let step = 0; step < 60; step++) {
      const offset = random(SIZE);
      const length = Math.min(1 + random(200 * KIB), SIZE - offset);
      if (step % 3 === 0) {
        await node.writeZeroes(offset, length, step % 2 === 0 ? REQ_MAY_UNMAP : 0);
        model.fill(0, offset, offset + length);
      } else await writeBoth(node, model, offset, pattern(step, length));
      const at = random(SIZE);
      const asked = Math.min(1 + random(300 * KIB), SIZE - at);
      const bytes = await rangeOf(node, at, asked);
      expectSame(bytes, model.subarray(at, at + bytes.byteLength));
    }
    for (let at = 0; at < SIZE; at += 4 * KIB) {
      const bytes = await rangeOf(node, at, SIZE - at);
      expectSame(bytes, model.subarray(at, at + bytes.byteLength));
    }
  });

  it('takes one request of the whole size', async () => {
    const node = current();
    const all = pattern(3, SIZE);
    await node.write(0, all);
    expectSame(await readBack(node, 0, SIZE), all);
  });

  it('reads zeroes after write zeroes, and leaves what lies around', async () => {
    const node = current();
    const model = pattern(1, SIZE);
    await node.write(0, model);
    for (const flags of [0, REQ_MAY_UNMAP, REQ_FUA, REQ_MAY_UNMAP | REQ_FUA]) {
      const offset = 128 * KIB * flags + 4 * KIB;
      await node.writeZeroes(offset, 64 * KIB, flags);
      model.fill(0, offset, offset + 64 * KIB);
    }
    await node.writeZeroes(700 * KIB + 3, 5000);
    model.fill(0, 700 * KIB + 3, 700 * KIB + 5003);
    await node.writeZeroes(SIZE - 1, 1);
    model.fill(0, SIZE - 1);
    expectSame(await readBack(node, 0, SIZE), model);
  });

  it('leaves what lies outside of a discard', async () => {
    const node = current();
    const model = pattern(5, SIZE);
    await node.write(0, model);
    await node.discard(64 * KIB, 128 * KIB);
    expectSame(await readBack(node, 0, 64 * KIB), model.subarray(0, 64 * KIB));
    expectSame(await readBack(node, 192 * KIB, SIZE - 192 * KIB), model.subarray(192 * KIB));
  });

  it('never calls written data zero', async () => {
    const node = current();
    await node.write(64 * KIB, Buffer.alloc(64 * KIB, 9));
    await node.writeZeroes(256 * KIB, 64 * KIB, REQ_MAY_UNMAP);
    await node.blockStatus(256 * KIB, 64 * KIB);
    await node.write(256 * KIB + 4 * KIB, Buffer.alloc(4 * KIB, 9));
    for (const [start, end] of [
      [64, 128],
      [260, 264],
    ] as const) {
      for (let at = start * KIB; at < end * KIB; ) {
        const extent = await node.blockStatus(at, end * KIB - at);
        expect(extent.flags & STATUS_ZERO).toBe(0);
        at += extent.length;
      }
    }
  });

  it('calls zero only what reads as zeroes', async () => {
    const node = current();
    await node.write(0, pattern(2, SIZE));
    await node.writeZeroes(256 * KIB, 256 * KIB, REQ_MAY_UNMAP);
    await node.flush();
    for (let at = 0; at < SIZE; ) {
      const { length, flags } = await node.blockStatus(at, SIZE - at);
      if ((flags & STATUS_ZERO) !== 0) {
        expectSame(await readBack(node, at, length), Buffer.alloc(length));
      }
      at += length;
    }
  });

  it('keeps each of many requests at once whole', async () => {
    const node = current();
    const model = Buffer.alloc(SIZE);
    const random = seeded(1234);
    const pending: MaybePromise<void>[] = [];
    for (let index = 0; index < 256; index++) {
      const offset = index * 4 * KIB + random(512);
      const data = pattern(index, 1 + random(3 * KIB));
      data.copy(model, offset);
      pending.push(node.write(offset, data, index % 16 === 0 ? REQ_FUA : 0));
    }
    await Promise.all(pending);
    expectSame(await readBack(node, 0, SIZE), model);
  });

  it('leaves one of two overlapping writes, or a mix of both, but nothing else', async () => {
    const node = current();
    for (let round = 0; round < 8; round++) {
      const writes = [1, 2, 3].map((value) =>
        node.write(4 * KIB + value * 512, Buffer.alloc(8 * KIB, value)),
      );
      await Promise.all([...writes, node.writeZeroes(6 * KIB, 4 * KIB)]);
      const seen = new Set(await readBack(node, 4 * KIB + 1536, 4 * KIB));
      for (const value of seen) expect([0, 1, 2, 3]).toContain(value);
      expectSame(await readBack(node, 4 * KIB + 512, 512), Buffer.alloc(512, 1));
      expectSame(await readBack(node, 13 * KIB, 512), Buffer.alloc(512, 3));
    }
  });

  it('agrees with the model after a random mix of requests', async () => {
    const node = current();
    const model = Buffer.alloc(SIZE);
    const random = seeded(99);
    for (let step = 0; step < 300; step++) {
      const offset = random(SIZE);
      const length = Math.min(1 + random(40 * KIB), SIZE - offset);
      const flags = step % 7 === 0 ? REQ_FUA : 0;
      const kind = random(4);
      if (kind === 0) {
        await node.writeZeroes(offset, length, flags | (step % 2 === 0 ? REQ_MAY_UNMAP : 0));
        model.fill(0, offset, offset + length);
      } else if (kind === 1) {
        const expected = model.subarray(offset, offset + length);
        expect((await readBack(node, offset, length)).equals(expected)).toBe(true);
      } else {
        await writeBoth(node, model, offset, pattern(step, length), flags);
      }
    }
    await node.flush();
    expect((await readBack(node, 0, SIZE)).equals(model)).toBe(true);
  });
}

function resizeRules(current: () => NodeLike): void {
  it('reads zeroes in what it has grown by, also where there was data before it shrank', async () => {
    const node = current();
    await node.write(0, Buffer.alloc(SIZE, 0xff));
    await node.truncate?.(SIZE / 2);
    expect(node.size).toBe(SIZE / 2);
    await node.truncate?.(2 * SIZE);
    expect(node.size).toBe(2 * SIZE);
    expectSame(await readBack(node, 0, SIZE / 2), Buffer.alloc(SIZE / 2, 0xff));
    expectSame(await readBack(node, SIZE / 2, SIZE), Buffer.alloc(SIZE));
  });
}

/** As `toEqual`, which takes seconds for a megabyte, but names only the first difference. */
export function expectSame(actual: Buffer, expected: Buffer): void {
  if (actual.equals(expected)) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  expect.fail(
    `${actual.byteLength} bytes read, ${expected.byteLength} expected, first difference at ${at}: ` +
      `${actual[at]} instead of ${expected[at]}`,
  );
}

/** The bytes of the file's range that a node hands out; none where it hands out nothing. */
export async function rangeOf(node: NodeLike, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  const taken = await node.readRange?.(offset, length, ({ file, ...range }) => {
    expect(range.length).toBeGreaterThan(0);
    expect(range.length).toBeLessThanOrEqual(length);
    return readSync(file.fd, bytes, 0, range.length, range.offset);
  });
  return bytes.subarray(0, taken ?? 0);
}

/** Turns a throw into a rejection: both are ways to fail. */
async function called(request: () => unknown): Promise<void> {
  await request();
}

export async function readBack(node: NodeLike, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length, 0xee);
  await node.read(offset, buffer);
  return buffer;
}

async function writeBoth(
  node: NodeLike,
  model: Buffer,
  offset: number,
  data: Buffer,
  flags: RequestFlags = 0,
): Promise<void> {
  await node.write(offset, data, flags);
  data.copy(model, offset);
}

/** Bytes that differ from those of other seeds and repeat at no power of two; never zero. */
export function pattern(seed: number, length: number): Buffer {
  const buffer = Buffer.alloc(length);
  for (let at = 0; at < length; at++) buffer[at] = 1 + ((at * 7 + seed * 13) % 251);
  return buffer;
}

/** Numbers from 0 up to (not including) `limit`, the same for the same seed. */
export function seeded(seed: number): (limit: number) => number {
  let state = seed >>> 0;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}
