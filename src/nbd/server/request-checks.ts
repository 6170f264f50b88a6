// SPDX-License-Identifier: MIT
/** What a request must satisfy before anything is done for it. @see proto.md "Request types" */
import {
  commandFlagNames,
  commandName,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EOVERFLOW,
  NBD_EPERM,
} from '../../../protocol/nbd/constants.js';
import type { ReceivedRequest } from '../../../protocol/nbd/transmission.js';
import { NBD_PAYLOAD_MAX } from '../../base/limits.js';
import { REPLY_EXTENDED, REPLY_SIMPLE, type Session } from './session.js';

/** Why a request is refused. */
export interface Refusal {
  /** NBD_E*. */
  readonly error: number;
  readonly message: string;
}

/** Flags that are legal with each command; FUA is with all. Index: NBD_CMD_*. */
const LEGAL_FLAGS: readonly number[] = (() => {
  const flags: number[] = [];
  flags[NBD_CMD_READ] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF;
  flags[NBD_CMD_WRITE] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_PAYLOAD_LEN;
  flags[NBD_CMD_FLUSH] = NBD_CMD_FLAG_FUA;
  flags[NBD_CMD_TRIM] = NBD_CMD_FLAG_FUA;
  flags[NBD_CMD_CACHE] = NBD_CMD_FLAG_FUA;
  flags[NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
  flags[NBD_CMD_BLOCK_STATUS] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN;
  return flags;
})();

/**
 * Checks command, flags, permission, alignment and range. DISC never comes here.
 * @param head `length` is that of the effect, also where a payload said it
 * @returns undefined when the request may be executed
 */
export function refuse(head: Readonly<ReceivedRequest>, session: Session): Refusal | undefined {
  const legal = LEGAL_FLAGS[head.type];
  if (legal === undefined) return invalid(head, 'is no command of this server');
  let illegal = head.flags & ~legal;
  if (session.form === REPLY_SIMPLE) illegal |= head.flags & NBD_CMD_FLAG_DF;
  if (session.form !== REPLY_EXTENDED) illegal |= head.flags & NBD_CMD_FLAG_PAYLOAD_LEN;
  if (illegal !== 0) return invalid(head, `does not take the flags ${commandFlagNames(illegal)}`);
  if (head.type === NBD_CMD_FLUSH) return refuseFlush(head);
  const { backend, writable } = session.export;
  const alters =
    head.type === NBD_CMD_WRITE || head.type === NBD_CMD_TRIM || head.type === NBD_CMD_WRITE_ZEROES;
  if (alters && !writable) {
    return { error: NBD_EPERM, message: `${commandName(head.type)}: the export is read-only` };
  }
  const { size } = backend;
  if (head.offset > size || head.length > size - head.offset) return outOfRange(head, size);
  const minimum = session.minimumBlock;
  const isAligned = head.offset % minimum === 0 && head.length % minimum === 0;
  // QEMU's client asks to trim what its guest names, whatever the blocks; TRIM is advice, and the node
  // discards the whole blocks inside of it.
  if (!isAligned && head.type !== NBD_CMD_TRIM) {
    return invalid(head, `is not aligned to ${minimum} bytes`);
  }
  return refuseByCommand(head, session);
}

function refuseFlush(head: Readonly<ReceivedRequest>): Refusal | undefined {
  if (head.offset === 0 && head.length === 0) return undefined;
  return invalid(head, 'takes no offset and no length');
}

function outOfRange(head: Readonly<ReceivedRequest>, size: number): Refusal {
  const grows = head.type === NBD_CMD_WRITE || head.type === NBD_CMD_WRITE_ZEROES;
  const range = `offset ${head.offset} and length ${head.length} reach past the size ${size}`;
  return {
    error: grows ? NBD_ENOSPC : NBD_EINVAL,
    message: `${commandName(head.type)}: ${range}`,
  };
}

function refuseByCommand(head: Readonly<ReceivedRequest>, session: Session): Refusal | undefined {
  const bounded = head.type === NBD_CMD_READ || head.type === NBD_CMD_CACHE;
  if (bounded && head.length > NBD_PAYLOAD_MAX) {
    const command = commandName(head.type);
    const message = `${command}: length ${head.length} is above the limit ${NBD_PAYLOAD_MAX}`;
    return { error: session.form === REPLY_SIMPLE ? NBD_EINVAL : NBD_EOVERFLOW, message };
  }
  if (head.type !== NBD_CMD_BLOCK_STATUS) return undefined;
  if (session.contexts.length === 0) return invalid(head, 'without a negotiated meta context');
  if (head.length === 0) return invalid(head, 'of length 0');
  return undefined;
}

function invalid(head: Readonly<ReceivedRequest>, why: string): Refusal {
  return { error: NBD_EINVAL, message: `${commandName(head.type)} ${why}` };
}
