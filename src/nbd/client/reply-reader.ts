// SPDX-License-Identifier: MIT
/**
 * Cuts the server's stream into replies. Heads and small payloads are parsed in the receive buffer;
 * of a large payload the socket receives the rest straight into the buffer where it belongs.
 *
 * Nothing is believed: every length is checked before a byte of it is waited for. A breach is thrown
 * and ends the connection. @see proto.md "Simple reply message", "Structured reply chunk message"
 */
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_READ,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_FLAG_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  replyTypeName,
} from '../../../protocol/nbd/constants.js';
import {
  decodeExtendedReply,
  decodeSimpleReply,
  decodeStructuredReply,
  emptyReplyHead,
  NBD_EXTENDED_REPLY,
  NBD_OFFSET_DATA,
  NBD_OFFSET_HOLE,
  NBD_SIMPLE_REPLY,
  NBD_STRUCTURED_REPLY,
  type ReplyHead,
  readUint64,
} from '../../../protocol/nbd/transmission.js';
import {
  NBD_CLIENT_DIRECT_MIN,
  NBD_CLIENT_RECEIVE_LENGTH,
  NBD_CLIENT_STATUS_MAX,
  NBD_STRING_MAX,
} from '../../base/limits.js';
import type { NbdSession } from './negotiate.js';
import { protocolError } from './option-stream.js';
import { addErrorChunk, addStatusChunk, finishRequest, statusChunkMin } from './reply-chunks.js';
import { type ClientRequest, serverError } from './request.js';

export interface ReplyHandler {
  /** The request with this cookie, or undefined. */
  find(cookieHigh: number, cookieLow: number): ClientRequest | undefined;
  /** Its reply is complete; `request.error` says how it went. */
  complete(request: ClientRequest): void;
}

/** Room kept at the end of the receive buffer; with less, what is unparsed moves to the front. */
const ROOM_MIN = 16 * 1024;
/** After a large payload the next receive takes a head only, so that the next payload isn't copied. */
const HEAD_ONLY_LENGTH = 4096;
/** Longest payload parsed in the receive buffer, bytes. */
const IN_PLACE_MAX = 8 * 1024;

export class ReplyReader {
  readonly #handler: ReplyHandler;
  readonly #session: NbdSession;
  readonly #chunk = Buffer.allocUnsafeSlow(NBD_CLIENT_RECEIVE_LENGTH);
  readonly #view = new DataView(this.#chunk.buffer, this.#chunk.byteOffset);
  readonly #head: ReplyHead = emptyReplyHead();
  #start = 0;
  #end = 0;
  /** The request that the head belongs to, from head to end of payload. */
  #request: ClientRequest | undefined;
  /** Where a payload goes that is not parsed in place. */
  #target: Buffer | undefined;
  #filled = 0;
  #targetIsData = false;
  #direct = false;
  #headOnly = false;

  constructor(session: NbdSession, handler: ReplyHandler) {
    this.#session = session;
    this.#handler = handler;
  }

  /** True between replies: a connection may end here without cutting one. */
  get idle(): boolean {
    return this.#start === this.#end && this.#request === undefined;
  }

