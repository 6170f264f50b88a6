// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { NBD_CLIENT_FRAGMENTS_MAX } from '../../../../src/base/limits.js';
import { CoveredRanges } from '../../../../src/nbd/client/covered-ranges.js';

test('pieces in any order cover the whole', () => {
  const ranges = new CoveredRanges();
  for (const [start, end] of [
    [50, 60],
    [0, 10],
    [90, 100],
    [10, 50],
    [60, 90],
  ] as const) {
    expect(ranges.covers(0, 100)).toBe(false);
    expect(ranges.add(start, end)).toBe(true);
  }
  expect(ranges.covers(0, 100)).toBe(true);
});

test.each([
  [0, 1],
  [5, 15],
  [15, 25],
  [10, 20],
  [12, 18],
  [29, 31],
  [0, 100],
])('refuses %i to %i over what has come', (start, end) => {
  const ranges = new CoveredRanges();
  for (const [from, to] of [
    [0, 5],
    [10, 20],
    [30, 40],
  ] as const)
    ranges.add(from, to);
  expect(ranges.add(start, end)).toBe(false);
});

test('agrees with a list of flags', () => {
  let seed = 1;
  const random = (max: number): number => {
    seed = (seed * 48_271) % 2_147_483_647;
    return seed % max;
  };
  for (let round = 0; round < 200; round++) {
    const ranges = new CoveredRanges();
    const flags = new Array<boolean>(40).fill(false);
    for (let step = 0; step < 30; step++) {
      const start = random(40);
      const end = Math.min(40, start + 1 + random(8));
      const free = !flags.slice(start, end).includes(true);
      expect(ranges.add(start, end)).toBe(free);
      if (free) flags.fill(true, start, end);
      expect(ranges.covers(0, 40)).toBe(!flags.includes(false));
    }
  }
});

test('refuses more pieces than the limit', () => {
  const ranges = new CoveredRanges();
  for (let index = 0; index < NBD_CLIENT_FRAGMENTS_MAX; index++) {
    expect(ranges.add(index * 2, index * 2 + 1)).toBe(true);
  }
  expect(ranges.add(NBD_CLIENT_FRAGMENTS_MAX * 2, NBD_CLIENT_FRAGMENTS_MAX * 2 + 1)).toBe(false);
  expect(ranges.add(1, 2)).toBe(true);
});
