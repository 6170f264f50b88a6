// SPDX-License-Identifier: MIT
/** The part of a copy that needs no buffer: from the source's file to the target by itself. */
import { BlockError } from '../base/errors.js';
import { isPromise, type MaybePromise } from '../base/maybe-promise.js';
import type { FileRange } from '../block/file-range.js';
import type { CopySource, CopyTarget } from './copy-loop.js';

/** A failed copy; `operation` says which side. */
export class CopyError extends Error {
  constructor(
    readonly operation: 'read' | 'write',
    cause: unknown,
  ) {
    super('copy failed', { cause });
  }
}

/**
 * @param range bytes
 * @returns bytes from the start of the range that have been copied; none of it is zeroes alone
 * @throws CopyError
 */
export function passRange(
  { source, target }: { readonly source: CopySource; readonly target: CopyTarget },
  { offset, length }: { readonly offset: number; readonly length: number },
): MaybePromise<number> {
  if (source.readRange === undefined || target.writeFrom === undefined) return 0;
  return source.readRange(offset, length, (range) => {
    const failed = (error: unknown): never => {
      throw new CopyError(isReadError(error, range) ? 'read' : 'write', error);
    };
    try {
      const taken = target.writeFrom?.(offset, range) ?? 0;
      return isPromise(taken) ? taken.catch(failed) : taken;
    } catch (error) {
      return failed(error);
    }
  });
}

function isReadError(error: unknown, { file }: FileRange): boolean {
  if (!(error instanceof BlockError)) return false;
  return error.context.op === 'read' && error.context.path === file.path;
}
