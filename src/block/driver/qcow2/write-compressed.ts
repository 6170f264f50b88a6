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
  const compressed = await compressAll(image, buffer);
  const hold = await image.clusterLock.acquire(offset, alignUp(buffer.byteLength, clusterSize));
  try {
    for (let first = 0; first < compressed.length; ) {
      const stored: Buffer[] = [];
      let end = first;
      for (let next = compressed[end]; next !== undefined; next = compressed[++end]) {
        stored.push(next);
      }
      if (stored.length > 0) await storeAll(image, offset + first * clusterSize, stored);
      first = end;
      while (end < compressed.length && compressed[end] === undefined) end++;
      if (end === first) continue;
      const plain = buffer.subarray(first * clusterSize, end * clusterSize);
      await writeRuns(image, offset + first * clusterSize, plain);
      first = end;
    }
  } finally {
    hold.release();
  }
}

/** Undefined for clusters that don't shrink. All have ended when it fails: the buffer is in use no more. */
async function compressAll(image: Qcow2Image, buffer: Buffer): Promise<(Buffer | undefined)[]> {
  const { clusterSize } = image.geometry;
  const waiting: Promise<Buffer | undefined>[] = [];
  for (let at = 0; at < buffer.byteLength; at += clusterSize) {
    const cluster = buffer.subarray(at, at + clusterSize);
    waiting.push(image.codec.compress(padded(cluster, clusterSize)));
  }
  await Promise.allSettled(waiting);
  return Promise.all(waiting);
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

/** Stores compressed clusters that follow each other, from guest offset `offset` on. */
async function storeAll(
  image: Qcow2Image,
  offset: number,
  compressed: readonly Buffer[],
): Promise<void> {
  const { clusterSize } = image.geometry;
  const places: Place[] = [];
  let linked = 0;
  try {
    for (let at = 0; at < compressed.length; at++) {
      await ensureL2(image, offset + at * clusterSize);
    }
    await image.allocation.run(async () => {
      for (const { byteLength: length } of compressed) {
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

/** Those that lie one behind the other are written as one. */
async function writeData(
  image: Qcow2Image,
  places: readonly Place[],
  compressed: readonly Buffer[],
): Promise<void> {
  for (let nth = 0; nth < places.length; ) {
    const { offset } = places[nth] ?? { offset: 0 };
    const joined: Buffer[] = [];
    let end = offset;
    for (; places[nth]?.offset === end; nth++) {
      const bytes = compressed[nth] ?? Buffer.alloc(0);
      joined.push(bytes);
      end += bytes.byteLength;
    }
    image.checkOverlap(offset, end - offset);
    await image.file.write(offset, Buffer.concat(joined));
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
