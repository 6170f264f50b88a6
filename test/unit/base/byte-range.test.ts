// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { alignDown, alignUp, isPowerOfTwo } from '../../../src/base/byte-range.js';

const LARGE = 2 ** 52 + 513;

describe('byte ranges', () => {
  it('aligns beyond 32 bits, and leaves what is aligned', () => {
    expect(alignDown(1023, 512)).toBe(512);
    expect(alignUp(513, 512)).toBe(1024);
    expect(alignUp(512, 512)).toBe(512);
    expect(alignDown(0, 512)).toBe(0);
    expect(alignDown(LARGE, 512)).toBe(2 ** 52 + 512);
    expect(alignUp(LARGE, 512)).toBe(2 ** 52 + 1024);
  });

  it('knows powers of two', () => {
    for (const value of [1, 2, 4096, 2 ** 40]) expect(isPowerOfTwo(value)).toBe(true);
    for (const value of [0, -2, 3, 1.5, Number.NaN, 2 ** 40 + 1, 2 ** 52 - 1]) {
      expect(isPowerOfTwo(value)).toBe(false);
    }
  });
});
