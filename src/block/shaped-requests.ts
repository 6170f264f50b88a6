// SPDX-License-Identifier: MIT
/**
 * Requests that don't fit their driver as they are: unaligned ones are padded (read-modify-write
 * under the range lock), long ones are split, FUA and zeroes are made of what the driver has.
 */
import { alignDown, alignUp } from '../base/byte-range.js';
import { BlockError } from '../base/errors.js';
import { ZERO_BUFFER_LENGTH } from '../base/limits.js';
import { isPromise, type MaybePromise } from '../base/maybe-promise.js';
import {
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  REQ_WRITE_COMPRESSED,
  REQ_WRITE_UNCHANGED,
  type RequestFlags,
} from './block-driver.js';
import type { BlockNode } from './node.js';
import { PERM_WRITE, PERM_WRITE_UNCHANGED } from './permissions.js';

const ZEROES = Buffer.alloc(ZERO_BUFFER_LENGTH);

/** Longest transfer of the driver that keeps to its alignment, bytes; Infinity when it has no limit. */
function transferMax(node: BlockNode): number {
  const { maxTransfer, requestAlignment } = node.limits;
  if (maxTransfer === 0) return Number.POSITIVE_INFINITY;
  return Math.max(alignDown(maxTransfer, requestAlignment), requestAlignment);
}

export async function read(
  node: BlockNode,
  offset: number,
  buffer: Buffer,
  flags: RequestFlags,
): Promise<void> {
  const { requestAlignment: alignment } = node.limits;
  const start = alignDown(offset, alignment);
  const end = alignUp(offset + buffer.byteLength, alignment);
  if (start === offset && end === offset + buffer.byteLength) {
    return readSplit(node, offset, buffer, flags);
  }
  const padded = Buffer.allocUnsafeSlow(end - start);
  await readSplit(node, start, padded, flags);
  padded.copy(buffer, 0, offset - start);
}

async function readSplit(
  node: BlockNode,
  offset: number,
  buffer: Buffer,
  flags: RequestFlags,
): Promise<void> {
  const max = transferMax(node);
  for (let at = 0; at < buffer.byteLength; ) {
    const length = Math.min(max, buffer.byteLength - at);
    const pending = node.driver.read(offset + at, buffer.subarray(at, at + length), flags);
    if (pending !== undefined) await pending;
    at += length;
  }
}

export function write(
  node: BlockNode,
  offset: number,
  buffer: Buffer,
  flags: RequestFlags,
): MaybePromise<void> {
  if (buffer.byteLength === 0) return;
  if (node.options.detectZeroes !== 'off' && isZero(buffer)) {
    const unmap = node.options.detectZeroes === 'unmap' ? REQ_MAY_UNMAP : 0;
    const passed = flags & ~REQ_WRITE_COMPRESSED;
    return writeZeroes(node, offset, buffer.byteLength, passed | unmap);
  }
  return writeLocked(node, offset, buffer, flags);
}

async function writeLocked(
  node: BlockNode,
  offset: number,
  buffer: Buffer,
  flags: RequestFlags,
): Promise<void> {
  const { requestAlignment: alignment } = node.limits;
  const start = alignDown(offset, alignment);
  const end = alignUp(offset + buffer.byteLength, alignment);
  const padded = start !== offset || end !== offset + buffer.byteLength;
  const held = node.rangeLock.acquire(start, end - start, { shared: !padded });
  const hold = isPromise(held) ? await held : held;
  try {
    if (!padded) return await writeSplit(node, offset, buffer, flags);
    await node.inFlight.whenNoPlainWriteOverlaps(start, end - start);
    const whole = await modify(node, start, end, { offset, buffer });
    await writeSplit(node, start, whole, flags);
  } finally {
    hold.release();
  }
}

/** The aligned bytes around a write, with the write's own in place. */
async function modify(
  node: BlockNode,
  start: number,
  end: number,
  change: { readonly offset: number; readonly buffer: Buffer },
): Promise<Buffer> {
  const { requestAlignment: alignment } = node.limits;
  const whole = Buffer.alloc(end - start);
  const readable = alignUp(node.driver.size, alignment);
  const fill = async (from: number): Promise<void> => {
    if (from >= readable) return;
    await node.driver.read(from, whole.subarray(from - start, from - start + alignment), 0);
  };
  const last = end - alignment;
  if (start !== change.offset) await fill(start);
  const tailPadded = change.offset + change.buffer.byteLength !== end;
  if (tailPadded && (last !== start || start === change.offset)) await fill(last);
  change.buffer.copy(whole, change.offset - start);
  return whole;
}

