// SPDX-License-Identifier: MIT
/** Whether a server that is back is still the one that requests were made for. */
import {
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  transmissionFlagNames,
} from '../../../protocol/nbd/constants.js';
import type { NbdSession } from './negotiate.js';

/** What users of the client rely on once they have seen it. More than at first is no harm. */
const FEATURES =
  NBD_FLAG_SEND_FLUSH |
  NBD_FLAG_SEND_FUA |
  NBD_FLAG_SEND_TRIM |
  NBD_FLAG_SEND_WRITE_ZEROES |
  NBD_FLAG_SEND_DF |
  NBD_FLAG_SEND_CACHE |
  NBD_FLAG_SEND_FAST_ZERO;

/** In what a connection differs from the first one, where that makes it useless; else undefined. */
export function describeDifference(first: NbdSession, now: NbdSession): string | undefined {
  if (now.size !== first.size) return `${now.size} bytes instead of ${first.size}`;
  const lost = first.transmissionFlags & ~now.transmissionFlags & FEATURES;
  const gained = ~first.transmissionFlags & now.transmissionFlags;
  if ((gained & NBD_FLAG_READ_ONLY) !== 0) return 'a read-only export';
  if (lost !== 0) return `fewer features: no ${transmissionFlagNames(lost)}`;
  if (now.blockSizes.minimum > first.blockSizes.minimum) return 'a larger minimum block size';
  if (now.blockSizes.maximum < first.blockSizes.maximum) return 'a smaller maximum payload';
  for (const context of first.contexts.keys()) {
    if (!now.contexts.has(context)) return `no meta context '${context}'`;
  }
  return undefined;
}
