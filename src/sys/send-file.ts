// SPDX-License-Identifier: MIT
/**
 * Bytes of a file from the page cache into a UNIX socket without copying them: sendfile(2) puts references
 * to the pages into the socket's queue. Until the peer has read them the pages are lent: what is
 * written to them meanwhile is what the peer gets. `whenReturned` waits for that to be over where
 * replies were sent; a request's payload is over when the peer has answered.
 */
import {
  FILE_LEND_ZERO_UNIT,
  FILE_LENT_CHECK_MS,
  FILE_LENT_CHECKS_MAX,
  FILE_SEND_PEEK_STEP,
} from '../base/limits.js';
import { subjectLog } from '../base/log.js';
import type { MaybePromise } from '../base/maybe-promise.js';
import type { DiskFile } from './file.js';
import {
  EAGAIN,
  EINTR,
  lastErrno,
  MSG_DONTWAIT,
  MSG_MORE,
  MSG_NOSIGNAL,
  native,
  SIOCOUTQ,
  SYS_CACHESTAT,
} from './linux.js';

/** Bytes that are looked at in each place; a few words tell data from zeroes nearly always. */
const PEEK_LENGTH = 64;
const ZEROES = Buffer.alloc(PEEK_LENGTH);

/** Shared by all calls on the loop: each is over before the next fills them. */
const peeked = Buffer.alloc(PEEK_LENGTH);
const fileOffset = new BigInt64Array(1);
const fileOffsetBytes = new Uint8Array(fileOffset.buffer);
/** `struct cachestat_range`: offset and length. */
const range = new BigUint64Array(2);
const rangeBytes = new Uint8Array(range.buffer);
/** `struct cachestat`: pages cached, dirty, in write-back, evicted, recently evicted. */
const cached = new BigUint64Array(5);
const cachedBytes = new Uint8Array(cached.buffer);
const queued = new Int32Array(1);
const queuedBytes = new Uint8Array(queued.buffer);

const pageSize = native.getpagesize();

/** A file of the page cache, as far as sending needs it. */
export interface SendableFile {
  readonly fd: number;
  peek(offset: number, buffer: Buffer): number;
  read(offset: number, buffer: Buffer): MaybePromise<void>;
}

/**
 * Whether sending a range would not wait for the disk: its pages are there, and are read already.
 * @param options `notAllZero`: 'no' unless it is certain that some byte is not zero
 * @returns 'unknown': nobody can say, of this file or at all
 */
export function isAtHand(
  file: SendableFile,
  offset: number,
  length: number,
  { notAllZero }: { readonly notAllZero: boolean },
): 'yes' | 'no' | 'unknown' {
  if (length < PEEK_LENGTH) return 'no';
  const last = offset + length - PEEK_LENGTH;
  let known = !notAllZero;
  const look = (at: number): boolean => {
    if (file.peek(at, peeked) !== PEEK_LENGTH) return false;
    known ||= !peeked.equals(ZEROES);
    return true;
  };
  if (!look(offset) || !look(last)) return 'no';
  const cachedPages = pagesCached(file.fd, offset, length);
  if (cachedPages === undefined) return 'unknown';
  const first = Math.floor(offset / pageSize);
  if (cachedPages < Math.floor((offset + length - 1) / pageSize) - first + 1) return 'no';
  for (let at = offset + FILE_SEND_PEEK_STEP; at < last; at += FILE_SEND_PEEK_STEP) {
    if (!look(at)) return 'no';
  }
  return known ? 'yes' : 'no';
}

/** Undefined: Linux before 6.5, or not allowed. */
function pagesCached(fd: number, offset: number, length: number): number | undefined {
  range[0] = BigInt(offset);
  range[1] = BigInt(length);
  if (native.syscall(SYS_CACHESTAT, fd, rangeBytes, cachedBytes, 0) !== 0) return undefined;
  return Number(cached[0]);
}

/** @returns bytes that the socket took; 0: it is full, or the file ends there; -1: it can't be done */
function sendPages(socket: number, fd: number, offset: number, length: number): number {
  fileOffset[0] = BigInt(offset);
  const sent = native.sendfile(socket, fd, fileOffsetBytes, length);
  if (sent >= 0) return sent;
  const errno = lastErrno();
  return errno === EAGAIN || errno === EINTR ? 0 : -1;
}

/** So long after a look at the page cache it is looked again, milliseconds. */
const LOOK_VALID_MS = 5;

/**
 * Part of a file as the payload of a request. Who lends it sees to it that the peer's answer is awaited
 * before anything relies on what was lent, and that a change until then does no harm.
 */
export class FilePayload {
  readonly #file: SendableFile;
  readonly #offset: number;
  #seenMs = performance.now();

  private constructor(
    file: SendableFile,
    offset: number,
    readonly length: number,
  ) {
    this.#file = file;
    this.#offset = offset;
  }

  /**
   * @param offset in the file, bytes
   * @returns undefined unless all of it is in the page cache, with a byte that is not zero in each
   * FILE_LEND_ZERO_UNIT
   */
  static of(file: SendableFile, offset: number, length: number): FilePayload | undefined {
    for (let at = 0; at < length; ) {
      const left = length - at;
      // What is too short to be looked at belongs to what is before it.
      const part = left < FILE_LEND_ZERO_UNIT + PEEK_LENGTH ? left : FILE_LEND_ZERO_UNIT;
      if (isAtHand(file, offset + at, part, { notAllZero: true }) !== 'yes') return undefined;
      at += part;
    }
    return new FilePayload(file, offset, length);
  }

