// SPDX-License-Identifier: MIT
/** READ: short ones beside other replies in the arena, long ones in their own buffer or in pieces. */
import { NBD_CMD_FLAG_DF } from '../../../protocol/nbd/constants.js';
import type { ReceivedRequest } from '../../../protocol/nbd/transmission.js';
import { BUFFER_HEADROOM, type PooledBuffer } from '../../base/buffer-pool.js';
import { toError } from '../../base/errors.js';
import {
  KIB,
  MIB,
  NBD_JOINED_READ_MAX,
  NBD_PIECE_MAX,
  NBD_PIECE_SCARCE,
  NBD_SEND_FILE_MIN,
} from '../../base/limits.js';
import type { ExportBackend } from './export.js';
import type { MemoryBudget } from './memory-budget.js';
import type { Outbox, Region } from './outbox.js';
import type { Replies } from './replies.js';
import { REPLY_SIMPLE } from './session.js';

/** Shorter data is sent as it is, zero or not. Bytes. */
const HOLE_MIN = 4 * KIB;
/** Pieces of a long read wait while more than this is unsent, bytes. */
const PIECES_UNSENT_MAX = 2 * MIB;
const ZEROES = Buffer.alloc(NBD_PIECE_MAX);

export interface ReadHost {
  readonly backend: ExportBackend;
  readonly budget: MemoryBudget;
  readonly outbox: Outbox;
  readonly replies: Replies;
  pend(pending: Promise<void>, cost: number, done: () => void, failed: (e: unknown) => void): void;
  /** @param offset where it failed, when only a part of the request is meant */
  fail(head: ReceivedRequest, reason: unknown, offset?: number): void;
  /** A reply was broken off: ends the connection. */
  drop(reason: string): void;
}

export class ReadRequests {
  readonly #host: ReadHost;

  constructor(host: ReadHost) {
    this.#host = host;
  }

  /** Executes a checked READ; the reply is queued now or later. `head` is not kept. */
  execute(head: ReceivedRequest): void {
    const { length } = head;
    if (length === 0) this.#empty(head);
    else if (length <= NBD_JOINED_READ_MAX) this.#joined(head);
    else if (length <= NBD_PIECE_MAX && this.#host.budget.fits(length + BUFFER_HEADROOM)) {
      this.#own(head, this.#host.budget.pool.take(length + BUFFER_HEADROOM));
    } else this.#long({ ...head });
  }

