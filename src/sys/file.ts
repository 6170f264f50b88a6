// SPDX-License-Identifier: MIT
/**
 * One open file or block device. What the page cache can answer is done on the event loop, what would
 * wait for the disk in libuv's thread pool. All errors are BlockErrors whose cause is a SystemError.
 */
import * as fs from 'node:fs';
import { type BlockError, fromSystemError } from '../base/errors.js';
import { FILE_READ_NOW_MAX, FILE_WRITE_NOW_MAX, FILE_WRITE_SLOW_MS } from '../base/limits.js';
import type { MaybePromise } from '../base/maybe-promise.js';
import { AdaptiveGate } from './adaptive-gate.js';
import { allocateAligned, type DirectAlignment, probeDirectAlignment } from './direct-io.js';
import {
  addressOf,
  EAGAIN,
  EINTR,
  ENOSYS,
  EOPNOTSUPP,
  IoVector,
  inPool,
  lastErrno,
  native,
  RWF_DSYNC,
  RWF_NOWAIT,
  SystemError,
  TMPFS_MAGIC,
  toSystemError,
} from './linux.js';
import { fsCall } from './pool.js';
import { SteppedWrites } from './write-steps.js';

export type FileKind = 'regular' | 'block' | 'character' | 'other';

export interface OpenFileOptions {
  /** Open for reading and writing; else for reading only. */
  readonly writable: boolean;
  /** Past the page cache (O_DIRECT): offsets, lengths and memory must be aligned. */
  readonly direct: boolean;
  /** Make the file where there is none; needs `writable`. */
  readonly create?: boolean;
}

/** True for the path of a block device; false for one that leads nowhere, too. */
export async function isDevice(path: string): Promise<boolean> {
  if (path === '' || path.includes('\0')) return false;
  try {
    return (await fsCall<fs.Stats>((done) => fs.stat(path, done))).isBlockDevice();
  } catch {
    return false;
  }
}

/** Shared by all calls on the loop: each is over before the next fills it. */
const vector = new IoVector();

const { O_RDONLY, O_RDWR, O_CREAT, O_DIRECT, O_NONBLOCK, O_NOCTTY } = fs.constants;
/** Permissions of a file that is made, less what the umask takes. */
const CREATE_MODE = 0o644;

