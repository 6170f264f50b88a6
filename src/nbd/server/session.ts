// SPDX-License-Identifier: MIT
/** What the option phase agreed on, and what the transmission phase keeps to. */
import {
  NBD_FLAG_BLOCK_STATUS_PAYLOAD,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from '../../../protocol/nbd/constants.js';
import { NBD_PAYLOAD_MAX } from '../../base/limits.js';
import type { NbdExport } from './export.js';
import type { MetaContext } from './meta-contexts.js';

/** Form of replies. Each includes what the ones before it can do. */
export const REPLY_SIMPLE = 0;
export const REPLY_STRUCTURED = 1;
export const REPLY_EXTENDED = 2;
export type ReplyForm = typeof REPLY_SIMPLE | typeof REPLY_STRUCTURED | typeof REPLY_EXTENDED;

export interface Session {
  readonly export: NbdExport;
  readonly form: ReplyForm;
  /** Selected for this export; empty when BLOCK_STATUS is not allowed. */
  readonly contexts: readonly MetaContext[];
  /** Offsets and lengths are multiples of this, bytes; what the client agreed to, 1 otherwise. */
  readonly minimumBlock: number;
}

const FLAGS_ALWAYS =
  NBD_FLAG_HAS_FLAGS |
  NBD_FLAG_SEND_FLUSH |
  NBD_FLAG_SEND_FUA |
  NBD_FLAG_SEND_CACHE |
  NBD_FLAG_CAN_MULTI_CONN;
const FLAGS_WRITABLE = NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;

/**
 * Transmission flags of an export for a client that negotiated `form`. Multi-conn is true for
 * writable exports too: all connections share one node, so a flush on one covers all.
 */
export function transmissionFlags(exported: NbdExport, form: ReplyForm): number {
  let flags = FLAGS_ALWAYS | (exported.writable ? FLAGS_WRITABLE : NBD_FLAG_READ_ONLY);
  if (form !== REPLY_SIMPLE) flags |= NBD_FLAG_SEND_DF;
  if (form === REPLY_EXTENDED) flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
  return flags;
}

export interface BlockSizes {
  /** Bytes, powers of two; `maximum` is the longest payload. */
  readonly minimum: number;
  readonly preferred: number;
  readonly maximum: number;
}

/** Of the specification, bytes. */
const MINIMUM_MAX = 65536;
const PREFERRED_MIN = 4096;
const PREFERRED_MAX = NBD_PAYLOAD_MAX;

/** @see proto.md "Size constraints" for what the three have to be */
export function blockSizes(exported: NbdExport): BlockSizes {
  const { limits, size } = exported.backend;
  const { requestAlignment, optimalTransfer } = limits;
  // A node pads what is smaller than its blocks. Clients could not reach the end of one that is no multiple.
  let minimum = Math.min(Math.max(1, requestAlignment), MINIMUM_MAX);
  while (size % minimum !== 0) minimum /= 2;
  const wished = Math.max(minimum, optimalTransfer, PREFERRED_MIN);
  const preferred = Math.min(2 ** Math.floor(Math.log2(wished)), PREFERRED_MAX);
  return { minimum, preferred: Math.max(preferred, minimum), maximum: NBD_PAYLOAD_MAX };
}
