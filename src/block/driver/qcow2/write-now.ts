// SPDX-License-Identifier: MIT
/**
 * The common allocating write without waiting: into clusters that nothing lies in or below, with all
 * tables in memory. Cluster, data and entry come within one turn, where `write.ts` takes a dozen
 * promises for the same. What does not fit is left to that, with nothing changed.
 */
import { alignDown, alignUp } from '../../../base/byte-range.js';
import { QCOW2_ALLOCATION_MAX } from '../../../base/limits.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import type { RangeHold } from '../../../base/range-lock.js';
import { REQ_OFFLOAD } from '../../block-driver.js';
import type { FileRange } from '../../file-range.js';
import { type Allocation, allocateNow, reclaim } from './allocate.js';
import { RUN_UNALLOCATED, Run } from './cluster-map.js';
import { type Copying, writeAround } from './copy-on-write.js';
import type { Qcow2Image } from './image.js';
import { link } from './link.js';

/** Filled and used up within one turn. */
const found = new Run();

/** Clusters for a request, and the hold on their guest range. */
interface Taken {
  readonly place: Allocation;
  readonly hold: RangeHold;
}

/**
 * Takes new clusters for the bytes of a request when nothing is in the way.
 * @returns undefined: nothing was taken
 */
export function takeNow(image: Qcow2Image, offset: number, length: number): Taken | undefined {
  const { clusterSize, extendedL2 } = image.geometry;
  if (image.guard === undefined || image.hasDataFile || length === 0) return undefined;
  if (extendedL2 || image.encryption !== undefined || length > QCOW2_ALLOCATION_MAX) {
    return undefined;
  }
  image.checkUsable();
  const start = alignDown(offset, clusterSize);
  const end = alignUp(offset + length, clusterSize);
  if (!isEmpty(image, start, end)) return undefined;
  const whole = offset === start && offset + length === end;
  const { backing } = image;
  if (!whole && backing !== undefined && start < backing.size) return undefined;
  const hold = image.clusterLock.tryAcquire(start, end - start);
  if (hold === undefined) return undefined;
  try {
    const place = allocateNow(image, (end - start) / clusterSize);
    if (place !== undefined) return { place, hold };
  } catch (error) {
    hold.release();
    throw error;
  }
  hold.release();
  return undefined;
}

/** Nothing is allocated there, and the L2 table is ours, with its slice in memory. */
function isEmpty(image: Qcow2Image, start: number, end: number): boolean {
  const { l1 } = image.map;
  const index = Math.floor(start / image.geometry.bytesPerL2);
  if (l1.l2Offset(index) === 0 || !l1.isCopied(index)) return false;
  return (
    image.map.lookup(start, end - start, found) &&
    found.kind === RUN_UNALLOCATED &&
    found.hostOffset === 0 &&
    found.length === end - start
  );
}

/** Writes all of `buffer` to clusters of `takeNow`, in the same turn, and makes them part of the image. */
export function writeTaken(
  image: Qcow2Image,
  taken: Taken,
  offset: number,
  buffer: Buffer,
): MaybePromise<void> {
  const { place, hold } = taken;
  const { clusterSize } = image.geometry;
  const length = buffer.byteLength;
  const copying: Copying = {
    start: hold.offset,
    host: place.offset,
    unit: clusterSize,
    fresh: place.fresh,
    reused: false,
  };
  const plan = { clusters: place.clusters, reuse: undefined, whole: true };
  const finish = (): MaybePromise<number> => {
    // Not before: a barrier that came meanwhile did not take the data along.
    image.metadata.unsettle();
    return link(image, copying, { offset, length, plan });
  };
  try {
    const pending =
      place.fresh || length === hold.length
        ? image.data.write(place.offset + offset - hold.offset, buffer)
        : writeAround(image, copying, offset, buffer);
    const linked = pending === undefined ? finish() : pending.then(finish);
    if (typeof linked !== 'number') return later(image, taken, linked);
  } catch (error) {
    giveBack(image, taken);
    throw error;
  }
  hold.release();
  return reclaim(image);
}

async function later(image: Qcow2Image, taken: Taken, linked: Promise<number>): Promise<void> {
  try {
    await linked;
  } catch (error) {
    giveBack(image, taken);
    throw error;
  }
  taken.hold.release();
  await reclaim(image);
}

/**
 * As `writeTaken` for whole clusters, whose bytes the system copies from another file.
 * @returns bytes written: all, or 0 where that could not be done; the clusters come free again then
 */
export async function writeTakenFrom(
  image: Qcow2Image,
  taken: Taken,
  source: FileRange,
): Promise<number> {
  const { place, hold } = taken;
  const { offset: start, length } = hold;
  const { clusterSize } = image.geometry;
  try {
    const copied = await image.data.writeFrom(place.offset, source, REQ_OFFLOAD);
    if (copied < length) {
      giveBack(image, taken);
      return 0;
    }
    // Not before: a barrier that came meanwhile did not take the data along.
    image.metadata.unsettle();
    const { offset: host, fresh } = place;
    const copying: Copying = { start, host, unit: clusterSize, fresh, reused: false };
    const plan = { clusters: place.clusters, reuse: undefined, whole: true };
    await link(image, copying, { offset: start, length, plan });
  } catch (error) {
    giveBack(image, taken);
    throw error;
  }
  hold.release();
  await reclaim(image);
  return length;
}

/** After a failure the clusters come free again. */
function giveBack(image: Qcow2Image, { place, hold }: Taken): void {
  const length = place.clusters * image.geometry.clusterSize;
  image.frees.add({ offset: place.offset, length, table: false, discard: false });
  hold.release();
}