export class DiskFile {
  readonly #readGate = new AdaptiveGate(Number.POSITIVE_INFINITY);
  readonly #writeGate = new AdaptiveGate(FILE_WRITE_SLOW_MS);
  readonly #writes = new SteppedWrites((part, offset) =>
    native.pwrite(this.fd, part, part.byteLength, offset),
  );
  /** 'nowait': ask the kernel; 'always': data is in memory anyway; 'never': it can't tell. */
  #readNow: 'nowait' | 'always' | 'never';
  #inPool = 0;
  #closing: (() => void) | undefined;

  private constructor(
    readonly fd: number,
    readonly path: string,
    readonly options: OpenFileOptions,
    readonly kind: FileKind,
    readonly alignment: DirectAlignment,
    inMemory: boolean,
  ) {
    if (options.direct) this.#readNow = 'never';
    else this.#readNow = inMemory ? 'always' : 'nowait';
  }

  /**
   * Opens without waiting for whoever is at the other end of a FIFO or a device.
   * @throws BlockError with the errno's code; DF_NOT_SUPPORTED when direct I/O has no working alignment
   */
  static async open(path: string, options: OpenFileOptions): Promise<DiskFile> {
    const access = options.writable ? O_RDWR : O_RDONLY;
    const creation = options.create === true ? O_CREAT : 0;
    const flags = access | creation | O_NONBLOCK | O_NOCTTY | (options.direct ? O_DIRECT : 0);
    let fd: number;
    try {
      fd = await fsCall<number>((done) => fs.open(path, flags, CREATE_MODE, done));
    } catch (error) {
      const op = options.create === true ? 'create' : 'open';
      throw fromSystemError(error, `Could not ${op} '${path}'`, { op, path });
    }
    try {
      const stat = await fsCall<fs.Stats>((done) => fs.fstat(fd, done));
      const kind = kindOf(stat);
      const probe = options.direct && kind !== 'other';
      const alignment = probe ? await probeDirectAlignment(fd, path) : { request: 1, memory: 1 };
      return new DiskFile(fd, path, options, kind, alignment, await isInMemory(path, kind));
    } catch (error) {
      await closeDescriptor(fd);
      throw fromSystemError(toSystemError(error), `Could not open '${path}'`, { op: 'open', path });
    }
  }

  /** Size and kind as they are now; for a device the size is 0, see block-device.ts. */
  stat(): Promise<fs.Stats> {
    return this.#run('stat', 0, 0, () => fsCall((done) => fs.fstat(this.fd, done)));
  }

  /**
   * Reads all of `buffer`; what lies past the end of the file reads as zeroes.
   * @returns nothing when the page cache had it, else a promise
   */
  read(offset: number, buffer: Buffer): MaybePromise<void> {
    if (this.#readNow === 'never' || buffer.byteLength > FILE_READ_NOW_MAX) {
      return this.#readInPool(offset, buffer, 0);
    }
    if (!this.#readGate.mayRunNow()) return this.#readInPool(offset, buffer, 0);
    const length = buffer.byteLength;
    const got =
      this.#readNow === 'nowait'
        ? native.preadv2(this.fd, vector.set(buffer), 1, offset, RWF_NOWAIT)
        : native.pread(this.fd, buffer, length, offset);
    if (got === length) return;
    if (got === 0) {
      buffer.fill(0);
      return;
    }
    if (got > 0) return this.#readInPool(offset, buffer, got);
    return this.#readFailedNow(lastErrno(), offset, buffer);
  }

  /**
   * Reads as far as that needs no waiting; for a look at whether data is at hand.
   * @returns bytes read; 0 past the end; -1 when it would have to wait, failed, or can't be told
   */
  peek(offset: number, buffer: Buffer): number {
    if (this.#readNow === 'never') return -1;
    return this.#readNow === 'nowait'
      ? native.preadv2(this.fd, vector.set(buffer), 1, offset, RWF_NOWAIT)
      : native.pread(this.fd, buffer, buffer.byteLength, offset);
  }

  #readFailedNow(errno: number, offset: number, buffer: Buffer): Promise<void> {
    if (errno === EAGAIN) this.#readGate.close();
    else if (errno === EOPNOTSUPP || errno === ENOSYS) this.#readNow = 'never';
    // Anything else may hold only for who won't wait, as ENOMEM does: a read that waits has the last word.
    return this.#readInPool(offset, buffer, 0);
  }

  #readInPool(offset: number, buffer: Buffer, from: number): Promise<void> {
    return this.#run('read', offset, buffer.byteLength, async () => {
      const bounced = this.#bounce(buffer);
      const end = await this.#readAll(offset, bounced, from);
      if (bounced !== buffer) bounced.copy(buffer);
      if (end < buffer.byteLength) buffer.fill(0, end);
    });
  }

  /** Reads until the buffer is full or the file ends. @returns how far it came */
  async #readAll(offset: number, buffer: Buffer, from: number): Promise<number> {
    let at = from;
    while (at < buffer.byteLength) {
      const start = at;
      const got = await fsCall<number>((done) =>
        fs.read(this.fd, buffer, start, buffer.byteLength - start, offset + start, done),
      );
      at += got;
      // A direct read that ends off the alignment has met the end of the file.
      if (got === 0 || at % this.alignment.request !== 0) break;
    }
    return at;
  }

  /**
   * Writes all of `buffer`, past the end of a regular file too.
   * @param options.durable on stable storage before it completes
   */
  write(offset: number, buffer: Buffer, durable: 'durable' | 'cached'): MaybePromise<void> {
    if (durable === 'durable') return this.#writeDurable(offset, buffer);
    const { byteLength: length } = buffer;
    const now = length <= FILE_WRITE_NOW_MAX && !this.options.direct && this.#writeGate.mayRunNow();
    if (!now) return this.#writeInPool(offset, buffer, 0);
    const started = this.#writeGate.start();
    const put = this.#writes.write(offset, buffer);
    if (put === length) {
      this.#writeGate.end(started);
      return;
    }
    if (put >= 0) return this.#writeInPool(offset, buffer, put);
    const errno = lastErrno();
    if (errno === EINTR || errno === EAGAIN) return this.#writeInPool(offset, buffer, 0);
    throw this.#error(new SystemError(errno, 'write'), 'write', offset, length);
  }

  #writeInPool(offset: number, buffer: Buffer, from: number): Promise<void> {
    return this.#run('write', offset, buffer.byteLength, () => {
      return this.#writeAll(offset, this.#bounceOut(buffer), from);
    });
  }

  async #writeAll(offset: number, buffer: Buffer, from: number): Promise<void> {
    for (let at = from; at < buffer.byteLength; ) {
      const start = at;
      const put = await fsCall<number>((done) =>
        fs.write(this.fd, buffer, start, buffer.byteLength - start, offset + start, done),
      );
      if (put === 0) throw new Error('the file took no more bytes');
      at += put;
    }
  }

  /** One call that writes and syncs just these bytes; where that is unknown, two. */
  #writeDurable(offset: number, buffer: Buffer): Promise<void> {
    return this.#run('write', offset, buffer.byteLength, async () => {
      const bounced = this.#bounceOut(buffer);
      const own = new IoVector();
      for (let at = 0; at < bounced.byteLength; ) {
        const rest = bounced.subarray(at);
        try {
          at += await inPool(
            native.pwritev2,
            'write',
            this.fd,
            own.set(rest),
            1,
            offset + at,
            RWF_DSYNC,
          );
        } catch (error) {
          if (!isUnsupported(error)) throw error;
          await this.#writeAll(offset, bounced, at);
          return fsCall<void>((done) => fs.fdatasync(this.fd, done));
        }
      }
    });
  }

  /** Everything written before is on stable storage afterwards. */
  sync(): Promise<void> {
    return this.#run('flush', 0, 0, () => fsCall<void>((done) => fs.fdatasync(this.fd, done)));
  }

  /** Cuts the file off, or lets it grow by a hole. @param size bytes */
  truncate(size: number): Promise<void> {
    return this.#run('truncate', 0, size, () =>
      fsCall<void>((done) => fs.ftruncate(this.fd, size, done)),
    );
  }

  /**
   * Runs `work`, which may use the descriptor until its promise is settled; `close` waits for it.
   * @throws BlockError made of what `work` threw
   */
  run<T>(op: string, offset: number, length: number, work: () => Promise<T>): Promise<T> {
    return this.#run(op, offset, length, work);
  }

  /** Keeps the descriptor open until `pending`, which uses it, is settled; `close` waits for that. */
  async keepOpen<T>(pending: Promise<T>): Promise<T> {
    this.#inPool++;
    try {
      return await pending;
    } finally {
      this.#leavePool();
    }
  }

  /** The error of a call on this file, with what was attempted and where. */
  error(errno: number, op: string, offset: number, length: number): BlockError {
    return this.#error(new SystemError(errno, op), op, offset, length);
  }

  /** Gives back the descriptor when the last call in the pool has ended. Never rejects. */
  async close(): Promise<void> {
    if (this.#inPool > 0) {
      await new Promise<void>((resolve) => {
        this.#closing = resolve;
      });
    }
    await closeDescriptor(this.fd);
  }

  async #run<T>(op: string, offset: number, length: number, work: () => Promise<T>): Promise<T> {
    this.#inPool++;
    try {
      return await work();
    } catch (error) {
      throw this.#error(toSystemError(error), op, offset, length);
    } finally {
      this.#leavePool();
    }
  }

  #leavePool(): void {
    this.#inPool--;
    if (this.#inPool === 0) this.#closing?.();
  }

  #error(cause: unknown, op: string, offset: number, length: number): BlockError {
    const { path } = this;
    const what =
      length === 0 ? `${op} of '${path}'` : `${op} of ${length} bytes at ${offset} of '${path}'`;
    return fromSystemError(cause, `${what} failed`, { op, path, offset, length });
  }

  /** The buffer itself, or an aligned stand-in where direct I/O can't use its memory. */
  #bounce(buffer: Buffer): Buffer {
    const { memory } = this.alignment;
    if (memory === 1 || addressOf(buffer) % memory === 0) return buffer;
    return allocateAligned(buffer.byteLength, memory);
  }

  #bounceOut(buffer: Buffer): Buffer {
    const bounced = this.#bounce(buffer);
    if (bounced !== buffer) buffer.copy(bounced);
    return bounced;
  }
}

function isUnsupported(error: unknown): boolean {
  return error instanceof SystemError && (error.errno === EOPNOTSUPP || error.errno === ENOSYS);
}

function kindOf(stat: fs.Stats): FileKind {
  if (stat.isFile()) return 'regular';
  if (stat.isBlockDevice()) return 'block';
  return stat.isCharacterDevice() ? 'character' : 'other';
}

async function isInMemory(path: string, kind: FileKind): Promise<boolean> {
  if (kind !== 'regular') return false;
  const { type } = await fsCall<fs.StatsFs>((done) => fs.statfs(path, done));
  return type === TMPFS_MAGIC;
}

/** An error of close tells nothing that a flush before it did not. */
async function closeDescriptor(fd: number): Promise<void> {
  await fsCall<void>((done) => fs.close(fd, done)).catch(() => undefined);
}
