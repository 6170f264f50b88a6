// SPDX-License-Identifier: MIT
/** Goes through everything that refers to host clusters, counts that, and tells what can't be. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { decodeBitmapTableEntry } from '../../../../../protocol/qcow2/bitmaps.js';
import { L1_RESERVED_HIGH, L1_RESERVED_LOW } from '../../../../../protocol/qcow2/entries.js';
import { QCOW2_EXT_CRYPTO } from '../../../../../protocol/qcow2/extensions.js';
import { QCOW2_L1_TABLE_MAX } from '../../../../../protocol/qcow2/header.js';
import { BlockError } from '../../../../base/errors.js';
import { readPadded } from '../image-io.js';
import { EntryTable, L1Table } from '../l1-table.js';
import { checkL2, type L2Walk } from './l2-table.js';
import { ReferenceCounts } from './reference-counts.js';
import { type CheckSubject, corruption } from './subject.js';

/** @throws BlockError when the file can't be read, or there are too many references to count */
export async function countReferences(subject: CheckSubject): Promise<ReferenceCounts> {
  const { file, geometry, header, l1, tally, snapshots, table } = subject;
  const { clusterSize, refcountMax } = geometry;
  const counts = new ReferenceCounts(Math.ceil(file.size / clusterSize), refcountMax);
  tally.totalClusters = Math.ceil(subject.size / clusterSize);
  tally.allocatedClusters = 0;
  tally.fragmentedClusters = 0;
  tally.compressedClusters = 0;
  const mark = (offset: number, length: number): void => markRange(subject, counts, offset, length);
  mark(0, clusterSize);
  await countL1(l1, { subject, mark, active: true });
  if (subject.hasDataFile && snapshots.entries.length > 0) {
    corruption(subject, `${snapshots.entries.length} snapshots in image with data file`);
  }
  await countSnapshots(subject, mark);
  mark(snapshots.offset, snapshots.length);
  mark(table.offset, table.bytes.byteLength);
  // Where the keys of an encrypted image are kept: offset and length, 64 bits each.
  const keys = header.extension(QCOW2_EXT_CRYPTO);
  if (keys !== undefined && keys.byteLength >= 16) {
    const view = new DataView(keys.buffer, keys.byteOffset, keys.byteLength);
    mark(Number(view.getBigUint64(0)), Number(view.getBigUint64(8)));
  }
  await countBitmaps(subject, mark);
  return counts;
}

/** Counts the clusters of a range of the file, of which the last may end behind the file's end. */
export function markRange(
  subject: CheckSubject,
  counts: ReferenceCounts,
  offset: number,
  length: number,
): void {
  if (length <= 0) return;
  const { clusterSize } = subject.geometry;
  if (offset + length - subject.file.size >= subject.reach) {
    corruption(subject, `something refers to ${length} bytes at ${offset}, outside the file`);
    return;
  }
  const last = Math.floor((offset + length - 1) / clusterSize);
  for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) {
    if (counts.add(cluster)) continue;
    corruption(
      subject,
      `overflow cluster offset=0x${(cluster * clusterSize).toString(16)}: ` +
        `it has more than ${counts.max} references, which are all that the image can count`,
    );
  }
}

async function countSnapshots(subject: CheckSubject, mark: L2Walk['mark']): Promise<void> {
  const { file, geometry, snapshots } = subject;
  for (const { id, name, l1Offset, l1Entries } of snapshots.entries) {
    const who = `snapshot ${Buffer.from(id)} (${Buffer.from(name)})`;
    if (l1Offset % BigInt(geometry.clusterSize) !== 0n) {
      const where = `l1_offset=0x${l1Offset.toString(16)}`;
      lost(subject, `${who} ${where}: L1 table is not cluster aligned`);
      continue;
    }
    if (l1Entries * 8 > QCOW2_L1_TABLE_MAX) {
      lost(subject, `${who} l1_size=${l1Entries}: L1 table is too large`);
      continue;
    }
    const bytes = Buffer.alloc(l1Entries * 8);
    checkInside(subject, Number(l1Offset), bytes.byteLength);
    await readPadded(file, Number(l1Offset), bytes);
    await countL1(new L1Table(Number(l1Offset), bytes), { subject, mark, active: false });
  }
}

async function countL1(l1: L1Table, walk: L2Walk): Promise<void> {
  const { subject, mark } = walk;
  const { clusterSize } = subject.geometry;
  if (l1.entries === 0) return;
  mark(l1.offset, l1.bytes.byteLength);
  const bytes = Buffer.alloc(clusterSize);
  for (let index = 0; index < l1.entries; index++) {
    const high = l1.high(index);
    const low = l1.low(index);
    if (high === 0 && low === 0) continue;
    if ((high & L1_RESERVED_HIGH) !== 0 || (low & L1_RESERVED_LOW) !== 0) {
      corruption(subject, `L1 entry ${index} has reserved bits set`);
    }
    const offset = l1.l2Offset(index);
    mark(offset, clusterSize);
    if (offset % clusterSize !== 0) {
      corruption(subject, `l2_offset=0x${offset.toString(16)}: Table is not cluster aligned`);
    }
    await readPadded(subject.file, offset, bytes);
    await checkL2(new EntryTable(offset, bytes), walk);
    await nextTurn();
  }
}

/** Tells of an L1 table outside the file. @throws as `lost` */
function checkInside(subject: CheckSubject, offset: number, length: number): void {
  const { fix, file, reach } = subject;
  // `mark` tells of it to who only looks.
  if (fix === 'none' || length === 0 || offset + length - file.size < reach) return;
  lost(subject, `The L1 table of a snapshot, at ${offset}, lies outside the file`);
}

/**
 * It is not known what a snapshot has: all that would be taken for leaks, and given to others.
 * @throws BlockError DF_CORRUPT_IMAGE, where something is to be mended
 */
function lost(subject: CheckSubject, text: string): void {
  if (subject.fix === 'none') corruption(subject, text);
  else throw new BlockError('DF_CORRUPT_IMAGE', `${text}: nothing is mended`);
}

async function countBitmaps(subject: CheckSubject, mark: L2Walk['mark']): Promise<void> {
  const { file, geometry, bitmaps, directory } = subject;
  if (directory === undefined) return;
  mark(directory.offset, directory.length);
  for (const { name, tableOffset, tableEntries } of bitmaps) {
    mark(tableOffset, tableEntries * 8);
    const bytes = Buffer.alloc(tableEntries * 8);
    if (tableOffset + bytes.byteLength > file.size) {
      const message = `Bitmap '${name}': its table lies outside the file`;
      throw new BlockError('DF_CORRUPT_IMAGE', message);
    }
    await file.read(tableOffset, bytes);
    for (let index = 0; index < tableEntries; index++) {
      const cluster = decodeBitmapTableEntry(bytes, index, geometry.clusterSize);
      if (cluster === undefined) corruption(subject, `bitmap '${name}': entry ${index} is invalid`);
      else if (typeof cluster === 'number') mark(cluster, geometry.clusterSize);
    }
    await nextTurn();
  }
}
