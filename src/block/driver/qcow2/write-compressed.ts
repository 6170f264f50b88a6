// SPDX-License-Identifier: MIT
/**
 * Writes of whole clusters that are to be stored compressed. What does not shrink is stored as it is. What
 * was there before is given up, as with any other write to new clusters.
 */
import { compressedEntry } from '../../../../protocol/qcow2/entries.js';
import { alignUp } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import { QCOW2_COMPRESS_AT_ONCE } from '../../../base/limits.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { reclaim } from './allocate.js';
import type { Qcow2Image } from './image.js';
import { ensureL2, getEntry, giveUp, setEntry, withEntries } from './l2-entries.js';
import { prepareWrite } from './prepare-write.js';
import { writeRuns } from './write.js';

/**
 * Writes all of `buffer`; in range.
 * @throws BlockError DF_INVALID unless it begins with a cluster, and ends with one or with the image
 */
export async function writeCompressed(
  image: Qcow2Image,
  offset: number,
  buffer: Buffer,
): Promise<void> {
  const { clusterSize } = image.geometry;
  const end = offset + buffer.byteLength;
  if (offset % clusterSize !== 0 || (end % clusterSize !== 0 && end !== image.size)) {
    const message = `Only whole clusters can be compressed, not ${buffer.byteLength} bytes at ${offset}`;
    throw new BlockError('DF_INVALID', message, { op: 'write', offset });
  }
  if (image.hasDataFile) {
    throw new BlockError('DF_NOT_SUPPORTED', 'An external data file has no compressed clusters');
  }
  if (image.encryption !== undefined) {
    throw new BlockError('DF_NOT_SUPPORTED', 'Compressed clusters can not be encrypted');
  }
  await prepareWrite(image);
  const step = QCOW2_COMPRESS_AT_ONCE * clusterSize;
  for (let at = 0; at < buffer.byteLength; at += step) {
    await writeSome(image, offset + at, buffer.subarray(at, at + step));
  }
  await reclaim(image);
}

/** A few clusters, compressed at the same time and then stored in their order. */
async function writeSome(image: Qcow2Image, offset: number, buffer: Buffer): Promise<void> {
  const { clusterSize } = image.geometry;
  const room = image.scratch.take(alignUp(buffer.byteLength, clusterSize));
  try {
    const lengths = await compressAll(image, buffer, room.bytes);
    const hold = await image.clusterLock.acquire(offset, lengths.length * clusterSize);
    try {
      await storeAll(image, offset, { buffer, compressed: room.bytes, lengths });
    } finally {
      hold.release();
    }
  } finally {
    room.release();
  }
}

/**
 * Compresses each cluster into its place in `target`.
 * @returns lengths; undefined for clusters that don't shrink. All have ended when it fails.
 */
async function compressAll(
  image: Qcow2Image,
  buffer: Buffer,
  target: Buffer,
): Promise<(number | undefined)[]> {
  const { clusterSize } = image.geometry;
  const waiting: Promise<number | undefined>[] = [];
  for (let at = 0; at < buffer.byteLength; at += clusterSize) {
    const cluster = padded(buffer.subarray(at, at + clusterSize), clusterSize);
    waiting.push(image.codec.compress(cluster, target.subarray(at, at + clusterSize)));
  }
  await Promise.allSettled(waiting);
  return Promise.all(waiting);
}

interface Clusters {
  /** As they were given. */
  readonly buffer: Buffer;
  /** Each at its offset in `buffer`. */
  readonly compressed: Buffer;
  readonly lengths: readonly (number | undefined)[];
}

/** For who holds the clusters from guest offset `offset` on. */
async function storeAll(image: Qcow2Image, offset: number, clusters: Clusters): Promise<void> {
  const { clusterSize } = image.geometry;
  const { buffer, compressed, lengths } = clusters;
  for (let first = 0; first < lengths.length; ) {
    const shrinks = lengths[first] !== undefined;
    let end = first + 1;
    while (end < lengths.length && (lengths[end] !== undefined) === shrinks) end++;
    const from = first * clusterSize;
    if (shrinks) {
      const some = lengths.slice(first, end).map((length) => length ?? 0);
      await storeCompressed(image, offset + from, compressed.subarray(from), some);
    } else {
      await writeRuns(image, offset + from, buffer.subarray(from, end * clusterSize));
    }
    first = end;
  }
}

/** What lies in the last cluster behind the end of the image is zero. */
function padded(cluster: Buffer, clusterSize: number): Buffer {
  if (cluster.byteLength === clusterSize) return cluster;
  const whole = Buffer.alloc(clusterSize);
  cluster.copy(whole);
  return whole;
}

/** Where a compressed cluster lies, host bytes. */
interface Place {
  readonly offset: number;
  readonly length: number;
}

/** @param compressed a cluster's place for each of `lengths` */
async function storeCompressed(
  image: Qcow2Image,
  offset: number,
  compressed: Buffer,
  lengths: readonly number[],
): Promise<void> {
  const { clusterSize } = image.geometry;
  const places: Place[] = [];
  let linked = 0;
  try {
    for (let at = 0; at < lengths.length; at++) await ensureL2(image, offset + at * clusterSize);
    await image.allocation.run(async () => {
      for (const length of lengths) {
        places.push({ offset: await image.compressedSpace.take(length), length });
      }
    });
    await writeData(image, places, compressed);
    while (linked < places.length) {
      linked += await link(image, offset + linked * clusterSize, places.slice(linked));
    }
  } catch (error) {
    for (const place of places.slice(linked)) giveUp(image, entryOf(image, place), false);
    throw error;
  }
}

/** Those that lie one behind the other are moved together, and written as one. */
async function writeData(
  image: Qcow2Image,
  places: readonly Place[],
  compressed: Buffer,
): Promise<void> {
  const { clusterSize } = image.geometry;
  for (let nth = 0; nth < places.length; ) {
    const { offset } = places[nth] ?? { offset: 0 };
    const from = nth * clusterSize;
    let length = 0;
    for (let next = places[nth]; next?.offset === offset + length; next = places[nth]) {
      const at = nth * clusterSize;
      compressed.copyWithin(from + length, at, at + next.length);
      length += next.length;
      nth++;
    }
    image.checkOverlap(offset, length);
    await image.file.write(offset, compressed.subarray(from, from + length));
  }
  // Not before: a barrier that came meanwhile did not take it along.
  image.metadata.unsettle();
}

function entryOf(image: Qcow2Image, place: Place): { high: number; low: number } {
  const [high, low] = compressedEntry(place, image.geometry.clusterBits);
  return { high, low };
}

/** They become part of the image, as far as one slice goes. @returns how many have */
function link(image: Qcow2Image, offset: number, places: readonly Place[]): MaybePromise<number> {
  return withEntries(image, offset, places.length, ({ table, first, count }) => {
    places.slice(0, count).forEach((place, nth) => {
      const old = getEntry(image, table, first + nth);
      setEntry(image, table, first + nth, entryOf(image, place));
      giveUp(image, old, false);
    });
  });
}
