// SPDX-License-Identifier: MIT
/** Copies the content of one image into another, status first, several requests in flight. */
import { alignUp } from '../../base/byte-range.js';
import { KIB, MIB } from '../../base/limits.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import { RateLimit } from '../../base/rate-limit.js';
import type { BlockBackend } from '../../block/backend.js';
import { DirtyBitmap } from '../../block/bitmap/dirty-bitmap.js';
import {
  REQ_MAY_UNMAP,
  REQ_OFFLOAD,
  REQ_WRITE_COMPRESSED,
  STATUS_ZERO,
} from '../../block/block-driver.js';
import type { ChainExtent } from '../../block/block-status.js';
import type { RangeUse } from '../../block/file-range.js';
import { isZero } from '../../block/shaped-requests.js';
import { CopyLoop, type CopyTarget } from '../../job/copy-loop.js';
import { COPY_WINDOW_MAX } from '../../job/copy-window.js';
import type { CopySource } from './copy-source.js';

const CHUNK_LENGTH = 512 * KIB;
const WINDOW_LENGTH = 8 * MIB;
const GRANULE = 64 * KIB;
/** What the system copies in one piece, bytes: each is a change of the file system's tables. */
const OFFLOAD_CHUNK_LENGTH = 4 * MIB;

export interface CopyImageOptions {
  readonly source: CopySource;
  readonly target: BlockBackend;
  /** Bytes of the source, from where on and how many. Default: all. */
  readonly offset?: number;
  readonly length?: number;
  /** The target reads as zeroes: what is zero is left out. */
  readonly targetIsZero: boolean;
  /** Which extents are copied; the target reads right where the others are. Default: all. */
  readonly wants?: (extent: ChainExtent, offset: number) => boolean;
  /**
   * Zeroes of so many bytes in a row become holes, where they begin and end at multiples of it.
   * 0: everything is written, so that the target has room for it.
   */
  readonly sparseLength: number;
  /** Store whole clusters compressed; the target must be one that can. */
  readonly compressed?: boolean;
  /**
   * The system copies data from file to file, where it can; zeroes in it are not looked for then. Not
   * together with `compressed`.
   */
  readonly offload?: boolean;
  /** Requests in flight at most. */
  readonly requestsMax?: number | undefined;
  /** Bytes a second; 0: no limit. */
  readonly speed?: number | undefined;
  readonly progress?: (done: number, total: number) => void;
}

/** @throws BlockError what reading or writing throws; the target is flushed when it returns */
export async function copyImage(options: CopyImageOptions): Promise<void> {
  const { source, target, offset = 0, progress } = options;
  const size = options.length ?? source.size - offset;
  const unit = options.compressed === true ? target.limits.compressedUnit : 0;
  const granularity = Math.max(GRANULE, unit);
  const bitmap = new DirtyBitmap({ size, granularity });
  const sparse = options.sparseLength > 0;
  await markWanted(bitmap, options, size);
  let done = size - Math.min(size, bitmap.count);
  const written = sparse ? sparseTarget(options, unit) : plainTarget(target, unit);
  const chunkLength = options.offload === true ? OFFLOAD_CHUNK_LENGTH : CHUNK_LENGTH;
  const loop = new CopyLoop({
    bitmap,
    size,
    source: {
      read: (at, buffer) => source.read(offset + at, buffer),
      blockStatus: (at, length) => source.blockStatus(offset + at, length),
      ...(options.offload === true && {
        readRange: (at: number, length: number, use: RangeUse) =>
          source.readRange?.(offset + at, length, use) ?? 0,
      }),
      generation: 0,
    },
    target: {
      write: (at, buffer) => written.write(at, buffer),
      writeFrom: (at, range) => target.writeFrom(at, range, REQ_OFFLOAD),
      writeZeroes: (at, length, flags) => written.writeZeroes(at, length, flags),
    },
    rate: new RateLimit(options.speed ?? 0, () => performance.now()),
    // A run of zeroes shows only where it fits in one chunk.
    chunkLength: Math.max(chunkLength, granularity, alignUp(options.sparseLength, granularity)),
    windowLength: WINDOW_LENGTH,
    windowLengthMax: COPY_WINDOW_MAX,
    unmap: sparse,
    ...(options.requestsMax !== undefined ? { requestsMax: options.requestsMax } : {}),
    copied: (length) => {
      done += length;
      progress?.(done, size);
    },
    failed: () => false,
  });
  await loop.run(() => false);
  await target.flush();
  progress?.(size, size);
}

