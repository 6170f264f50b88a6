// SPDX-License-Identifier: MIT
/** What the chunks of a structured reply say, checked. @see proto.md "Structured reply types" */
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_READ,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  replyTypeName,
} from '../../../protocol/nbd/constants.js';
import {
  NBD_BLOCK_STATUS_EXT_HEAD,
  NBD_BLOCK_STATUS_HEAD,
  NBD_ERROR_CHUNK,
  NBD_EXTENT,
  NBD_EXTENT_EXT,
  readUint64,
} from '../../../protocol/nbd/transmission.js';
import { NBD_CLIENT_ERROR_CHUNKS_MAX } from '../../base/limits.js';
import type { NbdSession } from './negotiate.js';
import { protocolError } from './option-stream.js';
import { type ClientRequest, type NbdExtent, serverError } from './request.js';

/** Shortest block status chunk: a head and one extent, bytes. */
export function statusChunkMin(type: number): number {
  return type === NBD_REPLY_TYPE_BLOCK_STATUS_EXT
    ? NBD_BLOCK_STATUS_EXT_HEAD.size + NBD_EXTENT_EXT.size
    : NBD_BLOCK_STATUS_HEAD.size + NBD_EXTENT.size;
}

/** NBD_REPLY_TYPE_ERROR, NBD_REPLY_TYPE_ERROR_OFFSET, and error types that are not known yet. */
export function addErrorChunk(request: ClientRequest, type: number, payload: Buffer): void {
  request.errorChunks++;
  if (request.errorChunks > NBD_CLIENT_ERROR_CHUNKS_MAX) {
    throw protocolError(`more than ${NBD_CLIENT_ERROR_CHUNKS_MAX} error chunks`);
  }
  let error = payload.readUInt32BE(0);
  let message = '';
  if (type === NBD_REPLY_TYPE_ERROR || type === NBD_REPLY_TYPE_ERROR_OFFSET) {
    const name = replyTypeName(type);
    const tail = type === NBD_REPLY_TYPE_ERROR_OFFSET ? 8 : 0;
    if (payload.byteLength < NBD_ERROR_CHUNK.size + tail) {
      throw protocolError(`${name} chunk of ${payload.byteLength} bytes is too short`);
    }
    const head = NBD_ERROR_CHUNK.decode(payload);
    error = head.error;
    const end = NBD_ERROR_CHUNK.size + head.messageLength;
    if (end + tail !== payload.byteLength) {
      throw protocolError(`${name} chunk with a message of ${head.messageLength} bytes`);
    }
    message = payload.toString('utf8', NBD_ERROR_CHUNK.size, end);
    if (tail > 0) checkErrorOffset(request, Number(payload.readBigUInt64BE(end)));
  }
  if (error === 0) throw protocolError(`${replyTypeName(type)} chunk with error 0`);
  request.error ??= serverError(request, error, message);
}

function checkErrorOffset(request: ClientRequest, offset: number): void {
  if (offset < request.offset || offset > request.offset + request.length) {
    throw protocolError(`error offset ${offset} is outside of ${request.describe()}`);
  }
}

/** NBD_REPLY_TYPE_BLOCK_STATUS and NBD_REPLY_TYPE_BLOCK_STATUS_EXT. */
export function addStatusChunk(
  request: ClientRequest,
  session: NbdSession,
  type: number,
  payload: Buffer,
): void {
  const wide = type === NBD_REPLY_TYPE_BLOCK_STATUS_EXT;
  const headSize = wide ? NBD_BLOCK_STATUS_EXT_HEAD.size : NBD_BLOCK_STATUS_HEAD.size;
  const extentSize = wide ? NBD_EXTENT_EXT.size : NBD_EXTENT.size;
  const { contextId } = NBD_BLOCK_STATUS_HEAD.decode(payload);
  const count = (payload.byteLength - headSize) / extentSize;
  const told = wide ? NBD_BLOCK_STATUS_EXT_HEAD.decode(payload).count : count;
  if (!Number.isInteger(count) || told !== count) {
    throw protocolError(`${replyTypeName(type)} chunk of ${payload.byteLength} bytes`);
  }
  const known = [...session.contexts.values()].includes(contextId);
  if (!known || request.extents === undefined || request.extents.has(contextId)) {
    throw protocolError(`unexpected context id ${contextId} for ${replyTypeName(type)}`);
  }
  request.extents.set(contextId, readExtents(request, payload.subarray(headSize), { wide }));
}

/** Extents up to the request's end; what lies beyond is cut off or left out. */
function readExtents(
  request: ClientRequest,
  bytes: Buffer,
  options: { wide: boolean },
): NbdExtent[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = options.wide ? NBD_EXTENT_EXT.size : NBD_EXTENT.size;
  const countMax = (request.flags & NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : Number.POSITIVE_INFINITY;
  const extents: NbdExtent[] = [];
  let left = request.length;
  for (let at = 0; at < bytes.byteLength; at += size) {
    const length = options.wide ? readUint64(view, at) : view.getUint32(at);
    const flags = options.wide ? readUint64(view, at + 8) : view.getUint32(at + 4);
    if (length === 0) throw protocolError('server sent status chunk with zero length');
    if (left === 0 || extents.length === countMax) break;
    extents.push({ length: Math.min(length, left), flags });
    left -= Math.min(length, left);
  }
  return extents;
}

/** The last chunk is there: nothing may be missing. */
export function finishRequest(request: ClientRequest, session: NbdSession): void {
  if (request.error !== undefined) return;
  if (request.command === NBD_CMD_READ && !request.covered?.covers(0, request.length)) {
    throw protocolError(`the reply to ${request.describe()} leaves bytes out`);
  }
  if (request.command !== NBD_CMD_BLOCK_STATUS) return;
  const { extents } = request;
  if (extents === undefined || extents.size === 0) {
    throw protocolError('Server did not reply with any status extents');
  }
  const statuses = new Map<string, NbdExtent[]>();
  for (const [name, id] of session.contexts) {
    const found = extents.get(id);
    if (found === undefined)
      throw protocolError(`no status of meta context '${name}' in the reply`);
    statuses.set(name, found);
  }
  request.statuses = statuses;
}
