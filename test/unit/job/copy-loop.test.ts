// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { RateLimit } from '../../../src/base/rate-limit.js';
import { DirtyBitmap } from '../../../src/block/bitmap/dirty-bitmap.js';
import { STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from '../../../src/block/block-driver.js';
import { CopyLoop, type CopyLoopOptions } from '../../../src/job/copy-loop.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const SIZE = 16 * MIB;

type Given = Pick<CopyLoopOptions, 'bitmap' | 'size' | 'source'> & Partial<CopyLoopOptions>;

/** A loop into a target that takes all, at any speed; where nothing else is given. */
function copyLoop(given: Given): CopyLoop {
  return new CopyLoop({
    target: { write: () => undefined, writeZeroes: () => undefined },
    rate: new RateLimit(0, () => performance.now()),
    chunkLength: 256 * KIB,
    windowLength: 8 * MIB,
    unmap: true,
    copied: () => undefined,
    failed: () => false,
    ...given,
  });
}

it.each([
  ['a turn later', () => new Promise<void>((resolve) => setImmediate(resolve))],
  ['in the same turn, so that the loop is woken in it', () => Promise.resolve()],
])('lets others have their turn while the target answers %s', async (_, answer) => {
  const bitmap = new DirtyBitmap({ size: SIZE, granularity: 64 * KIB });
  bitmap.setDirty(0, SIZE);
  let sinceTurn = 0;
  let longest = 0;
  let copied = 0;
  const loop = copyLoop({
    bitmap,
    size: SIZE,
    source: {
      read(_offset, buffer) {
        buffer.fill(1);
        sinceTurn += buffer.byteLength;
        longest = Math.max(longest, sinceTurn);
      },
      blockStatus: (_offset, length) => ({
        length,
        flags: STATUS_DATA | STATUS_ALLOCATED,
        depth: 0,
      }),
      generation: 0,
    },
    target: {
      // As a network does: takes it now, answers later.
      write: answer,
      writeZeroes() {},
    },
    windowLength: 256 * KIB,
    copied(length) {
      copied += length;
    },
  });
  let running = true;
  const other = (): void => {
    sinceTurn = 0;
    if (running) setImmediate(other);
  };
  setImmediate(other);
  expect(await loop.run(() => false)).toBe('clean');
  running = false;
  expect(copied).toBe(SIZE);
  // Two turns of ours may lie in one of the event loop, whose order of immediates is not ours.
  expect(longest).toBeLessThanOrEqual(2 * 256 * KIB);
});

it('leaves alone what others have copied while it asked for the status', async () => {
  const bitmap = new DirtyBitmap({ size: SIZE, granularity: 64 * KIB });
  bitmap.setDirty(0, 256 * KIB);
  const read: string[] = [];
  let generation = 0;
  // As writers do to whom what they overwrite has to be saved: once before the first range, once in it.
  const cleared = [0, 192 * KIB];
  const loop = copyLoop({
    bitmap,
    size: SIZE,
    source: {
      read(offset, buffer) {
        buffer.fill(1);
        read.push(`${offset / KIB} ${buffer.byteLength / KIB}`);
      },
      async blockStatus(_offset, length) {
        const at = cleared.shift();
        if (at !== undefined) {
          bitmap.resetDirty(at, 64 * KIB);
          generation++;
        }
        return { length, flags: STATUS_DATA, depth: 1 };
      },
      get generation() {
        return generation;
      },
    },
  });
  expect(await loop.run(() => false)).toBe('clean');
  expect(read).toEqual(['64 128']);
});

it('is not idle between the choice of a range and its copy, for who drains the nodes', async () => {
  const bitmap = new DirtyBitmap({ size: SIZE, granularity: 64 * KIB });
  bitmap.setDirty(0, 64 * KIB);
  const events: string[] = [];
  const drain = (): void => {
    loop.hold();
    events.push(loop.whenIdle() === undefined ? 'idle' : 'busy');
  };
  const loop = copyLoop({
    bitmap,
    size: SIZE,
    source: {
      read(_offset, buffer) {
        buffer.fill(1);
        events.push('read');
      },
      blockStatus: (_offset, length) => ({ length, flags: STATUS_DATA, depth: 1 }),
      generation: 0,
    },
    taken() {
      queueMicrotask(drain);
      return () => undefined;
    },
  });
  expect(await loop.run(() => false)).toBe('clean');
  expect(events).toEqual(['busy', 'read']);
});

/** Status of a disk whose granules of 64 KiB are each in another layer than the next, `z` ones zero. */
function statusOf(kinds: string, offset: number, length: number) {
  const granule = offset / (64 * KIB);
  const flags = STATUS_ALLOCATED | (kinds[granule] === 'z' ? STATUS_ZERO : STATUS_DATA);
  return { length: Math.min(length, 64 * KIB), flags, depth: 1 + (granule % 3) };
}

it.each(['at once', 'later'])(
  'copies together what lies in several layers, and zeroes apart, when the source answers %s',
  async (when) => {
    const kinds = 'dddddzzddz';
    const size = kinds.length * 64 * KIB;
    const bitmap = new DirtyBitmap({ size, granularity: 64 * KIB });
    bitmap.setDirty(0, size);
    const done: string[] = [];
    const asked: number[] = [];
    const loop = copyLoop({
      bitmap,
      size,
      source: {
        read(offset, buffer) {
          buffer.fill(1);
          done.push(`read ${offset / KIB} ${buffer.byteLength / KIB}`);
        },
        blockStatus(offset, length) {
          asked.push(offset / KIB);
          const status = statusOf(kinds, offset, length);
          return when === 'later' ? Promise.resolve(status) : status;
        },
        generation: 0,
      },
      target: {
        write: () => undefined,
        writeZeroes(offset, length) {
          done.push(`zero ${offset / KIB} ${length / KIB}`);
        },
      },
    });
    expect(await loop.run(() => false)).toBe('clean');
    expect(done).toEqual([
      ...['read 0 256', 'read 256 64', 'zero 320 64', 'zero 384 64'],
      ...['read 448 128', 'zero 576 64'],
    ]);
    // What was heard of the granule behind a run is not asked again.
    expect(asked).toEqual([0, 64, 128, 192, 256, 320, 384, 448, 512, 576]);
  },
);

it('comes to an end when the source changes while it is asked for what lies behind a range', async () => {
  const size = 512 * KIB;
  const bitmap = new DirtyBitmap({ size, granularity: 64 * KIB });
  bitmap.setDirty(0, size);
  let generation = 0;
  let asked = 0;
  let copied = 0;
  const loop = copyLoop({
    bitmap,
    size,
    source: {
      read: (_offset, buffer) => void buffer.fill(1),
      async blockStatus(offset, length) {
        asked++;
        if (asked > 1000) throw new Error('asks for ever');
        if (asked % 3 === 2) generation++;
        return statusOf('dddddddd', offset, length);
      },
      get generation() {
        return generation;
      },
    },
    copied(length) {
      copied += length;
    },
  });
  expect(await loop.run(() => false)).toBe('clean');
  expect(copied).toBe(size);
});
