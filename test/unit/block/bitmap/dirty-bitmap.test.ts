// SPDX-License-Identifier: MIT
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { type BitmapHolder, DirtyBitmap } from '../../../../src/block/bitmap/dirty-bitmap.js';
import {
  addBitmap,
  clearBitmap,
  enableBitmap,
  findBitmap,
  mergeBitmaps,
} from '../../../../src/block/bitmap/node-bitmaps.js';

const SIZE = 300_000; // no multiple of any granularity
const GRANULARITIES = [512, 4096, 65536] as const;

const span = fc
  .tuple(fc.nat({ max: SIZE - 1 }), fc.integer({ min: 1, max: 60_000 }))
  .map(([offset, length]) => ({ offset, length: Math.min(length, SIZE - offset) }));
const step = fc.record({ do: fc.constantFrom('setDirty', 'resetDirty'), span });

/** The dirty granules, kept as plainly as can be. */
function modelOf(
  granularity: number,
  steps: readonly { do: string; span: { offset: number; length: number } }[],
): Set<number> {
  const dirty = new Set<number>();
  for (const { do: what, span: given } of steps) {
    const end = given.offset + given.length;
    for (let granule = 0; granule * granularity < SIZE; granule++) {
      const from = granule * granularity;
      const to = Math.min(from + granularity, SIZE);
      if (what === 'setDirty' && from < end && given.offset < to) dirty.add(granule);
      if (what === 'resetDirty' && given.offset <= from && to <= end) dirty.delete(granule);
    }
  }
  return dirty;
}

function holder(size = SIZE): BitmapHolder & { size: number } {
  return { size, bitmaps: new Map(), trackers: [] };
}

function write(node: BitmapHolder, offset: number, length: number): void {
  for (const bitmap of node.trackers) bitmap.setDirty(offset, length);
}

const runs = (bitmap: DirtyBitmap, max = Number.POSITIVE_INFINITY): [number, number][] => {
  const found: [number, number][] = [];
  for (let at = 0; ; ) {
    const run = bitmap.nextDirtyRun(at, max);
    if (run === undefined) return found;
    found.push([run.offset, run.length]);
    at = run.offset + run.length;
  }
};

it('marks every granule that a write touches and cleans only those that it covers', () => {
  fc.assert(
    fc.property(fc.constantFrom(...GRANULARITIES), fc.array(step), (granularity, steps) => {
      const bitmap = new DirtyBitmap({ size: SIZE, granularity });
      for (const { do: what, span: given } of steps) {
        bitmap[what as 'setDirty' | 'resetDirty'](given.offset, given.length);
      }
      const model = modelOf(granularity, steps);
      expect(bitmap.count).toBe(model.size * granularity);
      const found = new Set<number>();
      for (const [offset, length] of runs(bitmap)) {
        expect(offset + length).toBeLessThanOrEqual(SIZE);
        for (let at = offset; at < offset + length; at += granularity) found.add(at / granularity);
      }
      expect(found).toEqual(model);
    }),
    { numRuns: 200 },
  );
});

it('says for any byte how long its status lasts', () => {
  const bitmap = new DirtyBitmap({ size: SIZE, granularity: 4096 });
  bitmap.setDirty(8192, 1);
  expect(bitmap.status(0, SIZE)).toEqual({ dirty: false, length: 8192 });
  expect(bitmap.status(8200, SIZE - 8200)).toEqual({ dirty: true, length: 4088 });
  expect(bitmap.status(12288, 100)).toEqual({ dirty: false, length: 100 });
});

it('cuts runs at the length asked for and at the end of the node', () => {
  const bitmap = new DirtyBitmap({ size: SIZE, granularity: 65536 });
  bitmap.setDirty(0, SIZE);
  expect(runs(bitmap, 131072)).toEqual([
    [0, 131072],
    [131072, 131072],
    [262144, SIZE - 262144],
  ]);
  expect(bitmap.count).toBe(5 * 65536);
});

it('merges bitmaps of any two granularities', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...GRANULARITIES),
      fc.constantFrom(...GRANULARITIES),
      fc.array(step, { maxLength: 8 }),
      fc.array(step, { maxLength: 8 }),
      (ours, theirs, first, second) => {
        const target = bitmapOf(ours, first);
        const source = bitmapOf(theirs, second);
        const before = target.sha256();
        const expected = modelOf(ours, first);
        for (const granule of modelOf(theirs, second)) {
          const end = Math.min((granule + 1) * theirs, SIZE);
          for (let at = granule * theirs; at < end; at += Math.min(ours, theirs)) {
            expected.add(Math.floor(at / ours));
          }
        }
        const backup = target.merge(source);
        expect(target.count).toBe(expected.size * ours);
        for (const granule of expected) expect(target.isDirty(granule * ours)).toBe(true);
        target.restore(backup);
        expect(target.sha256()).toBe(before);
      },
    ),
    { numRuns: 100 },
  );
});

function bitmapOf(granularity: number, steps: Parameters<typeof modelOf>[1]): DirtyBitmap {
  const bitmap = new DirtyBitmap({ size: SIZE, granularity });
  for (const { do: what, span: given } of steps) {
    bitmap[what as 'setDirty' | 'resetDirty'](given.offset, given.length);
  }
  return bitmap;
}

it('refuses to merge bitmaps of different sizes and leaves the target as it was', () => {
  const node = holder();
  const target = addBitmap(node, { name: 'a' });
  const fine = addBitmap(node, { name: 'b' });
  fine.setDirty(0, 1);
  const other = new DirtyBitmap({ name: 'c', size: 4096, granularity: 512 });
  expect(() => mergeBitmaps(target, [fine, other])).toThrow(
    "Bitmaps are of different sizes (destination size is 300000, source size is 4096) and can't be merged",
  );
  expect(target.count).toBe(0);
});

