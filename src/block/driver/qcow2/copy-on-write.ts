// SPDX-License-Identifier: MIT
/** A write into clusters that are not part of the image yet, with what has to be copied around it. */
import { alignDown, alignUp } from '../../../base/byte-range.js';
import { QCOW2_JOINED_WRITE_MAX } from '../../../base/limits.js';
import { RUN_DATA, RUN_UNALLOCATED, RUN_ZERO, Run } from './cluster-map.js';
import { writeData } from './guest-cipher.js';
import type { Qcow2Image } from './image.js';
import { readGuest } from './read.js';

/** Where the request goes. */
export interface Copying {
  /** Guest offset of the first cluster, bytes. */
  readonly start: number;
  /** Host offset of the first cluster, bytes. */
  readonly host: number;
  /** Units of this length, bytes, have to be filled as a whole. */
  readonly unit: number;
  /** The host clusters read as zeroes. */
  readonly fresh: boolean;
  /** They belong to these guest clusters already. */
  readonly reused: boolean;
}

/** Bytes before and after a request that have to be filled; nothing: they are right as they are. */
interface Edge {
  readonly from: number;
  readonly to: number;
  readonly zero: boolean;
}

/** Writes the buffer, and the old content of its first and last unit around it. */
export async function writeAround(
  image: Qcow2Image,
  copying: Copying,
  offset: number,
  buffer: Buffer,
): Promise<void> {
  await writeUnits(image, copying, offset, buffer);
  // Not before: a barrier that came meanwhile did not take it along.
  image.metadata.unsettle();
}

async function writeUnits(
  image: Qcow2Image,
  copying: Copying,
  offset: number,
  buffer: Buffer,
): Promise<void> {
  const { start, host, unit } = copying;
  // What was never written of an encrypted image reads as arbitrary bytes.
  const fresh = copying.fresh && image.encryption === undefined;
  const end = offset + buffer.byteLength;
  if (offset % unit === 0 && end % unit === 0) return writePart(image, copying, offset, buffer);
  const head = (await inPlace(image, copying, offset))
    ? { from: offset, to: offset, zero: true }
    : await edge(image, alignDown(offset, unit), offset);
  const tail = (await inPlace(image, copying, end - 1))
    ? { from: end, to: end, zero: true }
    : await edge(image, end, alignUp(end, unit));
  const from = fresh && head.zero ? offset : head.from;
  const to = fresh && tail.zero ? end : tail.to;
  if (from === offset && to === end) return writePart(image, copying, offset, buffer);
  if (!image.hasDataFile) image.checkOverlap(host + from - start, to - from);
  if (to - from <= QCOW2_JOINED_WRITE_MAX) {
    const joined = Buffer.allocUnsafe(to - from);
    if (from < offset) await fill(image, head, joined.subarray(0, offset - from));
    buffer.copy(joined, offset - from);
    if (to > end) await fill(image, tail, joined.subarray(end - from));
    await writeData(image, host + from - start, from, joined);
    return;
  }
  const results = await Promise.allSettled([
    writeData(image, host + offset - start, offset, buffer),
    from < offset ? copyEdge(image, head, host - start) : undefined,
    to > end ? copyEdge(image, tail, host - start) : undefined,
  ]);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

/** Writes the buffer and nothing around it. */
async function writePart(
  image: Qcow2Image,
  { start, host }: Copying,
  offset: number,
  buffer: Buffer,
): Promise<void> {
  const to = host + offset - start;
  if (!image.hasDataFile) image.checkOverlap(to, buffer.byteLength);
  image.metadata.unsettle();
  const pending = writeData(image, to, offset, buffer);
  if (pending !== undefined) await pending;
}

/**
 * The subcluster is there already: what is around the request in it stays, and must, because others may
 * be writing there.
 */
async function inPlace(image: Qcow2Image, { reused }: Copying, offset: number): Promise<boolean> {
  if (!reused) return false;
  const run = new Run();
  await image.map.find(offset, 1, run);
  return run.kind === RUN_DATA;
}

async function copyEdge(image: Qcow2Image, part: Edge, shift: number): Promise<void> {
  const length = part.to - part.from;
  if (part.zero && image.encryption === undefined) {
    await image.data.writeZeroes(part.from + shift, length);
    return;
  }
  const content = Buffer.allocUnsafe(length);
  await fill(image, part, content);
  await writeData(image, part.from + shift, part.from, content);
}

async function fill(image: Qcow2Image, part: Edge, target: Buffer): Promise<void> {
  if (part.zero) target.fill(0);
  else await readGuest(image, part.from, target);
}

async function edge(image: Qcow2Image, from: number, to: number): Promise<Edge> {
  return { from, to, zero: from === to || (await readsAsZero(image, from, to - from)) };
}

/** The range is known to read as zeroes, without reading it. */
export async function readsAsZero(
  image: Qcow2Image,
  offset: number,
  length: number,
): Promise<boolean> {
  const run = new Run();
  for (let at = offset; at < offset + length; ) {
    await image.map.find(at, offset + length - at, run);
    const { backing } = image;
    const empty = run.kind === RUN_UNALLOCATED && (backing === undefined || at >= backing.size);
    if (run.kind !== RUN_ZERO && !empty) return false;
    at += run.length;
  }
  return true;
}
