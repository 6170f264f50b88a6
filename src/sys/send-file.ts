// SPDX-License-Identifier: MIT
/**
 * Bytes of a file from the page cache into a UNIX socket without copying them: sendfile(2) puts references
 * to the pages into the socket's queue. Until the peer has read them the pages are lent: what is
 * written to them meanwhile is what the peer gets. `whenReturned` waits for that to be over.
 */
import { FILE_LENT_CHECK_MS, FILE_LENT_CHECKS_MAX, FILE_SEND_PEEK_STEP } from '../base/limits.js';
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
  readonly #pageSize = native.getpagesize();
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
    if (!this.#possible || !this.#isAtHand(offset, length, request)) return 0;
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
    fileOffset[0] = BigInt(offset);
    const sent = native.sendfile(socket, this.#file.fd, fileOffsetBytes, length);
    if (sent >= 0) return sent;
    const errno = lastErrno();
    // A file system that can't do it. A socket that fails tells its owner so by itself.
    if (errno !== EAGAIN && errno !== EINTR) this.#possible = false;
    return 0;
  }

  /** Sending must not wait for the disk: pages must be there, and be read already. */
  #isAtHand(offset: number, length: number, { notAllZero }: FileReply): boolean {
    const last = offset + length - PEEK_LENGTH;
    if (length < PEEK_LENGTH || !this.#peek(offset)) return false;
    let known = !notAllZero || !peeked.equals(ZEROES);
    if (!this.#peek(last)) return false;
    known ||= !peeked.equals(ZEROES);
    if (!known || !this.#isCached(offset, length)) return false;
    for (let at = offset + FILE_SEND_PEEK_STEP; at < last; at += FILE_SEND_PEEK_STEP) {
      if (!this.#peek(at)) return false;
    }
    return true;
  }

  #peek(offset: number): boolean {
    return this.#file.peek(offset, peeked) === PEEK_LENGTH;
  }

  #isCached(offset: number, length: number): boolean {
    range[0] = BigInt(offset);
    range[1] = BigInt(length);
    if (native.syscall(SYS_CACHESTAT, this.#file.fd, rangeBytes, cachedBytes, 0) !== 0) {
      // Linux before 6.5, or not allowed: nobody can say.
      this.#possible = false;
      return false;
    }
    const first = Math.floor(offset / this.#pageSize);
    const last = Math.floor((offset + length - 1) / this.#pageSize);
    return Number(cached[0]) >= last - first + 1;
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
