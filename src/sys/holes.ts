// SPDX-License-Identifier: MIT
/** Holes of a file: made by fallocate, found by SEEK_DATA and SEEK_HOLE. */
import { FILE_METADATA_SLOW_MS, FILE_ZERO_NOW_MAX } from '../base/limits.js';
import type { MaybePromise } from '../base/maybe-promise.js';
import { AdaptiveGate } from './adaptive-gate.js';
import type { DiskFile } from './file.js';
import {
  EINTR,
  ENXIO,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  inPool,
  lastErrno,
  native,
  SEEK_DATA,
  SEEK_HOLE,
  SystemError,
} from './linux.js';

/** A run of equal kind; `end` is the offset of the first byte after it. */
export interface FileExtent {
  readonly data: boolean;
  readonly end: number;
}

const MODES = {
  /** Deallocates; the range reads as zeroes. */
  punch: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
  /** Zeroes without giving up the space. */
  zero: FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
  /** Takes space where there is none; lets the file grow. */
  allocate: 0,
} as const;
export type FallocateMode = keyof typeof MODES;

export class FileHoles {
  readonly #changeGate = new AdaptiveGate(FILE_METADATA_SLOW_MS);
  readonly #seekGate = new AdaptiveGate(FILE_METADATA_SLOW_MS);
  readonly #file: DiskFile;

  constructor(file: DiskFile) {
    this.#file = file;
  }

  /**
   * One fallocate(2): on the event loop while that is quick and the range short, else in the pool.
   * @throws BlockError DF_NOT_SUPPORTED where the file system or device has no such thing
   */
  change(mode: FallocateMode, offset: number, length: number): MaybePromise<void> {
    const now = mode !== 'allocate' && length <= FILE_ZERO_NOW_MAX && this.#changeGate.mayRunNow();
    if (!now) return this.#changeInPool(mode, offset, length);
    const started = this.#changeGate.start();
    const result = native.fallocate(this.#file.fd, MODES[mode], offset, length);
    if (result === 0) {
      this.#changeGate.end(started);
      return;
    }
    const errno = lastErrno();
    if (errno === EINTR) return this.#changeInPool(mode, offset, length);
    throw this.#file.error(errno, `fallocate (${mode})`, offset, length);
  }

  #changeInPool(mode: FallocateMode, offset: number, length: number): Promise<void> {
    return this.#file.run(`fallocate (${mode})`, offset, length, async () => {
      const { fd } = this.#file;
      await inPool(native.fallocate, 'fallocate', fd, MODES[mode], offset, length);
    });
  }

  /**
   * The run of data or hole that `offset` lies in. What comes after the last data is a hole
   * without end.
   * @throws BlockError, DF_INVALID among others where the file system can't tell
   */
  find(offset: number): MaybePromise<FileExtent> {
    if (!this.#seekGate.mayRunNow()) return this.#findInPool(offset);
    const { fd } = this.#file;
    const started = this.#seekGate.start();
    const data = native.lseek(fd, offset, SEEK_DATA);
    if (data < 0) return this.#noData(offset);
    const end = data > offset ? data : native.lseek(fd, offset, SEEK_HOLE);
    this.#seekGate.end(started);
    // Another process cut the file off between the two calls.
    if (end <= offset) return this.#findInPool(offset);
    return { data: data === offset, end };
  }

  #noData(offset: number): FileExtent {
    const errno = lastErrno();
    if (errno === ENXIO) return { data: false, end: Number.POSITIVE_INFINITY };
    throw this.#file.error(errno, 'seek for data', offset, 0);
  }

  #findInPool(offset: number): Promise<FileExtent> {
    return this.#file.run('seek for data', offset, 0, async () => {
      const { fd } = this.#file;
      try {
        const data = await inPool(native.lseek, 'lseek', fd, offset, SEEK_DATA);
        if (data > offset) return { data: false, end: data };
        return { data: true, end: await inPool(native.lseek, 'lseek', fd, offset, SEEK_HOLE) };
      } catch (error) {
        if (!(error instanceof SystemError && error.errno === ENXIO)) throw error;
        return { data: false, end: Number.POSITIVE_INFINITY };
      }
    });
  }
}
