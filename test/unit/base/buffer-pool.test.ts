// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { BufferPool } from '../../../src/base/buffer-pool.js';

describe('BufferPool', () => {
  it('gives a buffer of at least the size asked for', () => {
    const pool = new BufferPool();
    for (const size of [1, 4096, 4097, 65536 + 4096, 1 << 20, 40 << 20]) {
      const buffer = pool.take(size);
      expect(buffer.size).toBeGreaterThanOrEqual(size);
      buffer.release();
    }
  });

  it('gives the buffer that came back last, and allocates no other', () => {
    let allocated = 0;
    const pool = new BufferPool({
      allocate: (size) => {
        allocated++;
        return Buffer.alloc(size);
      },
    });
    const first = pool.take(5000);
    first.release();
    expect(pool.take(6000)).toBe(first);
    expect(allocated).toBe(1);
  });

  it('takes a buffer back only when its last owner releases it', () => {
    const pool = new BufferPool();
    const buffer = pool.take(100);
    expect(buffer.sole).toBe(true);
    buffer.retain();
    expect(buffer.sole).toBe(false);
    buffer.release();
    expect(pool.taken).toBe(1);
    buffer.release();
    expect(pool.taken).toBe(0);
    expect(pool.takenBytes).toBe(0);
  });

  it('refuses a release too many', () => {
    const buffer = new BufferPool().take(100);
    buffer.release();
    expect(() => buffer.release()).toThrow('released twice');
  });

  it('keeps no more idle bytes than its bound, and none of sizes beyond its classes', () => {
    const pool = new BufferPool({ idleMax: 8192 });
    const buffers = [pool.take(4096), pool.take(4096), pool.take(4096), pool.take(64 << 20)];
    for (const buffer of buffers) buffer.release();
    expect(pool.idleBytes).toBe(8192);
    expect(pool.takenBytes).toBe(0);
  });

  it('tells when memory comes back', () => {
    const pool = new BufferPool();
    let told = 0;
    pool.onRelease = () => told++;
    pool.take(1).release();
    expect(told).toBe(1);
  });
});
