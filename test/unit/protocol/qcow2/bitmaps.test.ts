// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import {
  bitmapEntryLength,
  decodeBitmapDirectory,
  decodeBitmapTable,
  encodeBitmapDirectory,
  encodeBitmapTable,
  QCOW2_BITMAP_ENTRY,
  QCOW2_BITMAPS_EXTENSION,
} from '../../../../protocol/qcow2/bitmaps.js';

const hex = (text: string): Uint8Array => Buffer.from(text.replaceAll(' ', ''), 'hex');

const CLUSTER = 4096;
const BITMAP = {
  name: 'ab',
  tableOffset: 0x5000,
  tableEntries: 1,
  flags: 2,
  granularityBits: 16,
};
/** Offset, entries, flags, type, granularity, length of the name, extra data; name and padding. */
const ROW = hex('0000000000005000 00000001 00000002 01 10 0002 00000000 6162 000000000000');

describe('the extension', () => {
  it('has number, reserved field, length and place', () => {
    const bytes = hex('00000002 00000000 0000000000000040 0000000000006000');
    const value = { count: 2, reserved: 0, directoryLength: 64n, directoryOffset: 0x6000n };
    expect(QCOW2_BITMAPS_EXTENSION.decode(bytes)).toEqual(value);
    const target = new Uint8Array(24);
    QCOW2_BITMAPS_EXTENSION.encode(value, target);
    expect(target).toEqual(new Uint8Array(bytes));
    expect(() => QCOW2_BITMAPS_EXTENSION.decode(bytes.subarray(1))).toThrow(RangeError);
  });
});

describe('the directory', () => {
  it('is read and written byte for byte', () => {
    const two = Buffer.concat([ROW, ROW]);
    const second = { ...BITMAP, flags: 3 };
    two[32 + 15] = 3;
    const sized = { count: 2, clusterSize: CLUSTER };
    expect(decodeBitmapDirectory(two, sized)).toEqual([BITMAP, second]);
    expect(Buffer.from(encodeBitmapDirectory([BITMAP, second]))).toEqual(two);
    expect(bitmapEntryLength(2)).toBe(32);
    expect(bitmapEntryLength(8)).toBe(32);
    expect(bitmapEntryLength(9)).toBe(40);
  });

  it('refuses a value that does not fit, and a row that is cut off', () => {
    expect(() => encodeBitmapDirectory([{ ...BITMAP, granularityBits: 256 }])).toThrow(RangeError);
    expect(() => encodeBitmapDirectory([{ ...BITMAP, name: 'x'.repeat(65536) }])).toThrow(
      RangeError,
    );
    for (const length of [1, 23, 24, 31]) {
      expect(() =>
        decodeBitmapDirectory(ROW.subarray(0, length), { count: 1, clusterSize: CLUSTER }),
      ).toThrow('Broken bitmap directory');
    }
    expect(() => QCOW2_BITMAP_ENTRY.decode(ROW.subarray(0, 23))).toThrow(RangeError);
  });
});

describe('a table', () => {
  it('has places, runs of zeroes and of ones', () => {
    const bytes = hex('0000000000005000 0000000000000000 0000000000000001');
    expect(decodeBitmapTable(bytes, CLUSTER)).toEqual([0x5000, 'zeroes', 'ones']);
    expect(Buffer.from(encodeBitmapTable([0x5000, 'zeroes', 'ones']))).toEqual(Buffer.from(bytes));
  });

  it('refuses reserved bits, a place with the bit for ones, and one within a cluster', () => {
    for (const entry of [
      '0100000000005000',
      '0000000000000002',
      '0000000000000100',
      '0000000000005001',
      '0000000000005200',
      '00ffffffffff0000',
    ]) {
      expect(() => decodeBitmapTable(hex(entry), CLUSTER), entry).toThrow(RangeError);
    }
  });
});
