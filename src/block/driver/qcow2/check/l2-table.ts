// SPDX-License-Identifier: MIT
/** What one L2 table refers to, and what in it can't be. */
import {
  compressedRange,
  ENTRY_COMPRESSED,
  ENTRY_COPIED,
  ENTRY_ZERO,
  entryOffset,
  L2_RESERVED_HIGH,
  L2_RESERVED_LOW,
} from '../../../../../protocol/qcow2/entries.js';
import type { EntryTable } from '../l1-table.js';
import { isOthersPlace } from './places.js';
import { type CheckSubject, corruption } from './subject.js';

export interface L2Walk {
  readonly subject: CheckSubject;
  /** Counts a range of the file. */
  readonly mark: (offset: number, length: number) => void;
  /** The tables of the disk as it is now, not of a snapshot. */
  readonly active: boolean;
}

export type ClusterKind = 'compressed' | 'allocated' | 'unallocated';

/** An entry of an L2 table. */
export interface L2Entry {
  readonly high: number;
  readonly low: number;
  readonly kind: ClusterKind;
  /** Host bytes; 0: none, but in a data file. */
  readonly offset: number;
  /** Bits of subclusters: those that have data, those that are zero. Both 0 without subclusters. */
  readonly allocated: number;
  readonly zeroes: number;
}

export function l2Entry(subject: CheckSubject, table: EntryTable, index: number): L2Entry {
  const { extendedL2 } = subject.geometry;
  const word = extendedL2 ? index * 2 : index;
  const high = table.high(word);
  const low = table.low(word);
  const offset = entryOffset(high, low);
  const subclusters = {
    allocated: extendedL2 ? table.low(word + 1) : 0,
    zeroes: extendedL2 ? table.high(word + 1) : 0,
  };
  // An external data file has a cluster at 0 as well, which then is marked as copied.
  const there = offset !== 0 || (subject.hasDataFile && (high & ENTRY_COPIED) !== 0);
  const plain = there && !(offset === 0 && !extendedL2 && (low & ENTRY_ZERO) !== 0);
  const allocated = plain ? 'allocated' : 'unallocated';
  const kind = (high & ENTRY_COMPRESSED) !== 0 ? 'compressed' : allocated;
  return { high, low, kind, offset, ...subclusters };
}

/** Counts what the table's entries refer to. */
export async function checkL2(table: EntryTable, walk: L2Walk): Promise<void> {
  const { subject } = walk;
  const { l2Entries, clusterSize } = subject.geometry;
  let expected = 0;
  for (let index = 0; index < l2Entries; index++) {
    const entry = l2Entry(subject, table, index);
    const { high, low, kind, offset } = entry;
    if (kind === 'compressed') {
      checkCompressed(entry, index, walk);
      continue;
    }
    if ((high & L2_RESERVED_HIGH) !== 0 || (low & L2_RESERVED_LOW) !== 0) {
      corruption(subject, `found l2 entry with reserved bits set: ${hex(high, low)}`);
    }
    if (kind === 'unallocated') {
      if (entry.allocated === 0) continue;
      corruption(subject, `l2 entry ${index} has subclusters, and no cluster`);
      continue;
    }
    const suspicious = (entry.allocated & entry.zeroes) !== 0 || offset % clusterSize !== 0;
    if (suspicious && (await zeroedMisplaced(table, index, walk))) continue;
    if (walk.active) {
      subject.tally.allocatedClusters++;
      if (expected !== 0 && expected !== offset) subject.tally.fragmentedClusters++;
      expected = offset + clusterSize;
    }
    if (!subject.hasDataFile) walk.mark(offset, clusterSize);
  }
}

function checkCompressed(entry: L2Entry, index: number, { subject, mark, active }: L2Walk): void {
  const { high, low } = entry;
  const { clusterBits } = subject.geometry;
  const { offset, length } = compressedRange(high, low, clusterBits);
  if ((high & ENTRY_COPIED) !== 0) {
    const where = `coffset=0x${offset.toString(16)}`;
    corruption(subject, `${where}: copied flag must never be set for compressed clusters`);
  }
  const what = `compressed cluster ${index}`;
  if (subject.hasDataFile) {
    corruption(subject, `${what} with data file, entry=${hex(high, low)}`);
    return;
  }
  if (entry.allocated !== 0 || entry.zeroes !== 0) {
    corruption(subject, `${what} with subclusters, entry=${hex(high, low)}`);
    return;
  }
  mark(offset, length);
  if (!active) return;
  subject.tally.allocatedClusters++;
  subject.tally.compressedClusters++;
  // They share sectors, so that each is read by itself.
  subject.tally.fragmentedClusters++;
}

/**
 * Tells of an allocated cluster that lies where none can. One that has no data is made a zero cluster,
 * if that is wanted. @returns true when that was done: it refers to nothing any more
 */
async function zeroedMisplaced(
  table: EntryTable,
  index: number,
  { subject, active }: L2Walk,
): Promise<boolean> {
  const { geometry, fix } = subject;
  const { low, offset, allocated, zeroes } = l2Entry(subject, table, index);
  if ((allocated & zeroes) !== 0) {
    corruption(subject, `offset=0x${offset.toString(16)}: subclusters have data and are zero`);
  }
  if (offset % geometry.clusterSize === 0) return false;
  const where = `offset=0x${offset.toString(16)}`;
  const hasData = geometry.extendedL2 ? allocated !== 0 : (low & ENTRY_ZERO) === 0;
  if (hasData) {
    corruption(subject, `${where}: Data cluster is not properly aligned; L2 entry corrupted.`);
    return false;
  }
  const text = `${where}: Preallocated cluster is not properly aligned; L2 entry corrupted.`;
  if (fix !== 'all' || isOthersPlace(subject, table.offset, { active })) {
    corruption(subject, text);
    return false;
  }
  subject.say(`Repairing ${text}`);
  await writeZeroEntry(subject, table, index);
  subject.tally.corruptionsFixed++;
  return true;
}

async function writeZeroEntry(
  { file, geometry }: CheckSubject,
  table: EntryTable,
  index: number,
): Promise<void> {
  const { extendedL2, l2EntryLength } = geometry;
  const word = extendedL2 ? index * 2 : index;
  table.set(word, 0, extendedL2 ? 0 : ENTRY_ZERO);
  if (extendedL2) table.set(word + 1, (table.high(word + 1) | table.low(word + 1)) >>> 0, 0);
  const at = index * l2EntryLength;
  await file.write(table.offset + at, table.bytes.subarray(at, at + l2EntryLength));
}

export const hex = (high: number, low: number): string =>
  ((BigInt(high) << 32n) | BigInt(low)).toString(16);
