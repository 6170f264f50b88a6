// SPDX-License-Identifier: MIT
/** Replies in the form that the client negotiated: simple, structured, or with extended headers. */
import {
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_ERRORS,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
} from '../../../protocol/nbd/constants.js';
import {
  encodeExtendedReply,
  encodeSimpleReply,
  encodeStructuredReply,
  NBD_ERROR_CHUNK,
  NBD_EXTENDED_REPLY,
  NBD_OFFSET_DATA,
  NBD_OFFSET_HOLE,
  NBD_SIMPLE_REPLY,
  NBD_STRUCTURED_REPLY,
  type ReceivedRequest,
  writeUint64,
} from '../../../protocol/nbd/transmission.js';
import { BlockError, ERROR_CODES } from '../../base/errors.js';
import { errorText } from './error-text.js';
import type { Outbox } from './outbox.js';
import { REPLY_EXTENDED, REPLY_SIMPLE, type ReplyForm } from './session.js';

/** A list of extents of one context, as [length, flags, length, flags ...]. */
export interface StatusChunk {
  readonly contextId: number;
  readonly extents: readonly number[];
}

export class Replies {
  readonly #outbox: Outbox;
  readonly form: ReplyForm;
  /** Bytes in front of the payload of one READ reply. */
  readonly dataHead: number;
  readonly #chunkHead: number;

  constructor(outbox: Outbox, form: ReplyForm) {
    this.#outbox = outbox;
    this.form = form;
    this.#chunkHead = form === REPLY_EXTENDED ? NBD_EXTENDED_REPLY.size : NBD_STRUCTURED_REPLY.size;
    this.dataHead =
      form === REPLY_SIMPLE ? NBD_SIMPLE_REPLY.size : this.#chunkHead + NBD_OFFSET_DATA.size;
  }

  /** Success without a payload. */
  ok(head: Readonly<ReceivedRequest>): void {
    const outbox = this.#outbox;
    if (this.form === REPLY_EXTENDED) {
      this.none(head);
      return;
    }
    const at = outbox.reserve(NBD_SIMPLE_REPLY.size);
    encodeSimpleReply(outbox.arena.view, at, head, 0);
    outbox.commit(NBD_SIMPLE_REPLY.size);
  }

