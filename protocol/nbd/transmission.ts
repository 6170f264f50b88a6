// SPDX-License-Identifier: MIT
/**
 * Messages of the transmission phase: each as a table, and, for those on the path of every request,
 * a straight-line codec that works in place. Tests hold both against each other.
 *
 * Cookies are two 32-bit halves here, so that an opaque 64-bit value costs no bigint. Offsets and
 * lengths of 64 bits become numbers; beyond 2^53 they lose low bits but stay above every real size,
 * so that a bounds check still refuses them.
 */
import { Struct } from '../layout.js';
import {
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_EXTENDED_REQUEST_MAGIC,
  NBD_REQUEST_MAGIC,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
} from './constants.js';

/** Client request; WRITE appends `length` data bytes. @see proto.md "Request message" */
export const NBD_REQUEST = new Struct('nbd_request', 28, {
  magic: 'u32', // NBD_REQUEST_MAGIC
  flags: 'u16', // NBD_CMD_FLAG_*
  type: 'u16', // NBD_CMD_*
  cookie: 'u64', // opaque; every reply echoes it
  offset: 'u64', // bytes from the start of the export
  length: 'u32', // bytes
});

/** Request with extended headers. @see extension-ext-header, "Extended request message" */
export const NBD_EXTENDED_REQUEST = new Struct('nbd_extended_request', 32, {
  magic: 'u32', // NBD_EXTENDED_REQUEST_MAGIC
  flags: 'u16', // NBD_CMD_FLAG_*; PAYLOAD_LEN: `length` bytes follow
  type: 'u16', // NBD_CMD_*
  cookie: 'u64',
  offset: 'u64',
  length: 'u64', // payload bytes with PAYLOAD_LEN, bytes of effect otherwise
});

/** @see proto.md "Simple reply message" */
export const NBD_SIMPLE_REPLY = new Struct('nbd_simple_reply', 16, {
  magic: 'u32', // NBD_SIMPLE_REPLY_MAGIC
  error: 'u32', // NBD_E*, 0 for success
  cookie: 'u64',
});

/** Head of a chunk; `length` bytes follow. @see proto.md "Structured reply chunk message" */
export const NBD_STRUCTURED_REPLY = new Struct('nbd_structured_reply', 20, {
  magic: 'u32', // NBD_STRUCTURED_REPLY_MAGIC
  flags: 'u16', // NBD_REPLY_FLAG_*
  type: 'u16', // NBD_REPLY_TYPE_*
  cookie: 'u64',
  length: 'u32', // bytes
});

/** Head of a chunk with extended headers; `length` bytes follow. */
export const NBD_EXTENDED_REPLY = new Struct('nbd_extended_reply', 32, {
  magic: 'u32', // NBD_EXTENDED_REPLY_MAGIC
  flags: 'u16', // NBD_REPLY_FLAG_*
  type: 'u16', // NBD_REPLY_TYPE_*
  cookie: 'u64',
  offset: 'u64', // of the request
  length: 'u64', // bytes
});

/** Start of NBD_REPLY_TYPE_OFFSET_DATA; the data follows. */
export const NBD_OFFSET_DATA = new Struct('nbd_offset_data', 8, { offset: 'u64' });
/** Payload of NBD_REPLY_TYPE_OFFSET_HOLE. */
export const NBD_OFFSET_HOLE = new Struct('nbd_offset_hole', 12, { offset: 'u64', length: 'u32' });
/** Start of every error chunk; the message follows, then in ERROR_OFFSET the offset (u64). */
export const NBD_ERROR_CHUNK = new Struct('nbd_error_chunk', 6, {
  error: 'u32', // NBD_E*, not 0
  messageLength: 'u16', // bytes of UTF-8
});
/** Start of NBD_REPLY_TYPE_BLOCK_STATUS; NBD_EXTENT descriptors follow. */
export const NBD_BLOCK_STATUS_HEAD = new Struct('nbd_block_status', 4, { contextId: 'u32' });
export const NBD_EXTENT = new Struct('nbd_extent', 8, { length: 'u32', flags: 'u32' });
/** Start of NBD_REPLY_TYPE_BLOCK_STATUS_EXT; `count` NBD_EXTENT_EXT descriptors follow. */
export const NBD_BLOCK_STATUS_EXT_HEAD = new Struct('nbd_block_status_ext', 8, {
  contextId: 'u32',
  count: 'u32',
});
export const NBD_EXTENT_EXT = new Struct('nbd_extent_ext', 16, { length: 'u64', flags: 'u64' });
/** Payload of BLOCK_STATUS with PAYLOAD_LEN: this, then context ids (u32) to the payload's end. */
export const NBD_BLOCK_STATUS_PAYLOAD = new Struct('nbd_block_status_payload', 8, {
  effectLength: 'u64', // bytes
});

