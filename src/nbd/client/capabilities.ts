// SPDX-License-Identifier: MIT
/** Transmission flags by name. @see proto.md "Transmission flags" */
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_ROTATIONAL,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from '../../../protocol/nbd/constants.js';

/** What the server can do with this export. */
export interface NbdCapabilities {
  readonly readOnly: boolean;
  readonly flush: boolean;
  readonly fua: boolean;
  readonly rotational: boolean;
  readonly trim: boolean;
  readonly writeZeroes: boolean;
  readonly df: boolean;
  readonly multiConn: boolean;
  readonly cache: boolean;
  readonly fastZero: boolean;
}

/** @param flags NBD_FLAG_* */
export function capabilitiesOf(flags: number): NbdCapabilities {
  const has = (flag: number): boolean => (flags & flag) !== 0;
  return {
    readOnly: has(NBD_FLAG_READ_ONLY),
    flush: has(NBD_FLAG_SEND_FLUSH),
    fua: has(NBD_FLAG_SEND_FUA),
    rotational: has(NBD_FLAG_ROTATIONAL),
    trim: has(NBD_FLAG_SEND_TRIM),
    writeZeroes: has(NBD_FLAG_SEND_WRITE_ZEROES),
    df: has(NBD_FLAG_SEND_DF),
    multiConn: has(NBD_FLAG_CAN_MULTI_CONN),
    cache: has(NBD_FLAG_SEND_CACHE),
    fastZero: has(NBD_FLAG_SEND_FAST_ZERO),
  };
}
