// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { DiscardCounts } from '../../../../../src/block/driver/file/discard-counts.js';

it('counts discards by how they end, at once or later', async () => {
  const counts = new DiscardCounts();
  const failure = new Error('no');
  counts.counted(10, () => undefined);
  await counts.counted(20, async () => undefined);
  const failing = () => {
    throw failure;
  };
  expect(() => counts.counted(30, failing)).toThrow(failure);
  await expect(counts.counted(40, () => Promise.reject(failure))).rejects.toBe(failure);
  expect(counts.describe()).toEqual({
    'discard-nb-ok': 2,
    'discard-nb-failed': 2,
    'discard-bytes-ok': 30,
  });
});
