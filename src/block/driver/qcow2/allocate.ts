// SPDX-License-Identifier: MIT
/** New host clusters. */
import { QCOW2_PENDING_FREE_BYTES_MAX, QCOW2_PENDING_FREES_MAX } from '../../../base/limits.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import type { Qcow2Image } from './image.js';

export interface Allocation {
  /** Host bytes. */
  readonly offset: number;
  readonly clusters: number;
  /** The bytes were never written: they read as zeroes. */
  readonly fresh: boolean;
}

/** Takes 1 to `clustersMax` clusters that follow each other. @throws BlockError DF_NO_SPACE */
export function allocate(image: Qcow2Image, clustersMax: number): MaybePromise<Allocation> {
  const now = allocateNow(image, clustersMax);
  if (now !== undefined) return now;
  return image.allocation.run(
    () => takeHere(image, clustersMax) ?? allocateLocked(image, clustersMax),
  );
}

/** As `allocate`, for who holds the allocation lock. */
export async function allocateLocked(image: Qcow2Image, clustersMax: number): Promise<Allocation> {
  if (image.options.lazyRefcounts) await image.metadata.markDirty();
  const { first, count } = await image.refcounts.allocate(clustersMax);
  return taken(image, first, count);
}

/**
 * Takes exactly so many that follow each other, when that needs no waiting: nobody is at it, and the
 * counts are at hand. @returns undefined when it would have to wait; nothing is changed then
 */
export function allocateNow(image: Qcow2Image, clusters: number): Allocation | undefined {
  return image.allocation.idle ? takeHere(image, clusters) : undefined;
}

/** As `allocateNow`, for who holds the allocation lock. */
function takeHere(image: Qcow2Image, clusters: number): Allocation | undefined {
  if (image.options.lazyRefcounts) return undefined;
  const first = image.refcounts.allocateNow(clusters);
  return first === undefined ? undefined : taken(image, first, clusters);
}

/** Takes exactly so many; for who holds the allocation lock. */
export async function allocateContiguousLocked(
  image: Qcow2Image,
  clusters: number,
): Promise<Allocation> {
  if (image.options.lazyRefcounts) await image.metadata.markDirty();
  return taken(image, await image.refcounts.allocateContiguous(clusters), clusters);
}

function taken(image: Qcow2Image, first: number, clusters: number): Allocation {
  const { clusterSize } = image.geometry;
  const offset = first * clusterSize;
  const fresh = offset >= image.freshFrom;
  image.freshFrom = Math.max(image.freshFrom, offset + clusters * clusterSize);
  image.metadata.unsettle();
  image.checkOverlap(offset, clusters * clusterSize);
  return { offset, clusters, fresh };
}

/** When much has been given up without a flush, it is made to come free. */
export function reclaim(image: Qcow2Image): MaybePromise<void> {
  const { count, bytes } = image.frees;
  if (count <= QCOW2_PENDING_FREES_MAX && bytes <= QCOW2_PENDING_FREE_BYTES_MAX) return;
  return image.metadata.commit();
}
