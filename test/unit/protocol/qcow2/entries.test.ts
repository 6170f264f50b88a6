// SPDX-License-Identifier: MIT
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  compressedEntry,
  compressedRange,
  entryOffset,
  highWord,
  lowWord,
  refcountTableOffset,
} from '../../../../protocol/qcow2/entries.js';

const words = (value: bigint): [number, number] => [
  Number(value >> 32n),
  Number(value & 0xffff_ffffn),
];

describe('entries of tables', () => {
  it('hold bits 9 to 55 of an offset', () => {
    expect(entryOffset(...words(0xffff_ffff_ffff_ffffn))).toBe(Number(0x00ff_ffff_ffff_fe00n));
    expect(entryOffset(...words(0x8000_0001_0003_0001n))).toBe(0x1_0003_0000);
    expect(refcountTableOffset(...words(0x0000_0012_3456_7800n))).toBe(0x12_3456_7800);
  });

  it('are put together from the words of an offset', () => {
    const offsets = fc.integer({ min: 0, max: 2 ** 44 }).map((value) => value * 512);
    fc.assert(
      fc.property(offsets, (offset) => {
        expect(entryOffset(highWord(offset), lowWord(offset))).toBe(offset);
      }),
    );
  });

  it('of compressed clusters are as the format lays them out', () => {
    // 64 KiB clusters: 54 bits of offset, 8 bits of sectors. 3 more sectors than the first.
    const entry = (1n << 62n) | (3n << 54n) | 0x1_2345_6789n;
    expect(compressedRange(...words(entry), 16)).toEqual({
      offset: 0x1_2345_6789,
      length: 4 * 512 - (0x1_2345_6789 % 512),
    });
  });

  it('of compressed clusters are the same after encoding, up to the end of the sector', () => {
    const bits = fc.integer({ min: 9, max: 21 });
    const offsets = fc.integer({ min: 0, max: 2 ** 47 });
    fc.assert(
      fc.property(
        bits,
        offsets,
        fc.double({ min: 0, max: 1, noNaN: true }),
        (clusterBits, offset, part) => {
          const length = 1 + Math.floor(part * (2 ** clusterBits - 1));
          const range = compressedRange(
            ...compressedEntry({ offset, length }, clusterBits),
            clusterBits,
          );
          expect(range.offset).toBe(offset);
          expect(range.length).toBeGreaterThanOrEqual(length);
          expect(range.length).toBeLessThan(length + 512);
          expect((range.offset + range.length) % 512).toBe(0);
        },
      ),
    );
  });
});
