// SPDX-License-Identifier: MIT
/**
 * Writes of bytes that another file has, copied by the system from there to where they belong: into clusters
 * that are there and ours alone, or into whole new ones, in the order of all writes. All else is left to
 * `write.ts`, with nothing changed.
 */
import { isPromise, type MaybePromise } from '../../../base/maybe-promise.js';
import { REQ_OFFLOAD } from '../../block-driver.js';
import type { FileRange, RangeFile } from '../../file-range.js';
import { RUN_DATA, Run } from './cluster-map.js';
import type { Qcow2Image } from './image.js';
import { ensureL2 } from './l2-entries.js';
import { prepareWrite } from './prepare-write.js';
import { takeNow, writeTakenFrom } from './write-now.js';

/** Filled and used up within one turn, so that a hit allocates nothing. */
const found = new Run();

/** Files of which it is known whether the image's file takes bytes from them. */
const known = new WeakMap<Qcow2Image, WeakMap<RangeFile, boolean>>();

/**
 * @returns bytes written, from the start of the range; 0: what the disk has was not changed
 * @see BlockDriver.writeFrom
 */
export function writeGuestFrom(
  image: Qcow2Image,
  offset: number,
  source: FileRange,
): MaybePromise<number> {
  if (image.encryption !== undefined || known.get(image)?.get(source.file) === false) return 0;
  if (isReady(image, offset)) return writeReady(image, offset, source);
  return getReady(image, offset).then(() => writeReady(image, offset, source));
}

/** The image may be changed, and its L2 table for the place is its own and in memory. */
function isReady({ guard, map, geometry }: Qcow2Image, offset: number): boolean {
  const index = Math.floor(offset / geometry.bytesPerL2);
  const isOwn = map.l1.l2Offset(index) !== 0 && map.l1.isCopied(index);
  return guard !== undefined && isOwn && map.lookup(offset, 1, found);
}

async function getReady(image: Qcow2Image, offset: number): Promise<void> {
  await prepareWrite(image);
  await ensureL2(image, offset);
  await image.map.find(offset, 1, new Run());
}

function writeReady(image: Qcow2Image, offset: number, source: FileRange): MaybePromise<number> {
  // Unless the table was thrown out of memory again.
  if (!isReady(image, offset)) return 0;
  image.map.lookup(offset, source.length, found);
  if (found.kind !== RUN_DATA) return copyToNew(image, offset, source, found);
  return found.copied ? copyInPlace(image, found, source) : 0;
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
  // The run, which was just looked up, begins at a cluster and may end within the request's last one.
  const inRun = Math.min(source.length, run.length);
  const length = inRun - (inRun % clusterSize);
  if (files.get(source.file) === true) return copyClusters(image, offset, { ...source, length });
  return copyFirst(image, offset, { ...source, length }, files);
}

/** Clusters that are taken in vain come free only with the next commit: so the first try is one of them. */
async function copyFirst(
  image: Qcow2Image,
  offset: number,
  source: FileRange,
  files: WeakMap<RangeFile, boolean>,
): Promise<number> {
  const first = Math.min(image.geometry.clusterSize, source.length);
  const pending = copyClusters(image, offset, { ...source, length: first });
  if (!isPromise(pending)) return 0;
  const written = await pending;
  files.set(source.file, written > 0);
  const length = source.length - first;
  if (written === 0 || length === 0) return written;
  const rest = { file: source.file, offset: source.offset + first, length };
  return first + (await writeGuestFrom(image, offset + first, rest));
}

/** Whole clusters that are all alike. @returns 0 at once where there is something to wait for */
function copyClusters(image: Qcow2Image, offset: number, source: FileRange): MaybePromise<number> {
  const taken = source.length > 0 ? takeNow(image, offset, source.length) : undefined;
  return taken === undefined ? 0 : writeTakenFrom(image, taken, source);
}
