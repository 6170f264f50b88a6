// SPDX-License-Identifier: MIT
/** Internal snapshots of an image: where their tables lie. */

import { ENTRY_LENGTH } from '../../../../protocol/qcow2/entries.js';
import { QCOW2_L1_TABLE_MAX } from '../../../../protocol/qcow2/header.js';
import {
  decodeSnapshotTables,
  QCOW2_SNAPSHOT,
  QCOW2_SNAPSHOT_EXTRA_MAX,
  QCOW2_SNAPSHOT_TABLE_MAX,
  type SnapshotEntry,
  snapshotExtra,
} from '../../../../protocol/qcow2/snapshots.js';
import { BlockError, toError } from '../../../base/errors.js';
import { NODE_SIZE_MAX } from '../../../base/limits.js';
import type { Qcow2Image } from './image.js';
import { readPadded } from './image-io.js';
import { L1Table } from './l1-table.js';

export interface SnapshotL1 {
  /** Host bytes. */
  readonly offset: number;
  readonly entries: number;
  /** All that the table says of the snapshot. */
  readonly entry: SnapshotEntry;
}

export interface SnapshotTable {
  /** Of the snapshot table, host bytes. */
  readonly offset: number;
  /** Bytes; 0: there are no snapshots. */
  readonly length: number;
  readonly tables: readonly SnapshotL1[];
}

/** Longest an entry can be: fixed part, extra data, id and name. */
const ENTRY_MAX = QCOW2_SNAPSHOT.size + QCOW2_SNAPSHOT_EXTRA_MAX + 2 * 0xffff + 8;

/** @throws BlockError DF_CORRUPT_IMAGE when the table, or an L1 table that it names, can't be right */
export async function snapshotTables(image: Qcow2Image): Promise<SnapshotTable> {
  const { offset, length, entries } = await readSnapshotTable(image);
  return { offset, length, tables: decoded(() => entries.map((entry) => checked(image, entry))) };
}

/** The table as it stands in the file. @throws BlockError DF_CORRUPT_IMAGE when it can't be right */
export async function readSnapshotTable(
  image: Pick<Qcow2Image, 'file' | 'header'>,
): Promise<Omit<SnapshotTable, 'tables'> & { readonly entries: readonly SnapshotEntry[] }> {
  const { snapshotCount, snapshotsOffset } = image.header.header;
  const offset = Number(snapshotsOffset);
  if (snapshotCount === 0) return { offset, length: 0, entries: [] };
  const { file } = image;
  const available = Math.max(file.size - offset, 0);
  const bytes = Buffer.alloc(
    Math.min(snapshotCount * ENTRY_MAX, QCOW2_SNAPSHOT_TABLE_MAX, available),
  );
  await readPadded(file, offset, bytes);
  const { tables, length } = decoded(() => decodeSnapshotTables(bytes, snapshotCount));
  return { offset, length, entries: tables };
}

function decoded<T>(decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    const cause = toError(error);
    throw new BlockError('DF_CORRUPT_IMAGE', 'Snapshot table is invalid', {}, { cause });
  }
}

function checked(image: Qcow2Image, entry: SnapshotEntry): SnapshotL1 {
  const { l1Offset, l1Entries } = entry;
  const offset = Number(l1Offset);
  const aligned = offset % image.geometry.clusterSize === 0;
  if (!aligned || offset > image.file.size || l1Entries * 8 > QCOW2_L1_TABLE_MAX) {
    throw new RangeError(`L1 table with ${l1Entries} entries at ${l1Offset} can not be`);
  }
  return { offset, entries: l1Entries, entry };
}

/** The disk that a snapshot is of. */
export interface SnapshotDisk {
  /** Bytes. */
  readonly size: number;
  /** L1 entries that a table needs for it. */
  readonly entries: number;
}

/** @throws BlockError DF_CORRUPT_IMAGE for a disk that can't be */
export function diskOf(image: Qcow2Image, { entry, entries }: SnapshotL1): SnapshotDisk {
  const said = snapshotExtra(entry, 'diskSize') ?? BigInt(image.size);
  const size = Number(said);
  const needed = Math.max(entries, Math.ceil(size / image.geometry.bytesPerL2));
  const fits = size <= NODE_SIZE_MAX && needed * ENTRY_LENGTH <= QCOW2_L1_TABLE_MAX;
  if (fits && size % 512 === 0) return { size, entries: needed };
  const id = Buffer.from(entry.id).toString('utf8');
  throw new BlockError('DF_CORRUPT_IMAGE', `Snapshot '${id}' says that its disk has ${said} bytes`);
}

/** A snapshot's L1 table with room for `entries`, which it may not have all. */
export async function readSnapshotL1(
  image: Qcow2Image,
  { offset, entries: own }: SnapshotL1,
  entries = own,
): Promise<L1Table> {
  const bytes = Buffer.alloc(entries * ENTRY_LENGTH);
  await readPadded(image.file, offset, bytes.subarray(0, own * ENTRY_LENGTH));
  return new L1Table(offset, bytes);
}
