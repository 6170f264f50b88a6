// SPDX-License-Identifier: MIT
/** Changing L2 entries: the table that is ours alone, the entries themselves, the clusters they give up. */
import {
  compressedRange,
  ENTRY_COMPRESSED,
  ENTRY_LENGTH,
  entryOffset,
} from '../../../../protocol/qcow2/entries.js';
import { alignDown } from '../../../base/byte-range.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { allocateLocked } from './allocate.js';
import type { Qcow2Image } from './image.js';
import { readPadded } from './image-io.js';
import type { CachedTable } from './table-cache.js';

/** The smallest cluster, bytes. */
const SECTOR = 512;

/**
 * Sees to it that the active L1 table has, for the guest offset, an L2 table that only it uses.
 * Where the table was shared with a snapshot, it is copied.
 */
export function ensureL2(image: Qcow2Image, offset: number): MaybePromise<void> {
  const index = Math.floor(offset / image.geometry.bytesPerL2);
  const { l1 } = image.map;
  if (l1.l2Offset(index) !== 0 && l1.isCopied(index)) return;
  return image.allocation.run(async () => {
    const { l1: table } = image.map;
    const old = table.l2Offset(index);
    if (old !== 0 && table.isCopied(index)) return;
    await makeL2(image, index, old);
  });
}

async function makeL2(image: Qcow2Image, index: number, old: number): Promise<void> {
  const { clusterSize } = image.geometry;
  const { file, metadata, frees } = image;
  const { offset, fresh } = await allocateLocked(image, 1);
  try {
    if (old !== 0) {
      const content = Buffer.allocUnsafe(clusterSize);
      await readPadded(file, old, content);
      await file.write(offset, content);
    } else if (!fresh) await file.writeZeroes(offset, clusterSize);
    else if (offset + clusterSize > file.size) {
      // The L1 table may be written before this one has any entry: it must lie within the file.
      await file.write(offset + clusterSize - SECTOR, Buffer.alloc(SECTOR));
    }
  } catch (error) {
    frees.add({ offset, length: clusterSize, table: false, discard: false });
    throw error;
  }
  metadata.unsettle();
  image.l2.drop(offset, clusterSize);
  image.map.l1.setL2(index, offset);
  image.guard?.add('active-l2', offset);
  if (old === 0) return;
  const discard = image.options.passDiscard.other;
  frees.add({ offset: old, length: clusterSize, table: true, discard });
}

/** The entries of one slice that lie in a guest range. */
export interface SliceEntries {
  readonly table: CachedTable;
  /** Number of the first in the slice. */
  readonly first: number;
  readonly count: number;
  /** Guest offset of the first one's cluster, bytes. */
  readonly offset: number;
}

/**
 * Calls `change` with the entries from `offset` on, as many of `clusters` as one slice has; it marks
 * what it changes, and must not wait. @returns how many it was called with
 */
export function withEntries(
  image: Qcow2Image,
  offset: number,
  clusters: number,
  change: (entries: SliceEntries) => void,
): MaybePromise<number> {
  const { sliceOffset, index } = image.map.placeOf(offset);
  const count = Math.min(clusters, image.map.sliceEntries - index);
  return image.l2.with(sliceOffset, (table) => {
    change({ table, first: index, count, offset: alignDown(offset, image.geometry.clusterSize) });
    return count;
  });
}

/** Writes one standard entry, or the first half of an extended one. */
export function setEntry(
  image: Qcow2Image,
  table: CachedTable,
  index: number,
  entry: {
    readonly high: number;
    readonly low: number;
    readonly zero?: number;
    readonly allocated?: number;
  },
): void {
  const { l2EntryLength, extendedL2 } = image.geometry;
  const at = index * l2EntryLength;
  table.view.setUint32(at, entry.high);
  table.view.setUint32(at + 4, entry.low);
  if (extendedL2) {
    table.view.setUint32(at + ENTRY_LENGTH, entry.zero ?? 0);
    table.view.setUint32(at + ENTRY_LENGTH + 4, entry.allocated ?? 0);
  }
  table.markDirty(at, at + l2EntryLength);
}

/** Both halves of an entry; the second is 0 where there is none. */
export interface Entry {
  readonly high: number;
  readonly low: number;
  /** Bits of the subclusters that read as zeroes, and of those that are allocated. */
  readonly zero: number;
  readonly allocated: number;
}

export function getEntry(image: Qcow2Image, table: CachedTable, index: number): Entry {
  if (!image.geometry.extendedL2) {
    return { high: table.high(index), low: table.low(index), zero: 0, allocated: 0 };
  }
  return {
    high: table.high(2 * index),
    low: table.low(2 * index),
    zero: table.high(2 * index + 1),
    allocated: table.low(2 * index + 1),
  };
}

/**
 * The clusters of an entry that has been replaced: they come free with the next commit. Clusters of an
 * external data file have no counts.
 */
export function giveUp(
  image: Qcow2Image,
  { high, low }: Pick<Entry, 'high' | 'low'>,
  discard: boolean,
): void {
  if (image.hasDataFile) return;
  const { clusterBits, clusterSize } = image.geometry;
  if ((high & ENTRY_COMPRESSED) !== 0) {
    const { offset, length } = compressedRange(high, low, clusterBits);
    const first = alignDown(offset, clusterSize);
    const end = alignDown(offset + length - 1, clusterSize) + clusterSize;
    image.frees.add({ offset: first, length: end - first, table: false, discard: false });
    return;
  }
  const offset = entryOffset(high, low);
  if (offset === 0) return;
  if (offset % clusterSize !== 0) {
    image.corrupt({
      message: `Cannot free unaligned cluster 0x${offset.toString(16)}`,
      fatal: false,
    });
  }
  image.frees.add({ offset, length: clusterSize, table: false, discard });
}