const TWO_32 = 0x1_0000_0000;

/** A 64-bit number at `at`; above 2^53 its low bits are lost. */
export function readUint64(view: DataView, at: number): number {
  return view.getUint32(at) * TWO_32 + view.getUint32(at + 4);
}

/** Writes a whole number below 2^53 as 64 bits. */
export function writeUint64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / TWO_32));
  view.setUint32(at + 4, value % TWO_32);
}

/** The client's mark on a request, in halves. */
export interface Cookie {
  cookieHigh: number;
  cookieLow: number;
}

/** A request's head. */
export interface RequestHead extends Cookie {
  flags: number;
  type: number;
  /** Bytes. */
  offset: number;
  /** Bytes. */
  length: number;
}

/** A request's head as it was received, with the offset as it stood there: replies echo it. */
export interface ReceivedRequest extends RequestHead {
  offsetHigh: number;
  offsetLow: number;
}

export function emptyRequestHead(): ReceivedRequest {
  return {
    flags: 0,
    type: 0,
    cookieHigh: 0,
    cookieLow: 0,
    offset: 0,
    length: 0,
    offsetHigh: 0,
    offsetLow: 0,
  };
}

/** NBD_REQUEST at `at` into `head`, one object for many requests. Returns false when the magic is wrong. */
export function decodeRequest(view: DataView, at: number, head: ReceivedRequest): boolean {
  if (view.getUint32(at) !== NBD_REQUEST_MAGIC) return false;
  decodeRequestFields(view, at, head);
  head.length = view.getUint32(at + 24);
  return true;
}

/** NBD_EXTENDED_REQUEST at `at` into `head`. Returns false when the magic is wrong. */
export function decodeExtendedRequest(view: DataView, at: number, head: ReceivedRequest): boolean {
  if (view.getUint32(at) !== NBD_EXTENDED_REQUEST_MAGIC) return false;
  decodeRequestFields(view, at, head);
  head.length = readUint64(view, at + 24);
  return true;
}

function decodeRequestFields(view: DataView, at: number, head: ReceivedRequest): void {
  head.flags = view.getUint16(at + 4);
  head.type = view.getUint16(at + 6);
  head.cookieHigh = view.getUint32(at + 8);
  head.cookieLow = view.getUint32(at + 12);
  head.offsetHigh = view.getUint32(at + 16);
  head.offsetLow = view.getUint32(at + 20);
  head.offset = head.offsetHigh * TWO_32 + head.offsetLow;
}

export function encodeRequest(view: DataView, at: number, head: Readonly<RequestHead>): void {
  view.setUint32(at, NBD_REQUEST_MAGIC);
  encodeRequestFields(view, at, head);
  view.setUint32(at + 24, head.length);
}

export function encodeExtendedRequest(
  view: DataView,
  at: number,
  head: Readonly<RequestHead>,
): void {
  view.setUint32(at, NBD_EXTENDED_REQUEST_MAGIC);
  encodeRequestFields(view, at, head);
  writeUint64(view, at + 24, head.length);
}

function encodeRequestFields(view: DataView, at: number, head: Readonly<RequestHead>): void {
  view.setUint16(at + 4, head.flags);
  view.setUint16(at + 6, head.type);
  view.setUint32(at + 8, head.cookieHigh);
  view.setUint32(at + 12, head.cookieLow);
  writeUint64(view, at + 16, head.offset);
}