  /** Where to receive next. */
  receiveBuffer(): Uint8Array {
    const target = this.#target;
    if (target !== undefined && target.byteLength - this.#filled >= NBD_CLIENT_DIRECT_MIN) {
      this.#direct = true;
      return target.subarray(this.#filled);
    }
    this.#direct = false;
    if (this.#chunk.byteLength - this.#end < ROOM_MIN && this.#start > 0) {
      this.#chunk.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    const limit = this.#headOnly ? this.#end + HEAD_ONLY_LENGTH : this.#chunk.byteLength;
    return this.#chunk.subarray(this.#end, limit);
  }

  /** `length` bytes came where `receiveBuffer` said. @throws BlockError DF_PROTOCOL */
  received(length: number): void {
    if (this.#direct) {
      this.#direct = false;
      this.#filled += length;
      if (this.#filled === this.#target?.byteLength) {
        this.#headOnly = true;
        this.#targetFull();
      }
    } else {
      this.#end += length;
    }
    while (this.#step());
    if (this.#start === this.#end) {
      this.#start = 0;
      this.#end = 0;
    }
  }

  /** Forgets buffers that belong to requests. */
  stop(): void {
    this.#target = undefined;
    this.#request = undefined;
  }

  /** Handles what is there. False: more bytes are needed. */
  #step(): boolean {
    const available = this.#end - this.#start;
    if (this.#target !== undefined) return available > 0 && this.#copyToTarget(this.#target);
    if (this.#request === undefined) return available >= 4 && this.#readHead(available);
    return this.#readPayload(this.#request, available);
  }

  #copyToTarget(target: Buffer): boolean {
    const length = Math.min(target.byteLength - this.#filled, this.#end - this.#start);
    this.#chunk.copy(target, this.#filled, this.#start, this.#start + length);
    this.#start += length;
    this.#filled += length;
    if (this.#filled < target.byteLength) return false;
    this.#headOnly = false;
    this.#targetFull();
    return true;
  }

  #targetFull(): void {
    const { type } = this.#head;
    const request = this.#request;
    const target = this.#target;
    const isData = this.#targetIsData;
    this.#target = undefined;
    this.#request = undefined;
    if (request === undefined || target === undefined) return;
    if (!isData) this.#handlePayload(request, target);
    else if (type === NBD_REPLY_TYPE_OFFSET_DATA) this.#chunkDone(request);
    else this.#handler.complete(request);
  }

  #readHead(available: number): boolean {
    const head = this.#head;
    const at = this.#start;
    const magic = this.#view.getUint32(at);
    const { replies } = this.#session;
    if (magic === NBD_SIMPLE_REPLY_MAGIC && replies !== 'extended') {
      if (available < NBD_SIMPLE_REPLY.size) return false;
      decodeSimpleReply(this.#view, at, head);
      this.#start += NBD_SIMPLE_REPLY.size;
      this.#simpleReply(this.#find());
    } else if (magic === NBD_STRUCTURED_REPLY_MAGIC && replies === 'structured') {
      if (available < NBD_STRUCTURED_REPLY.size) return false;
      decodeStructuredReply(this.#view, at, head);
      this.#start += NBD_STRUCTURED_REPLY.size;
      this.#chunkHead(this.#find());
    } else if (magic === NBD_EXTENDED_REPLY_MAGIC && replies === 'extended') {
      if (available < NBD_EXTENDED_REPLY.size) return false;
      decodeExtendedReply(this.#view, at, head);
      this.#start += NBD_EXTENDED_REPLY.size;
      const request = this.#find();
      if (head.offset !== request.offset) {
        throw protocolError(`reply to ${request.describe()} has offset ${head.offset}`);
      }
      this.#chunkHead(request);
    } else {
      throw protocolError(`invalid magic (got 0x${magic.toString(16)})`);
    }
    return true;
  }

  #find(): ClientRequest {
    const { cookieHigh, cookieLow } = this.#head;
    const request = this.#handler.find(cookieHigh, cookieLow);
    if (request === undefined) {
      const cookie = (BigInt(cookieHigh) << 32n) | BigInt(cookieLow);
      throw protocolError(
        `the server answered cookie 0x${cookie.toString(16)}, which is not waiting`,
      );
    }
    return request;
  }

  #simpleReply(request: ClientRequest): void {
    const { error } = this.#head;
    const { command } = request;
    if (error !== 0) {
      request.error = serverError(request, error, '');
      this.#handler.complete(request);
      return;
    }
    const structured = this.#session.replies !== 'simple';
    if (structured && (command === NBD_CMD_READ || command === NBD_CMD_BLOCK_STATUS)) {
      throw protocolError(`simple reply to ${request.describe()} when structured is negotiated`);
    }
    if (command === NBD_CMD_READ && request.buffer !== undefined && request.length > 0) {
      this.#head.type = NBD_REPLY_TYPE_NONE;
      this.#request = request;
      this.#aim(request.buffer, { isData: true });
      return;
    }
    this.#handler.complete(request);
  }

  #aim(target: Buffer, options: { isData: boolean }): void {
    this.#target = target;
    this.#targetIsData = options.isData;
    this.#filled = 0;
  }

  /** Checks a chunk's type and length against its request, before its payload. */
  #chunkHead(request: ClientRequest): void {
    const { type, length, flags } = this.#head;
    const name = replyTypeName(type);
    if (type === NBD_REPLY_TYPE_NONE) {
      if ((flags & NBD_REPLY_FLAG_DONE) === 0) throw protocolError(`${name} chunk without DONE`);
      if (length !== 0) throw protocolError(`${name} chunk with ${length} bytes of payload`);
      this.#chunkDone(request);
      return;
    }
    const [min, max] = this.#payloadBounds(request);
    if (length < min || length > max) {
      throw protocolError(
        `${name} chunk of ${length} bytes, not ${min} to ${max}, in reply to ${request.describe()}`,
      );
    }
    this.#request = request;
  }

  #payloadBounds(request: ClientRequest): readonly [number, number] {
    const { type } = this.#head;
    const { command } = request;
    if (type === NBD_REPLY_TYPE_OFFSET_DATA && command === NBD_CMD_READ) {
      return [NBD_OFFSET_DATA.size + 1, NBD_OFFSET_DATA.size + request.length];
    }
    if (type === NBD_REPLY_TYPE_OFFSET_HOLE && command === NBD_CMD_READ) {
      return [NBD_OFFSET_HOLE.size, NBD_OFFSET_HOLE.size];
    }
    if ((type & NBD_REPLY_TYPE_FLAG_ERROR) !== 0) return [4, NBD_STRING_MAX + 16];
    const status =
      this.#session.replies === 'extended'
        ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT
        : NBD_REPLY_TYPE_BLOCK_STATUS;
    if (command === NBD_CMD_BLOCK_STATUS && type === status) {
      return [statusChunkMin(type), NBD_CLIENT_STATUS_MAX];
    }
    throw protocolError(`unexpected ${replyTypeName(type)} in reply to ${request.describe()}`);
  }

  #readPayload(request: ClientRequest, available: number): boolean {
    const { type, length } = this.#head;
    if (type === NBD_REPLY_TYPE_OFFSET_DATA) {
      if (available < NBD_OFFSET_DATA.size) return false;
      const offset = readUint64(this.#view, this.#start);
      this.#start += NBD_OFFSET_DATA.size;
      this.#aim(this.#claim(request, offset, length - NBD_OFFSET_DATA.size), { isData: true });
      return true;
    }
    if (length > IN_PLACE_MAX) {
      this.#aim(Buffer.allocUnsafe(length), { isData: false });
      return true;
    }
    if (available < length) return false;
    const payload = this.#chunk.subarray(this.#start, this.#start + length);
    this.#start += length;
    this.#request = undefined;
    this.#handlePayload(request, payload);
    return true;
  }

  /** The part of the request's buffer that a chunk is about, now counted as come. */
  #claim(request: ClientRequest, offset: number, length: number): Buffer {
    const at = offset - request.offset;
    const { buffer, covered } = request;
    if (buffer === undefined || covered === undefined || at < 0 || at + length > request.length) {
      throw protocolError(`chunk of ${length} bytes at ${offset} exceeds ${request.describe()}`);
    }
    if (!covered.add(at, at + length)) {
      throw protocolError(`chunks overlap, or are too many, in reply to ${request.describe()}`);
    }
    return buffer.subarray(at, at + length);
  }

  #handlePayload(request: ClientRequest, payload: Buffer): void {
    const { type } = this.#head;
    if ((type & NBD_REPLY_TYPE_FLAG_ERROR) !== 0) {
      addErrorChunk(request, type, payload);
    } else if (type === NBD_REPLY_TYPE_OFFSET_HOLE) {
      const { offset, length } = NBD_OFFSET_HOLE.decode(payload);
      if (length === 0) throw protocolError('NBD_REPLY_TYPE_OFFSET_HOLE of 0 bytes');
      this.#claim(request, Number(offset), length).fill(0);
    } else {
      addStatusChunk(request, this.#session, type, payload);
    }
    this.#chunkDone(request);
  }

  #chunkDone(request: ClientRequest): void {
    if ((this.#head.flags & NBD_REPLY_FLAG_DONE) === 0) return;
    finishRequest(request, this.#session);
    this.#handler.complete(request);
  }
}
