// SPDX-License-Identifier: MIT
/** Reads. What the cache and the files below have at hand completes at once. */
import { type CompressedRange, compressedRange } from '../../../../protocol/qcow2/entries.js';
import { isPromise, type MaybePromise } from '../../../base/maybe-promise.js';
import type { RangeUse } from '../../file-range.js';
import { RUN_COMPRESSED, RUN_DATA, RUN_UNALLOCATED, RUN_ZERO, Run } from './cluster-map.js';
import { readData } from './guest-cipher.js';
import type { Qcow2Image } from './image.js';
import { readPadded } from './image-io.js';

/** Filled and used up within one turn, so that a hit allocates nothing. */
const found = new Run();

/** Reads all of `buffer`; in range. */
export function readGuest(image: Qcow2Image, offset: number, buffer: Buffer): MaybePromise<void> {
  const length = buffer.byteLength;
  if (image.map.lookup(offset, length, found) && found.length === length) {
    return readRun(image, offset, buffer, found);
  }
  return readRuns(image, offset, buffer);
}

/**
 * Has `use` take a first run of data from the file that it lies in, here or below. Only what the cache has
 * at hand is looked at. @see BlockDriver.readRange
 */
export function readGuestRange(
  image: Qcow2Image,
  offset: number,
  length: number,
  use: RangeUse,
): MaybePromise<number> {
  if (image.encryption !== undefined || !isFound(image, offset, length)) return 0;
  const { kind, hostOffset } = found;
  if (kind !== RUN_DATA && kind !== RUN_UNALLOCATED) return 0;
  const io = kind === RUN_DATA ? image.data : image.backing;
  if (io === undefined) return 0;
  const from = kind === RUN_DATA ? hostOffset : offset;
  const inside = Math.min(found.length, io.size - from);
  if (inside <= 0) return 0;
  const pending = io.readRange(from, inside, use);
  return isPromise(pending) && kind === RUN_DATA ? image.track(pending) : pending;
}

/** Looks for the run at `offset`. What is wrong with the image is told by who reads it then. */
function isFound(image: Qcow2Image, offset: number, length: number): boolean {
  try {
    image.checkUsable();
    return image.map.lookup(offset, length, found);
  } catch {
    return false;
  }
}

/** Several runs, at the same time where they have to wait. While all is at hand nothing is awaited. */
function readRuns(image: Qcow2Image, offset: number, buffer: Buffer): MaybePromise<void> {
  const waiting: Promise<void>[] = [];
  for (let at = 0; at < buffer.byteLength; ) {
    try {
      if (!image.map.lookup(offset + at, buffer.byteLength - at, found)) {
        waiting.push(readLater(image, offset + at, buffer.subarray(at)));
        break;
      }
      // Below, other images of the chain use the same object.
      const { length } = found;
      const pending = readRun(image, offset + at, buffer.subarray(at, at + length), found);
      if (pending !== undefined) waiting.push(pending);
      at += length;
    } catch (error) {
      if (waiting.length === 0) throw error;
      waiting.push(Promise.reject(error));
      break;
    }
  }
  if (waiting.length > 0) return allSettled(waiting);
}

/** Reads the slice that is missing, then the rest. */
async function readLater(image: Qcow2Image, offset: number, buffer: Buffer): Promise<void> {
  const run = new Run();
  await image.map.find(offset, buffer.byteLength, run);
  const first = readRun(image, offset, buffer.subarray(0, run.length), run);
  const waiting = first === undefined ? [] : [first];
  if (run.length < buffer.byteLength) {
    waiting.push(readAsync(image, offset + run.length, buffer.subarray(run.length)));
  }
  if (waiting.length > 0) await allSettled(waiting);
}

/** What it throws comes as a rejection. */
async function readAsync(image: Qcow2Image, offset: number, buffer: Buffer): Promise<void> {
  await readGuest(image, offset, buffer);
}

/** The buffer is the caller's again only when nothing is read into it any more. */
async function allSettled(waiting: readonly Promise<void>[]): Promise<void> {
  if (waiting.length > 1) await Promise.allSettled(waiting);
  await Promise.all(waiting);
}

function readRun(image: Qcow2Image, offset: number, buffer: Buffer, run: Run): MaybePromise<void> {
  switch (run.kind) {
    case RUN_DATA: {
      const pending = readData(image, run.hostOffset, offset, buffer);
      return pending === undefined ? undefined : image.track(pending);
    }
    case RUN_ZERO:
      buffer.fill(0);
      return;
    case RUN_UNALLOCATED: {
      const { backing } = image;
      if (backing !== undefined) return readPadded(backing, offset, buffer);
      buffer.fill(0);
      return;
    }
    case RUN_COMPRESSED:
      return readCompressed(image, offset, buffer, run);
    default:
      throw new Error(`qcow2: a run of kind ${run.kind}`);
  }
}

function readCompressed(
  image: Qcow2Image,
  offset: number,
  buffer: Buffer,
  { high, low }: Run,
): MaybePromise<void> {
  const { clusterBits, clusterSize } = image.geometry;
  const from = offset % clusterSize;
  const range = compressedRange(high, low, clusterBits);
  const kept = image.decompressed.get(range.offset);
  if (kept !== undefined) {
    kept.copy(buffer, 0, from, from + buffer.byteLength);
    return;
  }
  if (image.hasDataFile) {
    image.corrupt({
      message: 'Compressed cluster entry found in image with external data file',
      fatal: true,
    });
  }
  if (buffer.byteLength === clusterSize) return image.track(decompress(image, range, buffer));
  const cluster = Buffer.allocUnsafeSlow(clusterSize);
  const decompressed = decompress(image, range, cluster).then(() => {
    image.decompressed.put(range.offset, cluster);
    cluster.copy(buffer, 0, from, from + buffer.byteLength);
  });
  return image.track(decompressed);
}

async function decompress(
  { file, scratch, codec }: Qcow2Image,
  { offset, length }: CompressedRange,
  cluster: Buffer,
): Promise<void> {
  const room = scratch.take(length);
  try {
    const compressed = room.bytes.subarray(0, length);
    await readPadded(file, offset, compressed);
    await codec.decompress(compressed, cluster);
  } finally {
    room.release();
  }
}
