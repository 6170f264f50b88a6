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

/** Most snapshots that an image may have; QEMU's limit. */
export const QCOW2_SNAPSHOTS_MAX = 65536;

/** One entry of the table. */
export interface SnapshotEntry {
  /** Host bytes. */
  readonly l1Offset: bigint;
  readonly l1Entries: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  /** Nanoseconds that the guest has run. */
  readonly vmClock: bigint;
  /** Bytes; what `extra` says goes before it. */
  readonly vmStateLength: number;
  /** As it stands in the file: parts that we don't know are kept. */
  readonly extra: Uint8Array;
  /** UTF-8. */
  readonly id: Uint8Array;
  /** UTF-8. */
  readonly name: Uint8Array;
}

/**
 * The snapshots, and how long the table is.
 * @param bytes the table, or more
 * @throws RangeError when an entry reaches past the end, or has absurd extra data
 */
export function decodeSnapshotTables(
  bytes: Uint8Array,
  count: number,
): { readonly tables: SnapshotEntry[]; readonly length: number } {
  const tables: SnapshotEntry[] = [];
  // A copy, also of a Buffer, whose `slice` would keep the whole table in memory.
  const part = (from: number, to: number): Uint8Array => new Uint8Array(bytes.subarray(from, to));
  let at = 0;
  for (let index = 0; index < count; index++) {
    const { extraLength, idLength, nameLength, ...fixed } = QCOW2_SNAPSHOT.decode(
      bytes.subarray(at),
    );
    if (extraLength > QCOW2_SNAPSHOT_EXTRA_MAX) {
      throw new RangeError(`snapshot ${index} has ${extraLength} bytes of extra data`);
    }
    const extraAt = at + QCOW2_SNAPSHOT.size;
    const idAt = extraAt + extraLength;
    const nameAt = idAt + idLength;
    const end = nameAt + nameLength;
    if (end > bytes.byteLength) throw new RangeError(`snapshot ${index} is cut off`);
    const extra = part(extraAt, idAt);
    tables.push({
      ...fixed,
      extra,
      id: part(idAt, nameAt),
      name: part(nameAt, end),
    });
    at = Math.ceil(end / 8) * 8;
  }
  return { tables, length: at };
}

/** The reverse: the whole table. */
export function encodeSnapshotTables(entries: readonly SnapshotEntry[]): Uint8Array {
  const lengths = entries.map(
    ({ extra, id, name }) =>
      Math.ceil((QCOW2_SNAPSHOT.size + extra.byteLength + id.byteLength + name.byteLength) / 8) * 8,
  );
  const bytes = new Uint8Array(lengths.reduce((sum, length) => sum + length, 0));
  let at = 0;
  for (const [index, { extra, id, name, ...fixed }] of entries.entries()) {
    const parts = [extra, id, name];
    const [extraLength = 0, idLength = 0, nameLength = 0] = parts.map((part) => part.byteLength);
    QCOW2_SNAPSHOT.encode({ ...fixed, extraLength, idLength, nameLength }, bytes.subarray(at));
    let to = at + QCOW2_SNAPSHOT.size;
    for (const part of parts) {
      bytes.set(part, to);
      to += part.byteLength;
    }
    at += lengths[index] ?? 0;
  }
  return bytes;
}

/** Numbers of 64 bits in a snapshot's extra data, in this order. */
const EXTRA_FIELDS = { vmStateSize: 0, diskSize: 8, icount: 16 } as const;

/** @returns undefined where the extra data is too short to have it */
export function snapshotExtra(
  { extra }: SnapshotEntry,
  field: keyof typeof EXTRA_FIELDS,
): bigint | undefined {
  const at = EXTRA_FIELDS[field];
  if (extra.byteLength < at + 8) return undefined;
  return new DataView(extra.buffer, extra.byteOffset, extra.byteLength).getBigUint64(at);
}

/** Extra data of a snapshot of a disk alone: no guest has counted instructions. @param diskSize bytes */
export function diskSnapshotExtra(diskSize: number): Uint8Array {
  const extra = new Uint8Array(24);
  const view = new DataView(extra.buffer);
  view.setBigUint64(EXTRA_FIELDS.diskSize, BigInt(diskSize));
  view.setBigUint64(EXTRA_FIELDS.icount, 2n ** 64n - 1n);
  return extra;
}

/**
 * The entry with all the extra data that this version of the format knows, and what it has beyond it.
 * @param diskSize bytes, of a disk whose size the entry does not tell
 */
export function completeSnapshot(entry: SnapshotEntry, diskSize: number): SnapshotEntry {
  const extra = new Uint8Array(Math.max(entry.extra.byteLength, 24));
  extra.set(entry.extra);
  const view = new DataView(extra.buffer);
  const vmState = snapshotExtra(entry, 'vmStateSize') ?? BigInt(entry.vmStateLength);
  view.setBigUint64(EXTRA_FIELDS.vmStateSize, vmState);
  view.setBigUint64(EXTRA_FIELDS.diskSize, snapshotExtra(entry, 'diskSize') ?? BigInt(diskSize));
  view.setBigUint64(EXTRA_FIELDS.icount, snapshotExtra(entry, 'icount') ?? 2n ** 64n - 1n);
  return { ...entry, extra };
}
