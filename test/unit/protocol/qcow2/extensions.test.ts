// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import {
  decodeExtensions,
  decodeFeatureNames,
  encodeExtensions,
  encodeFeatureNames,
  extensionsLength,
  QCOW2_FEATURE_NAMES,
} from '../../../../protocol/qcow2/extensions.js';
import {
  decodeSnapshotTables,
  encodeSnapshotTables,
  QCOW2_SNAPSHOT,
  snapshotExtra,
} from '../../../../protocol/qcow2/snapshots.js';

const bytes = (hex: string): Uint8Array =>
  new Uint8Array(Buffer.from(hex.replaceAll(' ', ''), 'hex'));

describe('header extensions', () => {
  const AREA = bytes(
    'e2792aca 00000003 726177 0000000000 44415441 00000001 61 00000000000000 00000000 00000000',
  );

  it('are found up to the end mark, without their padding', () => {
    expect(decodeExtensions(AREA)).toEqual([
      { type: 0xe2792aca, data: bytes('726177') },
      { type: 0x44415441, data: bytes('61') },
    ]);
  });

  it('are encoded the same', () => {
    const extensions = decodeExtensions(AREA);
    expect(encodeExtensions(extensions)).toEqual(AREA);
    expect(extensionsLength(extensions)).toBe(AREA.byteLength);
  });

  it('may end with their area', () => {
    expect(decodeExtensions(AREA.subarray(0, 16))).toHaveLength(1);
    expect(decodeExtensions(new Uint8Array(0))).toEqual([]);
  });

  it('that reach past their area are refused', () => {
    expect(() => decodeExtensions(bytes('00000001 00000009 0000000000000000'))).toThrow(
      'Header extension too large',
    );
    expect(() => decodeExtensions(bytes('00000001 ffffffff 0000000000000000'))).toThrow(RangeError);
  });
});

describe('feature names', () => {
  it('are the same after encoding', () => {
    expect(decodeFeatureNames(encodeFeatureNames(QCOW2_FEATURE_NAMES))).toEqual(
      QCOW2_FEATURE_NAMES,
    );
  });

  it('take 48 bytes each: kind, bit, name', () => {
    const encoded = encodeFeatureNames([{ kind: 'autoclear', bit: 3, name: 'ab' }]);
    expect(encoded.byteLength).toBe(48);
    expect([...encoded.subarray(0, 5)]).toEqual([2, 3, 0x61, 0x62, 0]);
  });

  it('leave out kinds that there are not, and a torn last row', () => {
    const encoded = encodeFeatureNames([{ kind: 'compatible', bit: 1, name: 'x' }]);
    encoded[0] = 7;
    expect(decodeFeatureNames(encoded)).toEqual([]);
    expect(decodeFeatureNames(encoded.subarray(0, 47))).toEqual([]);
  });

  it('that are too long are refused', () => {
    const name = 'x'.repeat(47);
    expect(() => encodeFeatureNames([{ kind: 'compatible', bit: 1, name }])).toThrow(RangeError);
  });
});

describe('the table of snapshots', () => {
  const entry = (extraLength: number, names: number): Uint8Array => {
    const head = QCOW2_SNAPSHOT.toBytes({
      l1Offset: 0x70000n,
      l1Entries: 3,
      idLength: names,
      nameLength: names,
      dateSeconds: 0,
      dateNanoseconds: 0,
      vmClock: 0n,
      vmStateLength: 0,
      extraLength,
    });
    return Buffer.concat([head, Buffer.alloc(Math.ceil((extraLength + 2 * names) / 8) * 8)]);
  };

  it('tells where the L1 tables are, and its length', () => {
    const table = Buffer.concat([entry(16, 1), entry(24, 5), Buffer.alloc(100)]);
    expect(decodeSnapshotTables(table, 2)).toMatchObject({
      tables: [
        { l1Offset: 0x70000n, l1Entries: 3 },
        { l1Offset: 0x70000n, l1Entries: 3 },
      ],
      length: 40 + 24 + 40 + 40,
    });
  });

  it('is written as it was read, with extra data that is not known', () => {
    const read = decodeSnapshotTables(Buffer.concat([entry(16, 1), entry(32, 5)]), 2);
    const [first, second] = read.tables;
    if (first === undefined || second === undefined) throw new Error('two were written');
    const extra = Uint8Array.from({ length: 32 }, (_, index) => index + 1);
    const changed = [
      { ...first, id: bytes('37'), name: bytes('61') },
      { ...second, extra, id: bytes('3132333435'), name: bytes('6162636465') },
    ];
    const table = encodeSnapshotTables(changed);
    expect(table.byteLength).toBe(read.length);
    expect(decodeSnapshotTables(table, 2)).toEqual({ tables: changed, length: read.length });
    // Entry 1 is 40 bytes, its extra data 16; then the id and the name.
    expect(Buffer.from(table.subarray(56, 58)).toString()).toBe('7a');
    expect(snapshotExtra({ ...second, extra }, 'icount')).toBe(0x1112131415161718n);
    expect(snapshotExtra(first, 'icount')).toBeUndefined();
  });

  it('is refused when it is cut off or has absurd extra data', () => {
    expect(() => decodeSnapshotTables(entry(16, 1).subarray(0, 50), 1)).toThrow('cut off');
    expect(() => decodeSnapshotTables(entry(16, 1), 2)).toThrow(RangeError);
    expect(() => decodeSnapshotTables(entry(2000, 1), 1)).toThrow('extra data');
  });
});
