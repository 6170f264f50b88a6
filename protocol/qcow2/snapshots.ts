// SPDX-License-Identifier: MIT
/** The table of internal snapshots. @see qcow2.txt "Snapshots" */
import { Struct } from '../layout.js';

/** The fixed part of a snapshot's entry; extra data, id and name follow, padded to 8 bytes. */
export const QCOW2_SNAPSHOT = new Struct('qcow2 snapshot', 40, {
  l1Offset: 'u64',
  l1Entries: 'u32',
  idLength: 'u16',
  nameLength: 'u16',
  dateSeconds: 'u32',
  dateNanoseconds: 'u32',
  vmClock: 'u64', // nanoseconds
  vmStateLength: 'u32', // bytes
  extraLength: 'u32', // bytes
});
/** Longest extra data that is taken, bytes; QEMU's limit. */
export const QCOW2_SNAPSHOT_EXTRA_MAX = 1024;
/** Longest snapshot table, bytes; QEMU's limit. */
export const QCOW2_SNAPSHOT_TABLE_MAX = 64 * 1024 * 1024;

export interface SnapshotTables {
  readonly l1Offset: bigint;
  readonly l1Entries: number;
}

/**
 * Where the snapshots have their L1 tables, and how long the table is.
 * @param bytes the table, or more
 * @throws RangeError when an entry reaches past the end, or has absurd extra data
 */
export function decodeSnapshotTables(
  bytes: Uint8Array,
  count: number,
): { readonly tables: SnapshotTables[]; readonly length: number } {
  const tables: SnapshotTables[] = [];
  let at = 0;
  for (let index = 0; index < count; index++) {
    const entry = QCOW2_SNAPSHOT.decode(bytes.subarray(at));
    const { l1Offset, l1Entries, extraLength, idLength, nameLength } = entry;
    if (extraLength > QCOW2_SNAPSHOT_EXTRA_MAX) {
      throw new RangeError(`snapshot ${index} has ${extraLength} bytes of extra data`);
    }
    const end = at + QCOW2_SNAPSHOT.size + extraLength + idLength + nameLength;
    if (end > bytes.byteLength) throw new RangeError(`snapshot ${index} is cut off`);
    tables.push({ l1Offset, l1Entries });
    at = Math.ceil(end / 8) * 8;
  }
  return { tables, length: at };
}
