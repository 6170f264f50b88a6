// SPDX-License-Identifier: MIT
/**
 * Writes of bytes that another file has, copied by the system from there to where they belong: into clusters
 * that are there and ours alone, or into whole new ones, by the same order as any write. All else is left to
 * `write.ts`, with nothing changed.
 */
import { isPromise, type MaybePromise } from '../../../base/maybe-promise.js';
import { REQ_OFFLOAD } from '../../block-driver.js';
import type { FileRange, RangeFile } from '../../file-range.js';
import { RUN_DATA, Run } from './cluster-map.js';
import type { Qcow2Image } from './image.js';
import { takeNow, writeTakenFrom } from './write-now.js';

/** Filled and used up within one turn, so that a hit allocates nothing. */
const found = new Run();

/** Files of which it is known whether the image's file takes bytes from them. */
const known = new WeakMap<Qcow2Image, WeakMap<RangeFile, boolean>>();

/** @returns bytes written, from the start of the range; 0: nothing was changed. @see BlockDriver.writeFrom */
export function writeGuestFrom(
  image: Qcow2Image,
  offset: number,
  source: FileRange,
): MaybePromise<number> {
  if (image.guard === undefined || image.encryption !== undefined) return 0;
  if (!image.map.lookup(offset, source.length, found)) return 0;
  if (found.kind === RUN_DATA) {
    return found.copied ? copyInPlace(image, found, source) : 0;
  }
  return copyToNew(image, offset, source, found);
}

function copyInPlace(image: Qcow2Image, run: Run, source: FileRange): MaybePromise<number> {
  const { hostOffset, length } = run;
  if (!image.hasDataFile) image.checkOverlap(hostOffset, length);
  const pending = image.data.writeFrom(hostOffset, { ...source, length }, REQ_OFFLOAD);
  return isPromise(pending) ? image.track(pending) : pending;
}

function copyToNew(
  image: Qcow2Image,
  offset: number,
  source: FileRange,
  run: Run,
): MaybePromise<number> {
  const { clusterSize } = image.geometry;
  if (offset % clusterSize !== 0) return 0;
  const files = known.get(image) ?? new WeakMap<RangeFile, boolean>();
  known.set(image, files);
  const takes = files.get(source.file);
  if (takes === false) return 0;
  // Clusters that are taken in vain come free only with the next commit: so the first try is one.
  const longest = takes === true ? source.length : Math.min(source.length, clusterSize);
  // The run, which was just looked up, begins at a cluster and may end within the request's last one.
  const inRun = Math.min(longest, run.length);
  const length = inRun - (inRun % clusterSize);
  if (length === 0) return 0;
  const taken = takeNow(image, offset, length);
  if (taken === undefined) return 0;
  return writeTakenFrom(image, taken, { ...source, length }).then((written) => {
    files.set(source.file, written > 0);
    return written;
  });
}
