// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { BlockError } from '../../../../src/base/errors.js';
import { PERM_ALL, PERM_CONSISTENT_READ } from '../../../../src/block/permissions.js';
import { contentOf, filterGraph, memoryOf } from './filter-graph.js';

const ALIGN = 4096;
const AHEAD = 10_000;

async function preallocated(options: Record<string, unknown> = {}) {
  const filters = filterGraph();
  const node = await filters.add({
    driver: 'preallocate',
    'node-name': 'p',
    'prealloc-align': ALIGN,
    'prealloc-size': AHEAD,
    ...options,
    file: { driver: 'growing', 'node-name': 'file', size: 1000 },
  });
  const file = memoryOf(filters.graph.get('file'));
  const backend = await filters.use(node);
  return { ...filters, node, file, backend };
}

it('grows its child ahead of a write, and shows only what was written', async () => {
  const { node, file } = await preallocated();
  await node.write(1000, Buffer.from('abc'));
  expect(node.size).toBe(1003);
  expect(file.size % ALIGN).toBe(0);
  expect(file.size).toBeGreaterThanOrEqual(1003 + AHEAD);
  const size = file.size;
  await node.write(1003, Buffer.from('def'));
  expect(file.size).toBe(size);
  expect((await contentOf(node, 1000, 6)).toString()).toBe('abcdef');
});

it('writes at once where the child is long enough', async () => {
  const { node } = await preallocated();
  await node.write(1000, Buffer.alloc(1));
  expect(node.write(2000, Buffer.alloc(10))).toBeUndefined();
  expect(node.size).toBe(2010);
});

it('keeps the data of writes that grow the child at the same time', async () => {
  const { node, file } = await preallocated({ 'prealloc-size': 0, 'prealloc-align': 512 });
  file.delay = () => new Promise((resolve) => setImmediate(resolve));
  const offsets = [1000, 5000, 3000, 9000, 8999, 20_000, 1500];
  await Promise.all(offsets.map((offset) => node.write(offset, Buffer.from([offset % 251]))));
  for (const offset of offsets) {
    expect((await contentOf(node, offset, 1))[0]).toBe(offset % 251);
  }
  expect(node.size).toBe(20_001);
});

it('cuts off what was not needed when it is closed', async () => {
  const { graph, node, backend, file } = await preallocated();
  await node.write(1000, Buffer.from('abc'));
  await graph.detach(backend);
  expect(file.size).toBe(1003);
  await graph.closeAll();
  expect(file.closed).toBe(true);
});

it('cuts off what was not needed when nobody may resize any more', async () => {
  const { graph, node, backend, file } = await preallocated();
  await node.write(1000, Buffer.from('abc'));
  await graph.setPermissions(backend, { taken: PERM_CONSISTENT_READ, shared: PERM_ALL });
  expect(file.size).toBe(1003);
  expect(node.size).toBe(1003);
});

it('lets the write itself grow a child that can not be zeroed', async () => {
  const { node, file } = await preallocated();
  file.writeZeroes = () => {
    throw new BlockError('DF_NOT_SUPPORTED', 'no zeroes');
  };
  await node.write(1000, Buffer.from('abc'));
  expect(file.size).toBe(1003);
  await node.write(5000, Buffer.from('x'));
  expect(file.size).toBe(5001);
});

it('is resized to the byte', async () => {
  const { node, file } = await preallocated();
  await node.write(1000, Buffer.from('abc'));
  await node.truncate(500);
  expect([node.size, file.size]).toEqual([500, 500]);
  await node.truncate(70_000);
  expect([node.size, file.size]).toEqual([70_000, 70_000]);
});

it('refuses an alignment that is no multiple of a sector', async () => {
  await expect(preallocated({ 'prealloc-align': 1000 })).rejects.toThrow(
    'prealloc-align parameter of preallocate filter is not aligned to 512',
  );
});
