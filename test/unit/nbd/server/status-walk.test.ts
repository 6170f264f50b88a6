// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { NBD_STATUS_EXTENTS_MAX } from '../../../../src/base/limits.js';
import { STATUS_DATA, STATUS_ZERO } from '../../../../src/block/block-driver.js';
import type { ChainExtent } from '../../../../src/block/block-status.js';
import type { MetaContext } from '../../../../src/nbd/server/meta-contexts.js';
import { walkStatus } from '../../../../src/nbd/server/status-walk.js';

const ALLOCATION: MetaContext = { id: 0, name: 'base:allocation', kind: 'allocation' };
const DEPTH: MetaContext = { id: 1, name: 'qemu:allocation-depth', kind: 'depth' };
const DIRTY: MetaContext = {
  id: 2,
  name: 'qemu:dirty-bitmap:b',
  kind: 'dirty',
  bitmap: {
    nextExtent: (offset, limit) => ({
      length: Math.min(limit, 100 - (offset % 100)),
      dirty: Math.floor(offset / 100) % 2 === 1,
    }),
  },
};

/** Runs of 10 bytes; data in even ones, at the depths 1 and 2 in turn. */
function at(offset: number, length: number): ChainExtent {
  const run = Math.floor(offset / 10);
  const data = run % 2 === 0;
  return {
    length: Math.min(length, 10 - (offset % 10)),
    flags: data ? STATUS_DATA : STATUS_ZERO,
    depth: data ? 1 + ((run / 2) % 2) : 0,
  };
}
const backend = { blockStatus: at };

describe('walkStatus', () => {
  it('gives a list for each context, none beyond the range', async () => {
    const query = { offset: 5, length: 30, one: false };
    expect(await walkStatus(backend, [ALLOCATION, DEPTH], query)).toEqual([
      { contextId: 0, extents: [5, 0, 10, 3, 10, 0, 5, 3] },
      { contextId: 1, extents: [5, 1, 10, 0, 10, 2, 5, 0] },
    ]);
  });

  it('joins neighbours of equal flags', async () => {
    const even = {
      blockStatus: (offset: number, length: number) => at(offset - (offset % 20), length),
    };
    const query = { offset: 0, length: 40, one: false };
    expect(await walkStatus(even, [ALLOCATION], query)).toEqual([
      { contextId: 0, extents: [40, 0] },
    ]);
  });

  it('gives one extent a context for REQ_ONE', async () => {
    const query = { offset: 0, length: 1000, one: true };
    expect(await walkStatus(backend, [ALLOCATION, DIRTY], query)).toEqual([
      { contextId: 0, extents: [10, 0] },
      { contextId: 2, extents: [100, 0] },
    ]);
  });

  it('goes on for one context when the list of another is full', async () => {
    const deep = {
      blockStatus: (offset: number, length: number) => ({ ...at(offset, length), depth: 1 }),
    };
    const query = { offset: 0, length: 1000, one: true };
    expect(await walkStatus(deep, [ALLOCATION, DEPTH], query)).toEqual([
      { contextId: 0, extents: [10, 0] },
      { contextId: 1, extents: [1000, 1] },
    ]);
  });

  it('reads a dirty bitmap without asking the node', async () => {
    const none = {
      blockStatus: () => {
        throw new Error('not to be asked');
      },
    };
    const query = { offset: 150, length: 200, one: false };
    expect(await walkStatus(none, [DIRTY], query)).toEqual([
      { contextId: 2, extents: [50, 1, 100, 0, 50, 1] },
    ]);
  });

  it('ends at the limit of extents without a gap', async () => {
    const query = { offset: 0, length: 1_000_000, one: false };
    const [chunk] = await walkStatus(backend, [ALLOCATION], query);
    expect(chunk?.extents).toHaveLength(2 * NBD_STATUS_EXTENTS_MAX);
  });

  it('waits for a node that has to', async () => {
    const slow = { blockStatus: async (offset: number, length: number) => at(offset, length) };
    const query = { offset: 0, length: 20, one: false };
    expect(await walkStatus(slow, [ALLOCATION], query)).toEqual([
      { contextId: 0, extents: [10, 0, 10, 3] },
    ]);
  });
});
