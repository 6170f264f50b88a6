// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import type { PooledBuffer } from '../../../../../src/base/buffer-pool.js';
import { KIB } from '../../../../../src/base/limits.js';
import { SpareMemory } from '../../../../../src/block/filter/quorum/spare-memory.js';

function now(buffers: PooledBuffer[] | Promise<PooledBuffer[]>): PooledBuffer[] {
  if (buffers instanceof Promise) throw new Error('it has to wait');
  return buffers;
}

it('makes reads wait for their turn when memory is out', async () => {
  const memory = new SpareMemory(16 * KIB);
  const first = now(memory.take(2, 4 * KIB));
  const second = memory.take(3, 4 * KIB);
  const third = memory.take(1, 4 * KIB);
  expect(second).toBeInstanceOf(Promise);
  expect(third).toBeInstanceOf(Promise);
  for (const buffer of first) buffer.release();
  expect((await second).length).toBe(3);
  expect((await third).length).toBe(1);
});

it('lets one read alone take more than there is', () => {
  const memory = new SpareMemory(16 * KIB);
  expect(now(memory.take(3, 16 * KIB)).length).toBe(3);
});

it('takes nothing for a single copy', () => {
  expect(now(new SpareMemory(1).take(0, 4 * KIB))).toEqual([]);
});