/** Writes an aligned buffer in the pieces that the driver takes, then makes FUA true. */
async function writeSplit(
  node: BlockNode,
  offset: number,
  buffer: Buffer,
  flags: RequestFlags,
): Promise<void> {
  const { driver } = node;
  const max = transferMax(node);
  const emulateFua = (flags & REQ_FUA) !== 0 && !driver.features.fua;
  const passed = emulateFua ? flags & ~REQ_FUA : flags;
  for (let at = 0; at < buffer.byteLength; ) {
    const length = Math.min(max, buffer.byteLength - at);
    const pending = driver.write?.(offset + at, buffer.subarray(at, at + length), passed);
    if (pending !== undefined) await pending;
    at += length;
  }
  if (emulateFua) await flush(node);
}

/** Buffer of zeroes by comparison with one: stops at the first other byte. */
export function isZero(buffer: Buffer): boolean {
  for (let at = 0; at < buffer.byteLength; at += ZEROES.byteLength) {
    const end = Math.min(at + ZEROES.byteLength, buffer.byteLength);
    if (ZEROES.compare(buffer, at, end, 0, end - at) !== 0) return false;
  }
  return true;
}

export function writeZeroes(
  node: BlockNode,
  offset: number,
  length: number,
  flags: RequestFlags,
): MaybePromise<void> {
  const { driver } = node;
  const { requestAlignment: alignment, maxWriteZeroes } = driver.limits;
  const direct =
    offset % alignment === 0 &&
    length % alignment === 0 &&
    (maxWriteZeroes === 0 || length <= maxWriteZeroes) &&
    node.rangeLock.count === 0 &&
    ((flags & REQ_FUA) === 0 || driver.features.fua);
  if (!direct || !driver.features.writeZeroes) return zeroInPieces(node, offset, length, flags);
  try {
    const pending = driver.writeZeroes?.(offset, length, flags);
    if (pending === undefined) return;
    if (alignment > 1) node.inFlight.plainWrite(offset, length, pending);
    return pending.catch((error: unknown) => zeroFallback(error, node, { offset, length, flags }));
  } catch (error) {
    return zeroFallback(error, node, { offset, length, flags });
  }
}

interface ZeroRequest {
  readonly offset: number;
  readonly length: number;
  readonly flags: RequestFlags;
}

/** Writes zeroes where the driver can't make them, unless only the fast way is wanted. */
function zeroFallback(
  error: unknown,
  node: BlockNode,
  { offset, length, flags }: ZeroRequest,
): Promise<void> {
  const unsupported = error instanceof BlockError && error.code === 'DF_NOT_SUPPORTED';
  if (!unsupported || (flags & REQ_NO_FALLBACK) !== 0) return Promise.reject(error);
  return writeZeroBuffers(node, offset, length, flags);
}

/** Unaligned ends are written, the middle is zeroed by the driver if it can, written if it can't. */
async function zeroInPieces(
  node: BlockNode,
  offset: number,
  length: number,
  flags: RequestFlags,
): Promise<void> {
  const { driver } = node;
  if (!driver.features.writeZeroes) {
    if ((flags & REQ_NO_FALLBACK) !== 0) throw noFastZero(node);
    return writeZeroBuffers(node, offset, length, flags);
  }
  const { requestAlignment: alignment, maxWriteZeroes } = driver.limits;
  const passed = driver.features.fua ? flags : flags & ~REQ_FUA;
  const max =
    maxWriteZeroes === 0 ? length : Math.max(alignDown(maxWriteZeroes, alignment), alignment);
  const first = Math.min(alignUp(offset, alignment), offset + length);
  const last = Math.max(alignDown(offset + length, alignment), first);
  if (first > offset) await writeZeroBuffers(node, offset, first - offset, passed);
  for (let at = first; at < last; ) {
    const piece = Math.min(max, last - at);
    await zeroPiece(node, at, piece, passed);
    at += piece;
  }
  if (offset + length > last) {
    await writeZeroBuffers(node, last, offset + length - last, passed);
  }
  if ((flags & REQ_FUA) !== 0 && !driver.features.fua) await flush(node);
}

