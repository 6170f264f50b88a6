// SPDX-License-Identifier: MIT
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import type { ReadableIo } from '../../../../../src/block/driver/qcow2/image-io.js';
import { TableCache } from '../../../../../src/block/driver/qcow2/table-cache.js';

const LENGTH = 512;

/** A file whose table at `offset` is full of the offset divided by the length; reads wait. */
class SlowFile implements ReadableIo {
  readonly size = 1000 * LENGTH;
  reads = 0;

  async read(offset: number, buffer: Buffer): Promise<void> {
    this.reads++;
    await nextTurn();
    buffer.fill(offset / LENGTH);
  }
}

function makeCache(tablesMax: number): { cache: TableCache; file: SlowFile; written: number[] } {
  const file = new SlowFile();
  const written: number[] = [];
  const cache: TableCache = new TableCache({
    file: () => file,
    tableLength: LENGTH,
    tablesMax,
    writeBack: async () => {
      const copies = cache.takeDirty();
      await nextTurn();
      written.push(...copies.map(({ offset }) => offset / LENGTH));
      cache.written(copies, 'done');
    },
  });
  return { cache, file, written };
}

const first = (cache: TableCache, number: number): Promise<number> =>
  Promise.resolve(cache.with(number * LENGTH, ({ bytes }) => bytes.readUInt8(0)));

describe('TableCache', () => {
  it('reads a table once, also for several who want it at a time', async () => {
    const { cache, file } = makeCache(4);
    expect(await Promise.all([first(cache, 3), first(cache, 3)])).toEqual([3, 3]);
    expect(cache.with(3 * LENGTH, ({ bytes }) => bytes.readUInt8(0))).toBe(3);
    expect(file.reads).toBe(1);
  });

  it('gives each of many who wait their table, with room for two', async () => {
    const { cache } = makeCache(2);
    const numbers = Array.from({ length: 50 }, (_, nth) => nth % 17);
    expect(await Promise.all(numbers.map((number) => first(cache, number)))).toEqual(numbers);
  });

  it('goes back to its bounds after more tables were needed at a time', async () => {
    const { cache } = makeCache(4);
    await Promise.all(Array.from({ length: 40 }, (_, nth) => first(cache, nth)));
    for (let nth = 0; nth < 8; nth++) await first(cache, 100 + nth);
    expect(cache.bytes).toBe(4 * LENGTH);
  });

  it('keeps what has changed until it is written, which it asks for when there is no room', async () => {
    const { cache, written } = makeCache(2);
    for (const number of [1, 2]) {
      await cache.with(number * LENGTH, (table) => {
        table.bytes.writeUInt8(200 + number, 0);
        table.markDirty(0, 1);
      });
    }
    expect(await first(cache, 3)).toBe(3);
    expect(written).toEqual([1, 2]);
    expect(cache.anyDirty).toBe(false);
  });

  it('takes copies of whole sectors, and what failed to be written is changed again', async () => {
    const { cache } = makeCache(2);
    await cache.with(LENGTH, (table) => {
      table.bytes.writeUInt8(9, 100);
      table.markDirty(100, 101);
    });
    const copies = cache.takeDirty();
    expect(copies.map(({ offset, from, bytes }) => [offset, from, bytes.byteLength])).toEqual([
      [LENGTH, 0, LENGTH],
    ]);
    expect(copies[0]?.bytes.readUInt8(100)).toBe(9);
    expect(cache.anyDirty).toBe(false);
    cache.written(copies, 'failed');
    expect(cache.anyDirty).toBe(true);
  });

  it('makes a new table without reading, and forgets one that is none any more', async () => {
    const { cache, file } = makeCache(2);
    await cache.create(5 * LENGTH, ({ bytes }) => bytes.writeUInt8(77, 0));
    expect(await first(cache, 5)).toBe(77);
    expect(file.reads).toBe(0);
    cache.drop(5 * LENGTH, LENGTH);
    expect(cache.anyDirty).toBe(false);
    expect(await first(cache, 5)).toBe(5);
  });

  it('lets go of what nobody has looked at between two calls', async () => {
    const { cache } = makeCache(4);
    for (const number of [1, 2, 3]) await first(cache, number);
    cache.trim();
    await first(cache, 2);
    expect(cache.bytes).toBe(3 * LENGTH);
    cache.trim();
    expect(cache.bytes).toBe(LENGTH);
    expect(cache.find(2 * LENGTH)).toBeDefined();
  });

  it('tells everybody who waits that a table can not be read, and tries again later', async () => {
    const { cache, file } = makeCache(2);
    const read = file.read.bind(file);
    file.read = async () => {
      await nextTurn();
      throw new Error('the disk is gone');
    };
    const both = await Promise.allSettled([first(cache, 1), first(cache, 1)]);
    expect(both.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
    file.read = read;
    expect(await first(cache, 1)).toBe(1);
  });
});
