// SPDX-License-Identifier: MIT
/** What an image needs of the nodes below it. A child edge is one; so is a backend. */
import type { MaybePromise } from '../../../base/maybe-promise.js';
import type { RequestFlags, TruncateOptions } from '../../block-driver.js';
import type { FileRange, RangeUse } from '../../file-range.js';

/** A node below: the image file, or the external data file. Offsets and lengths in bytes. */
export interface ImageIo {
  readonly size: number;
  readRange(offset: number, length: number, use: RangeUse): MaybePromise<number>;
  read(offset: number, buffer: Buffer, flags?: RequestFlags): MaybePromise<void>;
  write(offset: number, buffer: Buffer, flags?: RequestFlags): MaybePromise<void>;
  writeFrom(offset: number, source: FileRange, flags: RequestFlags): MaybePromise<number>;
  writeZeroes(offset: number, length: number, flags?: RequestFlags): MaybePromise<void>;
  discard(offset: number, length: number): MaybePromise<void>;
  flush(): MaybePromise<void>;
  truncate(size: number, options?: TruncateOptions): Promise<void>;
}

/** What is read where the image has nothing. */
export interface ReadableIo {
  readonly size: number;
  read(offset: number, buffer: Buffer, flags?: RequestFlags): MaybePromise<void>;
}

export interface BackingIo extends ReadableIo {
  readRange(offset: number, length: number, use: RangeUse): MaybePromise<number>;
}

/** Reads all of `buffer`; what lies past the end of `io` is zero. */
export function readPadded(io: ReadableIo, offset: number, buffer: Buffer): MaybePromise<void> {
  const { size } = io;
  if (offset + buffer.byteLength <= size) return io.read(offset, buffer);
  if (offset >= size) {
    buffer.fill(0);
    return;
  }
  buffer.fill(0, size - offset);
  return io.read(offset, buffer.subarray(0, size - offset));
}