  /**
   * @param socket of a non-blocking stream @param from of the payload's first byte
   * @returns bytes taken, the head's included; 0: the socket is full; -1: nothing was done, and it can't
   * be done without waiting, or at all
   */
  send(socket: number, head: Uint8Array, from: number, length: number): number {
    const offset = this.#offset + from;
    const nowMs = performance.now();
    if (nowMs - this.#seenMs > LOOK_VALID_MS) {
      if (isAtHand(this.#file, offset, length, { notAllZero: false }) !== 'yes') return -1;
      this.#seenMs = nowMs;
    }
    const { byteLength: headLength } = head;
    if (headLength > 0) {
      const flags = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE;
      const taken = native.send(socket, head, headLength, flags);
      // A socket that fails tells its owner so by itself.
      if (taken < headLength) return Math.max(taken, 0);
    }
    const sent = sendPages(socket, this.#file.fd, offset, length);
    return headLength > 0 ? headLength + Math.max(sent, 0) : sent;
  }

  /** Past the end of the file are zeroes. @throws BlockError as DiskFile.read */
  read(from: number, target: Buffer): MaybePromise<void> {
    return this.#file.read(this.#offset + from, target);
  }
}

export interface FileReply {
  /** Descriptor of a non-blocking UNIX stream socket of which everything sent before is taken. */
  readonly socket: number;
  /** Of the first data byte in the file. */
  readonly offset: number;
  /** A filled head, and behind it as much room as there are data bytes. */
  readonly reply: Buffer;
  /** Bytes, at least 1. */
  readonly headLength: number;
  /** Refuse unless it is certain that some byte is not zero. */
  readonly notAllZero: boolean;
}

export class FileSender {
  readonly #file: DiskFile;
  readonly #borrowers = new Set<number>();
  #possible: boolean;

  constructor(file: DiskFile) {
    this.#file = file;
    this.#possible = file.kind === 'regular' && !file.options.direct;
  }

  /**
   * Sends the head and as much of the data as the socket takes, if all of it is in the page cache.
   * @returns how many bytes of the reply the socket took; 0: none, and nothing was done. Otherwise
   * what it did not take lies in `reply`, read from the file; past the file's end are zeroes.
   * @throws BlockError when that rest can't be read: the reply is broken off and can't be completed
   */
  send(request: FileReply): number {
    const { socket, offset, reply, headLength } = request;
    const length = reply.byteLength - headLength;
    if (!this.#possible) return 0;
    const atHand = isAtHand(this.#file, offset, length, request);
    // Where nobody can say it is not asked again.
    if (atHand === 'unknown') this.#possible = false;
    if (atHand !== 'yes') return 0;
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE;
    const head = native.send(socket, reply, headLength, flags);
    if (head <= 0) return 0;
    let data = 0;
    if (head === headLength) {
      this.#borrowers.add(socket);
      data = this.#sendData(socket, offset, length);
    }
    if (data < length) this.#readRest(offset + data, reply.subarray(headLength + data));
    return head + data;
  }

  /** Nothing when every socket has delivered what it was lent, else a promise, for a bounded time. */
  whenReturned(): MaybePromise<void> {
    if (this.#anyLent()) return this.#wait();
  }

  #sendData(socket: number, offset: number, length: number): number {
    const sent = sendPages(socket, this.#file.fd, offset, length);
    // A file system that can't do it. A socket that fails tells its owner so by itself.
    if (sent < 0) this.#possible = false;
    return Math.max(sent, 0);
  }

  /** It was in the page cache a moment ago, so this does not wait, unless it was evicted just now. */
  #readRest(offset: number, target: Buffer): void {
    for (let at = 0; at < target.byteLength; ) {
      const { fd } = this.#file;
      const rest = target.subarray(at);
      const got = native.pread(fd, rest, rest.byteLength, offset + at);
      if (got === 0) {
        rest.fill(0);
        return;
      }
      if (got > 0) at += got;
      else {
        const errno = lastErrno();
        if (errno !== EINTR) {
          throw this.#file.error(errno, 'read', offset + at, rest.byteLength);
        }
      }
    }
  }

  /** A descriptor that is closed, or something else by now, holds nothing that could be waited for. */
  #anyLent(): boolean {
    for (const socket of this.#borrowers) {
      const known = native.ioctl(socket, SIOCOUTQ, queuedBytes) === 0;
      if (!known || queued[0] === 0) this.#borrowers.delete(socket);
    }
    return this.#borrowers.size > 0;
  }

  async #wait(): Promise<void> {
    for (let checks = 0; checks < FILE_LENT_CHECKS_MAX; checks++) {
      await new Promise<void>((resolve) => setTimeout(resolve, FILE_LENT_CHECK_MS));
      if (!this.#anyLent()) return;
    }
    subjectLog({}).warn(
      { event: 'file.lent', path: this.#file.path, clients: this.#borrowers.size },
      'clients have not read replies for long; if the file is changed now, they may see that',
    );
    // Who waits again must not wait for these again.
    this.#borrowers.clear();
  }
}