async function markWanted(
  bitmap: DirtyBitmap,
  { source, offset = 0, targetIsZero, sparseLength, wants }: CopyImageOptions,
  size: number,
): Promise<void> {
  const skipsZeroes = targetIsZero && sparseLength !== 0;
  if (!skipsZeroes && wants === undefined) {
    bitmap.setDirty(0, size);
    return;
  }
  for (let at = 0; at < size; ) {
    const extent = await source.blockStatus(offset + at, size - at);
    const { length, flags } = extent;
    const isLeftOut = skipsZeroes && (flags & STATUS_ZERO) !== 0;
    if (!isLeftOut && wants?.(extent, offset + at) !== false) bitmap.setDirty(at, length);
    at += length;
  }
}

/** @param unit bytes that are compressed together; 0: nothing is */
function plainTarget(target: BlockBackend, unit: number): CopyTarget {
  if (unit === 0) return target;
  return {
    write(offset, buffer) {
      const end = offset + buffer.byteLength;
      // The end of the source, where the target is longer, is no whole cluster.
      const whole = end === target.size ? end : Math.max(end - (end % unit), offset);
      const pending = target.write(
        offset,
        buffer.subarray(0, whole - offset),
        REQ_WRITE_COMPRESSED,
      );
      if (whole === end) return pending;
      return Promise.resolve(pending).then(() =>
        target.write(whole, buffer.subarray(whole - offset)),
      );
    },
    writeZeroes: (offset, length, flags) => target.writeZeroes(offset, length, flags),
  };
}

/**
 * Writes what is data, and leaves out (or zeroes) runs of zeroes within it.
 * @param unit as for `plainTarget`; only a whole one is left out then
 */
function sparseTarget(
  { target, targetIsZero, sparseLength }: CopyImageOptions,
  unit: number,
): CopyTarget {
  const data = plainTarget(target, unit);
  const zero = (offset: number, length: number): MaybePromise<void> => {
    if (!targetIsZero) return target.writeZeroes(offset, length, REQ_MAY_UNMAP);
  };
  const write = async (offset: number, buffer: Buffer): Promise<void> => {
    for (const { start, end, isData } of runs(offset, buffer, unit === 0 ? sparseLength : unit)) {
      const part = buffer.subarray(start, end);
      await (isData ? data.write(offset + start, part) : zero(offset + start, end - start));
    }
  };
  return { write, writeZeroes: (offset, length) => zero(offset, length) };
}

interface Run {
  /** Indices in the buffer. */
  readonly start: number;
  readonly end: number;
  readonly isData: boolean;
}

/** Units of the target that are alike, one after the other, joined. */
function runs(offset: number, buffer: Buffer, unit: number): Run[] {
  const found: Run[] = [];
  const length = buffer.byteLength;
  let start = 0;
  let isData = false;
  for (let at = 0, end = Math.min(length, unit - (offset % unit)); at < length; ) {
    // Mostly the first byte tells.
    const hasData = buffer[at] !== 0 || !isZero(buffer.subarray(at, end));
    if (hasData !== isData && at > start) {
      found.push({ start, end: at, isData });
      start = at;
    }
    isData = hasData;
    at = end;
    end = Math.min(length, end + unit);
  }
  if (length > start) found.push({ start, end: length, isData });
  return found;
}