async function zeroPiece(
  node: BlockNode,
  offset: number,
  length: number,
  flags: RequestFlags,
): Promise<void> {
  const held = node.rangeLock.acquire(offset, length, { shared: true });
  const hold = isPromise(held) ? await held : held;
  try {
    await node.driver.writeZeroes?.(offset, length, flags);
  } catch (error) {
    const unsupported = error instanceof BlockError && error.code === 'DF_NOT_SUPPORTED';
    if (!unsupported || (flags & REQ_NO_FALLBACK) !== 0) throw error;
    await writeZeroPieces(node, offset, length, flags);
  } finally {
    hold.release();
  }
}

type Zeroing = (
  node: BlockNode,
  offset: number,
  length: number,
  flags: RequestFlags,
) => Promise<void>;

/** Zeroes as data, piece after piece. */
function zeroesBy(write: typeof writeLocked): Zeroing {
  return async (node, offset, length, flags) => {
    const passed = flags & (REQ_FUA | REQ_WRITE_UNCHANGED);
    for (let at = 0; at < length; ) {
      const piece = Math.min(ZEROES.byteLength, length - at);
      await write(node, offset + at, ZEROES.subarray(0, piece), passed);
      at += piece;
    }
  };
}

const writeZeroBuffers = zeroesBy(writeLocked);
/** For who holds the range's lock already. */
const writeZeroPieces = zeroesBy(writeSplit);

function noFastZero(node: BlockNode): BlockError {
  return new BlockError(
    'DF_NOT_SUPPORTED',
    `node '${node.name}' can't zero faster than it can write`,
    { node: node.name, op: 'write zeroes' },
  );
}

/** The whole blocks of the range, in the pieces that the driver takes. */
export function discard(node: BlockNode, offset: number, length: number): MaybePromise<void> {
  const { requestAlignment: alignment, maxDiscard } = node.limits;
  const first = alignUp(offset, alignment);
  const last = alignDown(offset + length, alignment);
  if (last <= first) return;
  const long = maxDiscard !== 0 && last - first > maxDiscard;
  if (long || node.rangeLock.count > 0) return discardLocked(node, first, last);
  try {
    const pending = node.driver.discard?.(first, last - first);
    if (pending === undefined) return;
    if (alignment > 1) node.inFlight.plainWrite(first, last - first, pending);
    return pending.catch(ignoreUnsupported);
  } catch (error) {
    ignoreUnsupported(error);
  }
}

async function discardLocked(node: BlockNode, first: number, last: number): Promise<void> {
  const { requestAlignment: alignment, maxDiscard } = node.limits;
  const max =
    maxDiscard === 0 ? last - first : Math.max(alignDown(maxDiscard, alignment), alignment);
  const held = node.rangeLock.acquire(first, last - first, { shared: true });
  const hold = isPromise(held) ? await held : held;
  try {
    for (let at = first; at < last; at += max) {
      await node.driver.discard?.(at, Math.min(max, last - at));
    }
  } catch (error) {
    ignoreUnsupported(error);
  } finally {
    hold.release();
  }
}

/** A discard is advice: a driver that can't is no failure. */
function ignoreUnsupported(error: unknown): void {
  if (!(error instanceof BlockError && error.code === 'DF_NOT_SUPPORTED')) throw error;
}

/** The driver first, then the children that it writes to. */
export function flush(node: BlockNode): MaybePromise<void> {
  if (node.driver.flushesChildren === true) return node.driver.flush?.();
  const own = node.options.cache.noFlush ? undefined : node.driver.flush?.();
  if (own !== undefined) return own.then(() => flushChildren(node));
  return flushChildren(node);
}

function flushChildren(node: BlockNode): MaybePromise<void> {
  let waiting: Promise<void>[] | undefined;
  for (const edge of node.children.values()) {
    if ((edge.taken & (PERM_WRITE | PERM_WRITE_UNCHANGED)) === 0) continue;
    // What is saved there is flushed by who makes the copy; writers must not wait for it.
    if (edge.role === 'target') continue;
    const pending = edge.flush();
    if (pending !== undefined) {
      waiting ??= [];
      waiting.push(pending);
    }
  }
  if (waiting !== undefined) return Promise.all(waiting).then(() => undefined);
}
