// SPDX-License-Identifier: MIT
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { BufferPool } from '../../../../src/base/buffer-pool.js';
import { NBD_PIECE_MAX, NBD_PIECE_SCARCE } from '../../../../src/base/limits.js';
import { MemoryBudget } from '../../../../src/nbd/server/memory-budget.js';

const MIB = 1024 * 1024;

describe('MemoryBudget', () => {
  it('asks for small pieces once half of the memory is taken', () => {
    const pool = new BufferPool();
    const budget = new MemoryBudget(pool, 4 * MIB);
    expect(budget.pieceMax).toBe(NBD_PIECE_MAX);
    const held = pool.take(3 * MIB);
    expect(budget.pieceMax).toBe(NBD_PIECE_SCARCE);
    held.release();
    expect(budget.scarce).toBe(false);
  });

  it('serves who waits in order, when there is room for the first', async () => {
    const pool = new BufferPool();
    const budget = new MemoryBudget(pool, 5 * MIB);
    const held = pool.take(4 * MIB);
    const order: string[] = [];
    const first = budget.take(4 * MIB).then((buffer) => {
      order.push('first');
      return buffer;
    });
    const second = budget.take(4096).then((buffer) => {
      order.push('second');
      return buffer;
    });
    await turn();
    expect(order).toEqual([]);
    expect(budget.waiting).toBe(2);
    held.release();
    (await first).release();
    (await second).release();
    expect(order).toEqual(['first', 'second']);
    expect(pool.taken).toBe(0);
  });

  it('gives even more than there is when nobody holds anything', async () => {
    const pool = new BufferPool();
    const budget = new MemoryBudget(pool, MIB);
    const held = pool.take(100);
    const large = budget.take(8 * MIB);
    held.release();
    (await large).release();
  });
});