  /** The last chunk of a reply whose content went before, or of an empty one. */
  none(head: Readonly<ReceivedRequest>): void {
    const at = this.#outbox.reserve(this.#chunkHead);
    this.#chunk(this.#outbox.arena.view, at, head, {
      flags: NBD_REPLY_FLAG_DONE,
      type: NBD_REPLY_TYPE_NONE,
      length: 0,
    });
    this.#outbox.commit(this.#chunkHead);
  }

  /**
   * A failure, the last chunk of its reply.
   * @param failure.offset where in the request it happened, if known
   */
  error(
    head: Readonly<ReceivedRequest>,
    failure: { error: number; message: string; offset?: number },
  ): void {
    const outbox = this.#outbox;
    if (this.form === REPLY_SIMPLE) {
      const at = outbox.reserve(NBD_SIMPLE_REPLY.size);
      encodeSimpleReply(outbox.arena.view, at, head, failure.error);
      outbox.commit(NBD_SIMPLE_REPLY.size);
      return;
    }
    const text = errorText(failure.message);
    const tail = failure.offset === undefined ? 0 : 8;
    const length = NBD_ERROR_CHUNK.size + text.byteLength + tail;
    const at = outbox.reserve(this.#chunkHead + length);
    const { view, bytes } = outbox.arena;
    this.#chunk(view, at, head, {
      flags: NBD_REPLY_FLAG_DONE,
      type: tail === 0 ? NBD_REPLY_TYPE_ERROR : NBD_REPLY_TYPE_ERROR_OFFSET,
      length,
    });
    const payload = at + this.#chunkHead;
    view.setUint32(payload, failure.error);
    view.setUint16(payload + 4, text.byteLength);
    text.copy(bytes, payload + NBD_ERROR_CHUNK.size);
    if (failure.offset !== undefined) {
      writeUint64(view, payload + NBD_ERROR_CHUNK.size + text.byteLength, failure.offset);
    }
    outbox.commit(this.#chunkHead + length);
  }

  /** Writes the `dataHead` bytes in front of READ data that lies at `at + dataHead`. */
  encodeDataHead(
    view: DataView,
    at: number,
    head: Readonly<ReceivedRequest>,
    content: { offset: number; length: number; done: boolean },
  ): void {
    if (this.form === REPLY_SIMPLE) {
      encodeSimpleReply(view, at, head, 0);
      return;
    }
    this.#chunk(view, at, head, {
      flags: content.done ? NBD_REPLY_FLAG_DONE : 0,
      type: NBD_REPLY_TYPE_OFFSET_DATA,
      length: NBD_OFFSET_DATA.size + content.length,
    });
    writeUint64(view, at + this.#chunkHead, content.offset);
  }

  /** READ data that is all zero. Never in the simple form, never with DF unless it is the whole. */
  hole(
    head: Readonly<ReceivedRequest>,
    content: { offset: number; length: number; done: boolean },
  ): void {
    const outbox = this.#outbox;
    const size = this.#chunkHead + NBD_OFFSET_HOLE.size;
    const at = outbox.reserve(size);
    const { view } = outbox.arena;
    this.#chunk(view, at, head, {
      flags: content.done ? NBD_REPLY_FLAG_DONE : 0,
      type: NBD_REPLY_TYPE_OFFSET_HOLE,
      length: NBD_OFFSET_HOLE.size,
    });
    writeUint64(view, at + this.#chunkHead, content.offset);
    view.setUint32(at + this.#chunkHead + 8, content.length);
    outbox.commit(size);
  }

  /** A chunk for each context; the last one ends the reply. */
  blockStatus(head: Readonly<ReceivedRequest>, chunks: readonly StatusChunk[]): void {
    const wide = this.form === REPLY_EXTENDED;
    for (const [index, { contextId, extents }] of chunks.entries()) {
      const count = extents.length / 2;
      const length = wide ? 8 + count * 16 : 4 + count * 8;
      const at = this.#outbox.reserve(this.#chunkHead + length);
      const { view } = this.#outbox.arena;
      this.#chunk(view, at, head, {
        flags: index === chunks.length - 1 ? NBD_REPLY_FLAG_DONE : 0,
        type: wide ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS,
        length,
      });
      const payload = at + this.#chunkHead;
      view.setUint32(payload, contextId);
      if (wide) {
        view.setUint32(payload + 4, count);
        for (const [slot, value] of extents.entries()) {
          writeUint64(view, payload + 8 + slot * 8, value);
        }
      } else {
        for (const [slot, value] of extents.entries()) {
          view.setUint32(payload + 4 + slot * 4, value);
        }
      }
      this.#outbox.commit(this.#chunkHead + length);
    }
  }

  #chunk(
    view: DataView,
    at: number,
    head: Readonly<ReceivedRequest>,
    chunk: { flags: number; type: number; length: number },
  ): void {
    if (this.form === REPLY_EXTENDED) encodeExtendedReply(view, at, head, chunk);
    else encodeStructuredReply(view, at, head, chunk);
  }
}

/**
 * What an NBD client is told of an error. ENOTSUP and EOVERFLOW are allowed in few places only:
 * the first for fast zeroing, the second where a length was refused.
 */
export function failureOf(
  error: unknown,
  options: { fastZero: boolean },
): { error: number; message: string } {
  if (!(error instanceof BlockError)) return { error: NBD_EIO, message: 'internal error' };
  let code: number = NBD_ERRORS[ERROR_CODES[error.code].nbd];
  if (code === NBD_ENOTSUP && !options.fastZero) code = NBD_EINVAL;
  if (code === NBD_EOVERFLOW) code = NBD_EINVAL;
  return { error: code, message: error.message };
}
