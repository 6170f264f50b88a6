// SPDX-License-Identifier: MIT
/** Discard: whole clusters lose their content and, as a rule, their place in the file. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  ENTRY_COMPRESSED,
  ENTRY_COPIED,
  ENTRY_ZERO,
  entryOffset,
} from '../../../../protocol/qcow2/entries.js';
import { alignDown, alignUp } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import { reclaim } from './allocate.js';
import type { Qcow2Image } from './image.js';
import { type Entry, ensureL2, getEntry, giveUp, setEntry, withEntries } from './l2-entries.js';
import { prepareWrite } from './prepare-write.js';
import { movesAway, same } from './zero.js';

/** Slices that are changed before others have their turn. */
const TURN = 32;
const ALL = 0xffff_ffff;

/** Whole clusters of the range read as zeroes afterwards. */
export async function discardGuest(
  image: Qcow2Image,
  offset: number,
  length: number,
): Promise<void> {
  const { clusterSize, version } = image.geometry;
  if (version < 3 && image.backing !== undefined) {
    // Without a mark for zero clusters the backing file would show through.
    throw new BlockError('DF_NOT_SUPPORTED', 'Version 2 images with a backing file keep clusters');
  }
  const end = offset + length;
  const from = alignUp(offset, clusterSize);
  const to = end === image.size ? alignUp(end, clusterSize) : alignDown(end, clusterSize);
  // Bitmaps record the range even when no whole cluster lies in it.
  await prepareWrite(image);
  if (to <= from) return;
  const hold = await image.clusterLock.acquire(from, to - from);
  try {
    await discardClusters(image, { from, to, how: 'zero' });
  } finally {
    hold.release();
  }
  await reclaim(image);
}

/** No cluster is the image's own any more: the backing file shows everywhere. */
export async function emptyGuest(image: Qcow2Image): Promise<void> {
  await prepareWrite(image);
  const to = alignUp(image.size, image.geometry.clusterSize);
  const hold = await image.clusterLock.acquire(0, to);
  try {
    await discardClusters(image, { from: 0, to, how: 'unallocated' });
  } finally {
    hold.release();
  }
  await reclaim(image);
}

export interface DiscardRange {
  /** Guest bytes, whole clusters. */
  readonly from: number;
  readonly to: number;
  /** 'zero': they read as zeroes. 'unallocated': as if they had never been written. */
  readonly how: 'zero' | 'unallocated';
}

/** For who holds the clusters of the range. */
export async function discardClusters(
  image: Qcow2Image,
  { from, to, how }: DiscardRange,
): Promise<void> {
  const { clusterSize, bytesPerL2 } = image.geometry;
  const { passDiscard } = image.options;
  let turn = 0;
  for (let at = from; at < to; ) {
    const mapped = image.map.l1.l2Offset(Math.floor(at / bytesPerL2)) !== 0;
    if (!mapped && (how === 'unallocated' || image.backing === undefined)) {
      at = alignDown(at, bytesPerL2) + bytesPerL2;
      continue;
    }
    await ensureL2(image, at);
    const kept: number[] = [];
    const clusters = (to - at) / clusterSize;
    const count = await withEntries(
      image,
      at,
      clusters,
      ({ table, first, count: entries, offset }) => {
        for (let nth = 0; nth < entries; nth++) {
          const old = getEntry(image, table, first + nth);
          const next = discarded(image, old, how);
          if (same(old, next)) continue;
          setEntry(image, table, first + nth, next);
          if (movesAway(old, next)) giveUp(image, old, passDiscard.request);
          const stays = image.hasDataFile
            ? offset + nth * clusterSize
            : entryOffset(next.high, next.low);
          if (passDiscard.request && (image.hasDataFile || stays !== 0)) kept.push(stays);
        }
      },
    );
    await discardData(image, kept);
    at += count * clusterSize;
    turn++;
    if (turn % TURN === 0) await nextTurn();
  }
}

function discarded(image: Qcow2Image, old: Entry, how: DiscardRange['how']): Entry {
  const { version, extendedL2 } = image.geometry;
  const nothing: Entry = { high: 0, low: 0, zero: 0, allocated: 0 };
  if (how === 'unallocated') return nothing;
  const there =
    (old.high & ENTRY_COMPRESSED) !== 0 ||
    (old.high & ENTRY_COPIED) !== 0 ||
    entryOffset(old.high, old.low) !== 0;
  const marked = extendedL2 ? old.zero !== 0 || old.allocated !== 0 : (old.low & ENTRY_ZERO) !== 0;
  if (image.backing === undefined && !there && !marked) return old;
  if (version < 3) return nothing;
  // A cluster that a snapshot shares must keep its bytes.
  const keeps = image.options.discardNoUnref && (old.high & ENTRY_COPIED) !== 0;
  const base = keeps ? { high: old.high, low: old.low } : { high: 0, low: 0 };
  if (extendedL2) return { ...base, zero: ALL, allocated: 0 };
  return { high: base.high, low: (base.low | ENTRY_ZERO) >>> 0, zero: 0, allocated: 0 };
}

/** Tells the node below of clusters that keep their place, in runs. */
async function discardData(image: Qcow2Image, offsets: readonly number[]): Promise<void> {
  const { clusterSize } = image.geometry;
  const { data } = image;
  const { size } = data;
  for (let at = 0; at < offsets.length; ) {
    const first = offsets[at] ?? 0;
    let count = 1;
    while (offsets[at + count] === first + count * clusterSize) count++;
    const end = Math.min(first + count * clusterSize, size);
    if (end > first) await data.discard(first, end - first);
    at += count;
  }
}
