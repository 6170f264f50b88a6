// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import {
  alignDown,
  alignUp,
  isInside,
  isPowerOfTwo,
  overlaps,
} from '../../../src/base/byte-range.js';

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
    for (const value of [0, -2, 3, 1.5, Number.NaN, 2 ** 40 + 1]) {
      expect(isPowerOfTwo(value)).toBe(false);
    }
  });

  it('overlaps only with a byte in common', () => {
    expect(overlaps({ offset: 0, length: 10 }, { offset: 9, length: 1 })).toBe(true);
    expect(overlaps({ offset: 0, length: 10 }, { offset: 10, length: 1 })).toBe(false);
    expect(overlaps({ offset: 5, length: 0 }, { offset: 0, length: 10 })).toBe(false);
  });

  it('is inside only as safe integers that reach no further than the end', () => {
    expect(isInside(0, 10, 10)).toBe(true);
    expect(isInside(10, 0, 10)).toBe(true);
    expect(isInside(10, 1, 10)).toBe(false);
    expect(isInside(-1, 1, 10)).toBe(false);
    expect(isInside(0.5, 1, 10)).toBe(false);
    expect(isInside(2 ** 60, 1, Number.MAX_SAFE_INTEGER)).toBe(false);
    expect(isInside(Number.MAX_SAFE_INTEGER, 2, Number.MAX_SAFE_INTEGER)).toBe(false);
  });
});