/** @param error NBD_E*, 0 for success */
export function encodeSimpleReply(
  view: DataView,
  at: number,
  cookie: Readonly<Cookie>,
  error: number,
): void {
  view.setUint32(at, NBD_SIMPLE_REPLY_MAGIC);
  view.setUint32(at + 4, error);
  view.setUint32(at + 8, cookie.cookieHigh);
  view.setUint32(at + 12, cookie.cookieLow);
}

/** What a chunk's head says, besides the request that it answers. */
export interface ChunkHead {
  /** NBD_REPLY_FLAG_*. */
  flags: number;
  /** NBD_REPLY_TYPE_*. */
  type: number;
  /** Bytes of payload behind the head. */
  length: number;
}

export function encodeStructuredReply(
  view: DataView,
  at: number,
  cookie: Readonly<Cookie>,
  chunk: Readonly<ChunkHead>,
): void {
  view.setUint32(at, NBD_STRUCTURED_REPLY_MAGIC);
  encodeReplyFields(view, at, cookie, chunk);
  view.setUint32(at + 16, chunk.length);
}

/** @param request the request that is answered; its offset is echoed */
export function encodeExtendedReply(
  view: DataView,
  at: number,
  request: Readonly<ReceivedRequest>,
  chunk: Readonly<ChunkHead>,
): void {
  view.setUint32(at, NBD_EXTENDED_REPLY_MAGIC);
  encodeReplyFields(view, at, request, chunk);
  view.setUint32(at + 16, request.offsetHigh);
  view.setUint32(at + 20, request.offsetLow);
  writeUint64(view, at + 24, chunk.length);
}

function encodeReplyFields(
  view: DataView,
  at: number,
  cookie: Readonly<Cookie>,
  chunk: Readonly<ChunkHead>,
): void {
  view.setUint16(at + 4, chunk.flags);
  view.setUint16(at + 6, chunk.type);
  view.setUint32(at + 8, cookie.cookieHigh);
  view.setUint32(at + 12, cookie.cookieLow);
}

/** A reply's head of any form; the decoders fill one object again and again. */
export interface ReplyHead extends Cookie, ChunkHead {
  /** Simple replies: NBD_E*, 0 for success. Chunks carry it in their payload: 0 here. */
  error: number;
  /** Extended headers: the request's offset. 0 otherwise. */
  offset: number;
}

export function emptyReplyHead(): ReplyHead {
  return { flags: 0, type: 0, length: 0, error: 0, offset: 0, cookieHigh: 0, cookieLow: 0 };
}

/** NBD_SIMPLE_REPLY at `at`, whose magic has been looked at, into `head`. */
export function decodeSimpleReply(view: DataView, at: number, head: ReplyHead): void {
  head.flags = 0;
  head.type = 0;
  head.length = 0;
  head.offset = 0;
  head.error = view.getUint32(at + 4);
  head.cookieHigh = view.getUint32(at + 8);
  head.cookieLow = view.getUint32(at + 12);
}

/** NBD_STRUCTURED_REPLY at `at`, whose magic has been looked at, into `head`. */
export function decodeStructuredReply(view: DataView, at: number, head: ReplyHead): void {
  decodeReplyFields(view, at, head);
  head.offset = 0;
  head.length = view.getUint32(at + 16);
}

/** NBD_EXTENDED_REPLY at `at`, whose magic has been looked at, into `head`. */
export function decodeExtendedReply(view: DataView, at: number, head: ReplyHead): void {
  decodeReplyFields(view, at, head);
  head.offset = readUint64(view, at + 16);
  head.length = readUint64(view, at + 24);
}

function decodeReplyFields(view: DataView, at: number, head: ReplyHead): void {
  head.error = 0;
  head.flags = view.getUint16(at + 4);
  head.type = view.getUint16(at + 6);
  head.cookieHigh = view.getUint32(at + 8);
  head.cookieLow = view.getUint32(at + 12);
}
