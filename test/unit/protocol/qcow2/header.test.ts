// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import {
  decodeQcow2Header,
  encodeQcow2Header,
  QCOW2_HEADER_V2,
  QCOW2_HEADER_V3,
} from '../../../../protocol/qcow2/header.js';

/** A version 3 header, written by hand. */
const BYTES = Buffer.from(
  [
    '514649fb 00000003', // magic, version
    '0000000000000200 00000007', // backing name
    '00000010', // cluster bits
    '0000000040000000', // size
    '00000000', // encryption
    '00000002 0000000000030000', // L1
    '0000000000010000 00000001', // refcount table
    '00000003 0000000000050000', // snapshots
    '0000000000000005 0000000000000001 0000000000000002', // features
    '00000004 00000070', // refcount order, header length
    '01 00000000000000', // compression type, padding
  ]
    .join('')
    .replaceAll(' ', ''),
  'hex',
);

const HEADER = {
  version: 3,
  backingOffset: 0x200n,
  backingLength: 7,
  clusterBits: 16,
  size: 0x4000_0000n,
  cryptMethod: 0,
  l1Entries: 2,
  l1Offset: 0x30000n,
  refcountTableOffset: 0x10000n,
  refcountTableClusters: 1,
  snapshotCount: 3,
  snapshotsOffset: 0x50000n,
  incompatible: 5n,
  compatible: 1n,
  autoclear: 2n,
  refcountOrder: 4,
  headerLength: 112,
  compressionType: 1,
};

describe('qcow2 header', () => {
  it('is decoded as the format lays it out', () => {
    expect(decodeQcow2Header(BYTES)).toMatchObject(HEADER);
  });

  it('is encoded as the format lays it out', () => {
    const bytes = Buffer.alloc(BYTES.byteLength);
    encodeQcow2Header(HEADER, bytes);
    expect(bytes.equals(BYTES)).toBe(true);
  });

  it('of version 2 has the values that its version implies', () => {
    const bytes = Buffer.from(BYTES);
    bytes[7] = 2;
    expect(decodeQcow2Header(bytes)).toMatchObject({
      version: 2,
      incompatible: 0n,
      autoclear: 0n,
      refcountOrder: 4,
      headerLength: 72,
      compressionType: 0,
    });
  });

  it('of version 2 leaves what follows alone', () => {
    const bytes = Buffer.alloc(112, 0xaa);
    encodeQcow2Header({ ...HEADER, version: 2 }, bytes);
    expect(bytes.subarray(72).equals(Buffer.alloc(40, 0xaa))).toBe(true);
  });

  it('that ends before the compression type has none', () => {
    const bytes = Buffer.from(BYTES);
    bytes[103] = 104;
    expect(decodeQcow2Header(bytes)?.compressionType).toBe(0);
    const target = Buffer.alloc(112, 0xaa);
    encodeQcow2Header({ ...HEADER, headerLength: 104 }, target);
    expect(target[104]).toBe(0xaa);
  });

  it('is none with another magic', () => {
    expect(decodeQcow2Header(Buffer.alloc(112))).toBeUndefined();
  });

  it('refuses values that do not fit and bytes that do not suffice', () => {
    expect(() => encodeQcow2Header({ ...HEADER, clusterBits: 2 ** 32 }, Buffer.alloc(112))).toThrow(
      RangeError,
    );
    expect(() => QCOW2_HEADER_V2.decode(BYTES.subarray(0, 71))).toThrow(RangeError);
    expect(() => QCOW2_HEADER_V3.decode(BYTES.subarray(72, 103))).toThrow(RangeError);
  });
});
