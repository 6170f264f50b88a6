// SPDX-License-Identifier: MIT
/**
 * Writes. Into clusters that are there and ours alone, the bytes go straight. Elsewhere new clusters are
 * allocated, what the request leaves of them is copied, and only when all is written do they become part
 * of the image.
 */
import { ENTRY_COMPRESSED, ENTRY_COPIED, entryOffset } from '../../../../protocol/qcow2/entries.js';
import { alignDown, alignUp } from '../../../base/byte-range.js';
import { QCOW2_ALLOCATION_MAX } from '../../../base/limits.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { allocate, reclaim } from './allocate.js';
import { RUN_DATA, Run } from './cluster-map.js';
import { type Copying, writeAround } from './copy-on-write.js';
import { writeData } from './guest-cipher.js';
import type { Qcow2Image } from './image.js';
import { ensureL2, getEntry, withEntries } from './l2-entries.js';
import { link, type Plan } from './link.js';
import { prepareWrite } from './prepare-write.js';
import { takeNow, writeTaken } from './write-now.js';

/** Filled and used up within one turn, so that a hit allocates nothing. */
const found = new Run();

/** Writes all of `buffer`; in range. */
export function writeGuest(image: Qcow2Image, offset: number, buffer: Buffer): MaybePromise<void> {
  const length = buffer.byteLength;
  if (
    image.guard !== undefined &&
    image.map.lookup(offset, length, found) &&
    found.length === length &&
    found.kind === RUN_DATA &&
    found.copied
  ) {
    return writeInPlace(image, found.hostOffset, offset, buffer);
  }
  const taken = takeNow(image, offset, length);
  if (taken !== undefined) return writeTaken(image, taken, offset, buffer);
  return writeLocked(image, offset, buffer);
}

function writeInPlace(
  image: Qcow2Image,
  host: number,
  guest: number,
  buffer: Buffer,
): MaybePromise<void> {
  if (!image.hasDataFile) image.checkOverlap(host, buffer.byteLength);
  const pending = writeData(image, host, guest, buffer);
  return pending === undefined ? undefined : image.track(pending);
}

async function writeLocked(image: Qcow2Image, offset: number, buffer: Buffer): Promise<void> {
  await prepareWrite(image);
  // Often that was all there was to wait for.
  await image.map.find(offset, buffer.byteLength, new Run());
  const taken = takeNow(image, offset, buffer.byteLength);
  if (taken !== undefined) return writeTaken(image, taken, offset, buffer);
  const { clusterSize } = image.geometry;
  const start = alignDown(offset, clusterSize);
  const end = alignUp(offset + buffer.byteLength, clusterSize);
  const hold = await image.clusterLock.acquire(start, end - start);
  try {
    await writeRuns(image, offset, buffer);
  } finally {
    hold.release();
  }
  await reclaim(image);
}

/** For who holds the clusters of the range. */
export async function writeRuns(image: Qcow2Image, offset: number, buffer: Buffer): Promise<void> {
  const waiting: Promise<void>[] = [];
  const run = new Run();
  try {
    for (let at = 0; at < buffer.byteLength; ) {
      await image.map.find(offset + at, buffer.byteLength - at, run);
      if (run.kind === RUN_DATA && run.copied) {
        const part = buffer.subarray(at, at + run.length);
        const pending = writeInPlace(image, run.hostOffset, offset + at, part);
        if (pending !== undefined) waiting.push(pending);
        at += run.length;
      } else {
        at += await writeNew(image, offset + at, buffer.subarray(at));
      }
    }
  } finally {
    await Promise.allSettled(waiting);
  }
  if (waiting.length > 0) await Promise.all(waiting);
}

/** Allocates and writes a first part of the buffer. @returns its length, bytes */
async function writeNew(image: Qcow2Image, offset: number, buffer: Buffer): Promise<number> {
  const { clusterSize } = image.geometry;
  await ensureL2(image, offset);
  const start = alignDown(offset, clusterSize);
  const wanted = Math.min(
    Math.ceil((offset + buffer.byteLength - start) / clusterSize),
    Math.max(QCOW2_ALLOCATION_MAX / clusterSize, 1),
  );
  const plan = await planRun(image, start, wanted);
  const place =
    plan.reuse === undefined
      ? await placeFor(image, start, plan.clusters)
      : { offset: plan.reuse, clusters: plan.clusters, fresh: false };
  const length = Math.min(buffer.byteLength, start + place.clusters * clusterSize - offset);
  const copying: Copying = {
    start,
    host: place.offset,
    unit: plan.whole ? clusterSize : image.geometry.subclusterSize,
    fresh: place.fresh,
    reused: plan.reuse !== undefined,
  };
  try {
    await writeAround(image, copying, offset, buffer.subarray(0, length));
    await link(image, copying, { offset, length, plan });
  } catch (error) {
    if (plan.reuse === undefined && !image.hasDataFile) {
      const bytes = place.clusters * clusterSize;
      image.frees.add({ offset: place.offset, length: bytes, table: false, discard: false });
    }
    throw error;
  }
  return length;
}

/** In an external data file every guest cluster has its place already. */
async function placeFor(
  image: Qcow2Image,
  start: number,
  clusters: number,
): Promise<{ offset: number; clusters: number; fresh: boolean }> {
  if (!image.hasDataFile) return allocate(image, clusters);
  return { offset: start, clusters, fresh: start >= image.data.size };
}

/** How far from the first cluster on the same has to be done. Its first cluster is not written in place. */
async function planRun(image: Qcow2Image, start: number, clusters: number): Promise<Plan> {
  let plan: Plan | undefined;
  await withEntries(image, start, clusters, ({ table, first, count }) => {
    const head = planOf(image, getEntry(image, table, first));
    let same = 1;
    for (; same < count; same++) {
      const next = planOf(image, getEntry(image, table, first + same));
      const follows =
        head.reuse === undefined
          ? next.reuse === undefined
          : next.reuse === head.reuse + same * image.geometry.clusterSize;
      if (!follows || next.whole !== head.whole || next.inPlace) break;
    }
    plan = { ...head, clusters: same };
  });
  if (plan === undefined) throw new Error('qcow2: no entries');
  return plan;
}

function planOf(
  image: Qcow2Image,
  { high, low, zero }: { high: number; low: number; zero: number },
): { reuse: number | undefined; whole: boolean; inPlace: boolean } {
  const { extendedL2 } = image.geometry;
  const compressed = (high & ENTRY_COMPRESSED) !== 0;
  const copied = (high & ENTRY_COPIED) !== 0;
  const host = entryOffset(high, low);
  const there = !compressed && (host !== 0 || (image.hasDataFile && copied));
  if (there && copied) {
    const plainData = extendedL2 ? false : (low & 1) === 0;
    return { reuse: host, whole: !extendedL2, inPlace: plainData && zero === 0 };
  }
  return { reuse: undefined, whole: !extendedL2 || compressed || there, inPlace: false };
}
