// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.js';
import { copyMarks } from '../../../src/cli/bitmap-marks.js';
import type { NbdExtent } from '../../../src/nbd/client/request.js';

const CONTEXT = 'qemu:dirty-bitmap:b';
const SIZE = 1_000_000;

/** A server whose bitmap has these runs, `perReply` in each answer; one of writes, which notes them. */
function servers(runs: readonly NbdExtent[], { perReply = 2, failAt = -1 } = {}) {
  const written: [number, number][] = [];
  const asked: string[] = [];
  let open = 0;
  const from = {
    size: SIZE,
    blockStatus: async (offset: number, _length: number, { context = '' } = {}) => {
      asked.push(context);
      let start = 0;
      const index = runs.findIndex(({ length }) => {
        if (start === offset) return true;
        start += length;
        return false;
      });
      return runs.slice(index, index + perReply);
    },
  };
  const to = {
    writeZeroes: async (offset: number, length: number) => {
      open++;
      await new Promise((resolve) => setImmediate(resolve));
      open--;
      if (offset === failAt) throw new BlockError('DF_IO', 'no');
      written.push([offset, length]);
    },
  };
  return { from, to, written, asked, pending: () => open };
}

const dirty = (length: number): NbdExtent => ({ length, flags: 1 });
const clean = (length: number): NbdExtent => ({ length, flags: 0 });
const RUNS = [clean(1000), dirty(5), clean(10), dirty(4085), dirty(100), clean(SIZE - 5200)];

describe('marks that are copied', () => {
  it('are written where the bitmap is dirty, and nowhere else', async () => {
    for (const perReply of [1, 2, 6]) {
      const { from, to, written, asked } = servers(RUNS, { perReply });
      await copyMarks({ from, to, context: CONTEXT, checkpoint: () => undefined });
      expect(written).toEqual([
        [1000, 5],
        [1015, 4085],
        [5100, 100],
      ]);
      expect(new Set(asked)).toEqual(new Set([CONTEXT]));
    }
  });

  it('end with the disk, also where the server tells of more', async () => {
    const { from, to, written } = servers([clean(SIZE - 10), dirty(4096)]);
    await copyMarks({ from, to, context: CONTEXT, checkpoint: () => undefined });
    expect(written).toEqual([[SIZE - 10, 10]]);
  });

  it('are all there when many are in one answer', async () => {
    const runs = Array.from({ length: 2000 }, (_, at) => (at % 2 === 0 ? dirty(7) : clean(493)));
    const { from, to, written } = servers([...runs, clean(SIZE - 500_000)], { perReply: 2001 });
    await copyMarks({ from, to, context: CONTEXT, checkpoint: () => undefined });
    expect(written).toEqual(Array.from({ length: 1000 }, (_, at) => [at * 500, 7]));
  });

  it('fail with what the first one failed with, when none is under way any more', async () => {
    const { from, to, written, pending } = servers(RUNS, { perReply: 6, failAt: 1000 });
    const copied = copyMarks({ from, to, context: CONTEXT, checkpoint: () => undefined });
    await expect(copied).rejects.toMatchObject({ code: 'DF_IO' });
    expect([pending(), written.length]).toEqual([0, 2]);
  });

  it('are called off between requests', async () => {
    const { from, to, asked } = servers(RUNS, { perReply: 1 });
    const checkpoint = (): void => {
      if (asked.length === 2) throw new Error('called off');
    };
    const copied = copyMarks({ from, to, context: CONTEXT, checkpoint });
    await expect(copied).rejects.toThrow('called off');
    expect(asked.length).toBe(2);
  });
});