  #empty(head: ReceivedRequest): void {
    const { replies } = this.#host;
    if (replies.form === REPLY_SIMPLE) replies.ok(head);
    else replies.none(head);
  }

  #joined(head: ReceivedRequest): void {
    const { outbox, replies, backend } = this.#host;
    const { length } = head;
    const size = replies.dataHead + length;
    const at = outbox.reserve(size);
    const { bytes } = outbox.arena;
    const target = bytes.subarray(at + replies.dataHead, at + size);
    let pending: void | Promise<void>;
    try {
      pending = backend.read(head.offset, target);
    } catch (reason) {
      this.#host.fail(head, reason);
      return;
    }
    if (pending !== undefined) {
      this.#joinLater({ ...head }, pending, outbox.detach(size));
    } else if (this.#isHole(target)) {
      replies.hole(head, { offset: head.offset, length, done: true });
    } else {
      replies.encodeDataHead(outbox.arena.view, at, head, {
        offset: head.offset,
        length,
        done: true,
      });
      outbox.commit(size);
    }
  }

  #joinLater(head: ReceivedRequest, pending: Promise<void>, region: Region): void {
    const { outbox, replies } = this.#host;
    const { buffer, start, size } = region;
    const content = { offset: head.offset, length: head.length, done: true };
    const done = () => {
      if (this.#isHole(buffer.bytes.subarray(start + replies.dataHead, start + size))) {
        buffer.release();
        replies.hole(head, content);
        return;
      }
      replies.encodeDataHead(buffer.view, start, head, content);
      outbox.append(buffer, start, start + size);
    };
    this.#host.pend(pending, head.length, done, (reason) => {
      buffer.release();
      this.#host.fail(head, reason);
    });
  }

  /**
   * Content from the file to the socket without a copy, where that can be had now.
   * @param buffer has room for it all; its ownership is passed when the result is true
   */
  #sendDirectly(
    head: ReceivedRequest,
    buffer: PooledBuffer,
    content: { offset: number; length: number; done: boolean },
  ): boolean {
    const { backend, outbox, replies } = this.#host;
    if (content.length < NBD_SEND_FILE_MIN || backend.send === undefined) return false;
    const socket = outbox.directSocket();
    if (socket === undefined) return false;
    const { dataHead } = replies;
    const start = BUFFER_HEADROOM - dataHead;
    const end = BUFFER_HEADROOM + content.length;
    replies.encodeDataHead(buffer.view, start, head, content);
    let taken: number;
    try {
      taken = backend.send({
        socket,
        offset: content.offset,
        reply: buffer.bytes.subarray(start, end),
        headLength: dataHead,
        notAllZero: replies.form !== REPLY_SIMPLE,
      });
    } catch (error) {
      buffer.release();
      this.#host.drop(`a reply could not be completed: ${toError(error).message}`);
      return true;
    }
    if (taken === 0) return false;
    if (start + taken === end) buffer.release();
    else outbox.append(buffer, start + taken, end);
    return true;
  }

  /** One content chunk from a buffer of its own, of which one ownership is passed. */
  #own(head: ReceivedRequest, buffer: PooledBuffer): void {
    const content = { offset: head.offset, length: head.length, done: true };
    if (this.#sendDirectly(head, buffer, content)) return;
    let pending: void | Promise<void>;
    try {
      const target = buffer.bytes.subarray(BUFFER_HEADROOM, BUFFER_HEADROOM + head.length);
      pending = this.#host.backend.read(head.offset, target);
    } catch (reason) {
      buffer.release();
      this.#host.fail(head, reason);
      return;
    }
    if (pending === undefined) {
      this.#send(head, buffer, content);
      return;
    }
    const kept = { ...head };
    this.#host.pend(
      pending,
      head.length,
      () => this.#send(kept, buffer, content),
      (reason) => {
        buffer.release();
        this.#host.fail(kept, reason);
      },
    );
  }

  /** Queues content that lies behind the headroom of `buffer`, as data or as a hole. */
  #send(
    head: ReceivedRequest,
    buffer: PooledBuffer,
    content: { offset: number; length: number; done: boolean },
  ): void {
    const { outbox, replies } = this.#host;
    const end = BUFFER_HEADROOM + content.length;
    if (this.#isHole(buffer.bytes.subarray(BUFFER_HEADROOM, end))) {
      buffer.release();
      replies.hole(head, content);
      return;
    }
    const start = BUFFER_HEADROOM - replies.dataHead;
    replies.encodeDataHead(buffer.view, start, head, content);
    outbox.append(buffer, start, end);
  }

  /** What needs more memory than may be taken at once, or more than a piece. */
  #long(head: ReceivedRequest): void {
    const whole = this.#host.replies.form === REPLY_SIMPLE || (head.flags & NBD_CMD_FLAG_DF) !== 0;
    const run = whole ? this.#whenAffordable(head) : this.#inPieces(head);
    const nothing = () => undefined;
    this.#host.pend(run, whole ? head.length : NBD_PIECE_MAX, nothing, (reason) =>
      this.#host.fail(head, reason),
    );
  }

  async #whenAffordable(head: ReceivedRequest): Promise<void> {
    const { backend, budget, outbox } = this.#host;
    const buffer = await budget.take(head.length + BUFFER_HEADROOM);
    try {
      if (!outbox.closed) {
        const end = BUFFER_HEADROOM + head.length;
        await backend.read(head.offset, buffer.bytes.subarray(BUFFER_HEADROOM, end));
      }
    } catch (error) {
      buffer.release();
      throw error;
    }
    this.#send(head, buffer, { offset: head.offset, length: head.length, done: true });
  }

  /** Chunk after chunk, as the client takes them. */
  async #inPieces(head: ReceivedRequest): Promise<void> {
    const { budget, outbox } = this.#host;
    const end = head.offset + head.length;
    let { offset } = head;
    while (offset < end) {
      await outbox.whenBelow(budget.scarce ? 0 : PIECES_UNSENT_MAX);
      if (outbox.closed) return;
      const room = budget.fits(NBD_PIECE_MAX + BUFFER_HEADROOM);
      const length = Math.min(room ? budget.pieceMax : NBD_PIECE_SCARCE, end - offset);
      const done = offset + length === end;
      if (!(await this.#piece(head, { offset, length, done }))) return;
      outbox.flush();
      offset += length;
      // Others have their turn between pieces.
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  /** Returns false when the piece failed, which ended the reply. */
  async #piece(
    head: ReceivedRequest,
    content: { offset: number; length: number; done: boolean },
  ): Promise<boolean> {
    const { backend, budget } = this.#host;
    const buffer = budget.pool.take(content.length + BUFFER_HEADROOM);
    if (this.#sendDirectly(head, buffer, content)) return true;
    const end = BUFFER_HEADROOM + content.length;
    try {
      await backend.read(content.offset, buffer.bytes.subarray(BUFFER_HEADROOM, end));
    } catch (reason) {
      buffer.release();
      this.#host.fail(head, reason, content.offset);
      return false;
    }
    this.#send(head, buffer, content);
    return true;
  }

  /** Comparing stops at the first difference, so that it costs data nothing. */
  #isHole(bytes: Buffer): boolean {
    const { byteLength } = bytes;
    if (byteLength < HOLE_MIN || this.#host.replies.form === REPLY_SIMPLE) return false;
    if (bytes[0] !== 0 || bytes[byteLength - 1] !== 0) return false;
    for (let at = 0; at < byteLength; at += ZEROES.byteLength) {
      const end = Math.min(at + ZEROES.byteLength, byteLength);
      if (bytes.compare(ZEROES, 0, end - at, at, end) !== 0) return false;
    }
    return true;
  }
}