it('serialises as 64-bit little-endian words with granule 0 in the lowest bit', () => {
  const bitmap = new DirtyBitmap({ size: 66 * 512, granularity: 512 });
  bitmap.setDirty(0, 512);
  bitmap.setDirty(9 * 512, 512);
  bitmap.setDirty(65 * 512, 512);
  const bytes = Buffer.alloc(bitmap.serializedLength);
  bitmap.serialize(bytes, 0);
  expect(bytes.toString('hex')).toBe('01020000000000000200000000000000');
  const back = new DirtyBitmap({ size: 66 * 512, granularity: 512 });
  back.deserialize(bytes, 0);
  expect(back.sha256()).toBe(bitmap.sha256());
});

it('records writes past the end by growing, so that none is lost', () => {
  const bitmap = new DirtyBitmap({ size: 4096, granularity: 512 });
  bitmap.setDirty(8192, 10);
  expect(bitmap.size).toBe(8202);
  expect(runs(bitmap)).toEqual([[8192, 10]]);
});

it('follows the size of its node', () => {
  const node = holder();
  const bitmap = addBitmap(node, { name: 'a', granularity: 512 });
  bitmap.setDirty(0, SIZE);
  bitmap.resize(1000);
  expect(bitmap.count).toBe(1024);
  bitmap.resize(SIZE);
  expect(bitmap.count).toBe(1024);
});

it('lets a successor record during an operation and keeps only its part after success', () => {
  const node = holder();
  const bitmap = addBitmap(node, { name: 'a', granularity: 512, persistent: true });
  write(node, 0, 512);
  bitmap.createSuccessor();
  write(node, 1024, 512);
  expect(runs(bitmap)).toEqual([[0, 512]]);
  expect(bitmap.recording).toBe(true);
  expect(() => clearBitmap(node, 'a')).toThrow(
    "Bitmap 'a' is currently in use by another operation and cannot be used",
  );
  const after = bitmap.abdicate();
  expect(findBitmap(node, 'a')).toBe(after);
  expect(after.persistent).toBe(true);
  write(node, 4096, 512);
  expect(runs(after)).toEqual([
    [1024, 512],
    [4096, 512],
  ]);
  expect(node.trackers).toEqual([after]);
});

it('joins both parts again after a failed operation, and records on', () => {
  const node = holder();
  const bitmap = addBitmap(node, { name: 'a', granularity: 512 });
  write(node, 0, 512);
  bitmap.createSuccessor();
  write(node, 1024, 512);
  bitmap.reclaim();
  write(node, 4096, 512);
  expect(runs(bitmap)).toEqual([
    [0, 512],
    [1024, 512],
    [4096, 512],
  ]);
  expect(bitmap.busy).toBe(false);
  expect(node.trackers).toEqual([bitmap]);
});

it('keeps a disabled bitmap disabled through success and failure', () => {
  const node = holder();
  const bitmap = addBitmap(node, { name: 'a', disabled: true });
  bitmap.createSuccessor();
  write(node, 0, 512);
  bitmap.reclaim();
  expect(bitmap.count).toBe(0);
  bitmap.createSuccessor();
  expect(bitmap.abdicate().recording).toBe(false);
});

it('records nothing while disabled and keeps its content', () => {
  const node = holder();
  const bitmap = addBitmap(node, { name: 'a', granularity: 512 });
  write(node, 0, 1);
  bitmap.disable();
  write(node, 512, 1);
  expect(bitmap.count).toBe(512);
  enableBitmap(node, 'a');
  write(node, 1024, 1);
  expect(bitmap.count).toBe(1024);
});

it.each([1000, 256, 0, -512, 2 ** 32, Number.NaN])('refuses a granularity of %s', (granularity) => {
  expect(() => addBitmap(holder(), { name: 'a', granularity })).toThrow(
    'Granularity must be power of 2 and at least 512',
  );
});

it('refuses an empty, a taken and a too long name', () => {
  const node = holder();
  addBitmap(node, { name: 'bitmap0' });
  addBitmap(node, { name: 'n'.repeat(1023) });
  expect(() => addBitmap(node, { name: '' })).toThrow('Bitmap name cannot be empty');
  expect(() => addBitmap(node, { name: 'bitmap0' })).toThrow('Bitmap already exists: bitmap0');
  expect(() => addBitmap(node, { name: 'n'.repeat(1024) })).toThrow('Bitmap name too long: nnn');
});

it('refuses everything but removal of an inconsistent bitmap', () => {
  const node = holder();
  const bitmap = addBitmap(node, { name: 'p0', persistent: true });
  bitmap.markInconsistent();
  const text = "Bitmap 'p0' is inconsistent and cannot be used";
  expect(() => clearBitmap(node, 'p0')).toThrow(text);
  expect(() => enableBitmap(node, 'p0')).toThrow(text);
  expect(() => bitmap.checkUse({ allowInconsistent: true })).not.toThrow();
});

it('refuses to change a read-only bitmap but merges from it', () => {
  const node = holder();
  const fixed = addBitmap(node, { name: 'a', disabled: true });
  fixed.setDirty(0, 1);
  fixed.readOnly = true;
  expect(() => clearBitmap(node, 'a')).toThrow("Bitmap 'a' is readonly and cannot be modified");
  const target = addBitmap(node, { name: 'b' });
  mergeBitmaps(target, [fixed]);
  expect(target.count).toBe(65536);
});
