// SPDX-License-Identifier: MIT
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { DirtyBitmap } from '../../../../src/block/bitmap/dirty-bitmap.js';
import { REQ_PREFETCH } from '../../../../src/block/block-driver.js';
import type { BlockNode } from '../../../../src/block/node.js';
import {
  PERM_CONSISTENT_READ,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from '../../../../src/block/permissions.js';
import { contentOf, filterGraph, memoryOf, OverlayDriver } from './filter-graph.js';

const BLOCK = 4096;
const SIZE = 8 * BLOCK;

/** top over middle over base, block n of the base filled with n + 1, block 2 of the middle with 'm'. */
async function chain(options: Record<string, unknown> = {}) {
  const filters = filterGraph();
  const base = await filters.add({ driver: 'overlay', 'node-name': 'base', size: SIZE });
  for (let block = 0; block < 7; block++) {
    await base.write(block * BLOCK, Buffer.alloc(BLOCK, block + 1));
  }
  const middle = await filters.add({
    ...{ driver: 'overlay', 'node-name': 'middle', size: SIZE, backing: 'base' },
  });
  memoryOf(middle).data.fill('m', 2 * BLOCK, 3 * BLOCK);
  allocatedIn(middle).add(2);
  const top = await filters.add({
    ...{ driver: 'overlay', 'node-name': 'top', size: SIZE, backing: 'middle' },
  });
  const cor = await filters.add({
    ...{ driver: 'copy-on-read', 'node-name': 'cor', file: 'top', ...options },
  });
  return { ...filters, base, middle, top, cor };
}

function allocatedIn(node: BlockNode): Set<number> {
  if (node.driver instanceof OverlayDriver) return node.driver.allocated;
  throw new Error('no overlay');
}

it('stores in the top layer what was read from below, and only that', async () => {
  const { cor, top } = await chain();
  const buffer = await contentOf(cor, BLOCK, 2 * BLOCK);
  expect(buffer[0]).toBe(2);
  expect(buffer.subarray(BLOCK).toString('latin1')).toBe('m'.repeat(BLOCK));
  expect([...allocatedIn(top)]).toEqual([1, 2]);
  expect(memoryOf(top).data[BLOCK]).toBe(2);
});

it('marks nothing in bitmaps for what it stores, as nothing has changed; writes are marked', async () => {
  const { cor, top } = await chain();
  const bitmap = new DirtyBitmap({ size: SIZE, granularity: BLOCK });
  bitmap.attach(top);
  await contentOf(cor);
  expect(allocatedIn(top).size).toBe(7);
  expect(bitmap.count).toBe(0);
  await cor.write(4 * BLOCK, Buffer.alloc(BLOCK, 't'));
  expect(bitmap.count).toBe(BLOCK);
});

it('leaves what no layer has unallocated', async () => {
  const { cor, top } = await chain();
  expect((await contentOf(cor)).subarray(7 * BLOCK).every((byte) => byte === 0)).toBe(true);
  expect(allocatedIn(top).has(7)).toBe(false);
  expect(allocatedIn(top).size).toBe(7);
});

it('stores in one request what several layers below have, and apart what is there already', async () => {
  const { cor, top } = await chain();
  await cor.write(4 * BLOCK, Buffer.alloc(BLOCK, 't'));
  const { calls } = memoryOf(top);
  calls.length = 0;
  await cor.read(BLOCK, Buffer.alloc(6 * BLOCK), REQ_PREFETCH);
  expect(calls.filter((call) => call.startsWith('write'))).toEqual([
    `write ${BLOCK} ${3 * BLOCK}`,
    `write ${5 * BLOCK} ${2 * BLOCK}`,
  ]);
  const stored = memoryOf(top).data;
  expect([1, 2, 3, 4, 5, 6].map((block) => stored[block * BLOCK])).toEqual([
    ...[2, 'm'.charCodeAt(0), 4, 't'.charCodeAt(0), 6, 7],
  ]);
});

it('copies nothing from below the bottom node, but reads it', async () => {
  const { cor, top } = await chain({ bottom: 'middle' });
  expect((await contentOf(cor))[0]).toBe(1);
  expect([...allocatedIn(top)]).toEqual([2]);
});

it('brings data in without reading what is there already when it prefetches', async () => {
  const { cor, top } = await chain();
  await cor.read(0, Buffer.alloc(2 * BLOCK), REQ_PREFETCH);
  expect([...allocatedIn(top)]).toEqual([0, 1]);
  const calls = memoryOf(top).calls.length;
  await cor.read(0, Buffer.alloc(2 * BLOCK), REQ_PREFETCH);
  expect(memoryOf(top).calls.length).toBe(calls);
});

it('never undoes a write that meets a copy of the same range', async () => {
  const action = fc.record({ write: fc.boolean(), block: fc.nat({ max: 3 }) });
  await fc.assert(
    fc.asyncProperty(fc.array(action, { maxLength: 12 }), async (actions) => {
      const { cor, base, top } = await chain();
      const later = () => new Promise<void>((resolve) => setImmediate(resolve));
      for (const node of [base, top]) memoryOf(node).delay = later;
      const written = new Map<number, number>();
      const pending = actions.map(({ write, block }, at) => {
        if (!write) return cor.read(block * BLOCK, Buffer.alloc(BLOCK));
        const first = !written.has(block);
        if (first) written.set(block, 100 + at);
        return first ? cor.write(block * BLOCK, Buffer.alloc(BLOCK, 100 + at)) : undefined;
      });
      await Promise.all(pending);
      for (const [block, value] of written) {
        expect((await contentOf(cor, block * BLOCK, 1))[0]).toBe(value);
      }
    }),
    { numRuns: 40 },
  );
});

it('takes write-unchanged and keeps other writers off its child', async () => {
  const { cor, top, use } = await chain();
  await use(cor, PERM_CONSISTENT_READ);
  const edge = cor.children.get('file');
  expect(edge?.taken).toBe(PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED);
  await expect(use(top, PERM_WRITE)).rejects.toThrow(
    "permissions 'write' are both required by export 'e'",
  );
});

it.each([
  ['nope', "Bottom node 'nope' not found"],
  ['top2', "Bottom node 'top2' is not in the backing chain of 'top'"],
])('refuses the bottom node %s', async (bottom, message) => {
  const { add } = await chain();
  await add({ driver: 'overlay', 'node-name': 'top2', size: SIZE });
  await expect(add({ driver: 'copy-on-read', file: 'top', bottom })).rejects.toThrow(message);
});
