// SPDX-License-Identifier: MIT
/** The error of a request that fewer copies than needed could do. */
import { BlockError, errnoName } from '../../../base/errors.js';
import { commonError } from './vote.js';

/**
 * @param errors of the copies that failed, at least one; the code is that of what most of them say
 * @param copies how many copies there are
 */
export function tooManyFailed(
  op: 'read' | 'write' | 'flush',
  { offset, length }: { readonly offset: number; readonly length: number },
  errors: readonly unknown[],
  copies: number,
): BlockError {
  const cause = commonError(errors);
  const errno = errnoName(cause);
  return new BlockError(
    cause instanceof BlockError ? cause.code : 'DF_IO',
    `quorum: ${op} failed on ${errors.length} of ${copies} copies`,
    { op, offset, length, ...(errno === undefined ? {} : { errno }) },
    { cause },
  );
}
