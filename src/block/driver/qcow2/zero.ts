// SPDX-License-Identifier: MIT
/** Write zeroes: clusters (or subclusters) are marked as zero, without touching their bytes. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { ENTRY_COMPRESSED, ENTRY_ZERO, entryOffset } from '../../../../protocol/qcow2/entries.js';
import { alignDown, alignUp } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import { REQ_MAY_UNMAP, REQ_NO_FALLBACK, type RequestFlags } from '../../block-driver.js';
import { reclaim } from './allocate.js';
import { readsAsZero } from './copy-on-write.js';
import type { Qcow2Image } from './image.js';
import { type Entry, ensureL2, getEntry, giveUp, setEntry, withEntries } from './l2-entries.js';
import { subclusterBits } from './link.js';
import { prepareWrite } from './prepare-write.js';
import { writeRuns } from './write.js';

/** Slices that are changed before others have their turn. */
const TURN = 32;
const ALL = 0xffff_ffff;

/** @throws BlockError DF_NOT_SUPPORTED where only writing zeroes would do */
export async function zeroGuest(
  image: Qcow2Image,
  offset: number,
  length: number,
  flags: RequestFlags,
): Promise<void> {
  if (image.geometry.version < 3) {
    throw new BlockError('DF_NOT_SUPPORTED', 'Version 2 images have no mark for zero clusters');
  }
  await prepareWrite(image);
  const { clusterSize } = image.geometry;
  const start = alignDown(offset, clusterSize);
  const hold = await image.clusterLock.acquire(
    start,
    alignUp(offset + length, clusterSize) - start,
  );
  try {
    await zeroLocked(image, { offset, end: offset + length }, flags);
  } finally {
    hold.release();
  }
  await reclaim(image);
}

interface Range {
  readonly offset: number;
  readonly end: number;
}

/** For who holds the clusters of the range. */
export async function zeroLocked(
  image: Qcow2Image,
  range: Range,
  flags: RequestFlags,
): Promise<void> {
  const { subclusterSize: unit } = image.geometry;
  const whole = await wholeUnits(image, range);
  const first = alignUp(whole.offset, unit);
  const last = whole.end === image.size ? whole.end : alignDown(whole.end, unit);
  const partial = last <= first || first > whole.offset || whole.end > last;
  if (partial && (flags & REQ_NO_FALLBACK) !== 0) {
    throw new BlockError('DF_NOT_SUPPORTED', 'Parts of a cluster can only be zeroed by writing');
  }
  if (last <= first) return writeZeroes(image, range.offset, range.end);
  if (first > range.offset) await writeZeroes(image, range.offset, first);
  await zeroUnits(image, { offset: first, end: last }, flags);
  if (range.end > last) await writeZeroes(image, last, range.end);
}

/** Where the rest of the first or last unit is zero, it is zeroed as a whole. */
async function wholeUnits(image: Qcow2Image, { offset, end }: Range): Promise<Range> {
  const { subclusterSize: unit } = image.geometry;
  const first = alignDown(offset, unit);
  const last = Math.min(alignUp(end, unit), image.size);
  const head = first === offset || (await readsAsZero(image, first, offset - first));
  const tail = last <= end || (await readsAsZero(image, end, last - end));
  return { offset: head ? first : offset, end: tail ? Math.max(last, end) : end };
}

async function writeZeroes(image: Qcow2Image, from: number, to: number): Promise<void> {
  const { subclusterSize: unit } = image.geometry;
  const zeroes = Buffer.alloc(Math.min(to - from, unit));
  for (let at = from; at < to; at += zeroes.byteLength) {
    await writeRuns(image, at, zeroes.subarray(0, Math.min(zeroes.byteLength, to - at)));
  }
}

/** Marks whole units. */
async function zeroUnits(image: Qcow2Image, range: Range, flags: RequestFlags): Promise<void> {
  const { clusterSize } = image.geometry;
  if (image.dataFileRaw) {
    await image.data.writeZeroes(range.offset, range.end - range.offset, flags);
  }
  let turn = 0;
  for (let at = alignDown(range.offset, clusterSize); at < range.end; ) {
    await ensureL2(image, at);
    const compressed: number[] = [];
    const count = await withEntries(
      image,
      at,
      Math.ceil((range.end - at) / clusterSize),
      ({ table, first, count: entries, offset }) => {
        for (let nth = 0; nth < entries; nth++) {
          const cluster = offset + nth * clusterSize;
          const old = getEntry(image, table, first + nth);
          const bits = unitBits(image, cluster, range);
          if (bits !== ALL && (old.high & ENTRY_COMPRESSED) !== 0) {
            compressed.push(cluster);
            continue;
          }
          const next = zeroed(image, old, bits, flags);
          if (same(old, next)) continue;
          setEntry(image, table, first + nth, next);
          if (movesAway(old, next)) giveUp(image, old, image.options.passDiscard.request);
        }
      },
    );
    for (const cluster of compressed) {
      const from = Math.max(cluster, range.offset);
      await writeZeroes(image, from, Math.min(cluster + clusterSize, range.end));
    }
    at += count * clusterSize;
    turn++;
    if (turn % TURN === 0) await nextTurn();
  }
}

/** The subclusters of a cluster that lie in the range; all when it has none. */
function unitBits(image: Qcow2Image, cluster: number, { offset, end }: Range): number {
  if (!image.geometry.extendedL2) return ALL;
  const reach = end === image.size ? alignUp(end, image.geometry.clusterSize) : end;
  return subclusterBits(image, offset - cluster, reach - cluster);
}

function zeroed(image: Qcow2Image, old: Entry, bits: number, flags: RequestFlags): Entry {
  const compressed = (old.high & ENTRY_COMPRESSED) !== 0;
  const there = compressed || entryOffset(old.high, old.low) !== 0 || image.hasDataFile;
  const mayGo = (flags & REQ_MAY_UNMAP) !== 0 && there && !image.options.discardNoUnref;
  const gone = bits === ALL && (compressed || mayGo);
  const kept = gone ? { high: 0, low: 0 } : old;
  if (image.geometry.extendedL2) {
    const zero = gone ? ALL : (old.zero | bits) >>> 0;
    return {
      high: kept.high,
      low: kept.low,
      zero,
      allocated: gone ? 0 : (old.allocated & ~bits) >>> 0,
    };
  }
  return { high: kept.high, low: (kept.low | ENTRY_ZERO) >>> 0, zero: 0, allocated: 0 };
}

/** The new entry has no more use for the host clusters of the old one. */
export function movesAway(old: Entry, next: Entry): boolean {
  if ((old.high & ENTRY_COMPRESSED) !== 0) return true;
  return entryOffset(old.high, old.low) !== entryOffset(next.high, next.low);
}

export function same(a: Entry, b: Entry): boolean {
  return a.high === b.high && a.low === b.low && a.zero === b.zero && a.allocated === b.allocated;
}
