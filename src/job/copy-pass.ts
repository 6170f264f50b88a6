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

interface Range {
  readonly offset: number;
  readonly length: number;
}

/** Parts of a range that have not been copied; absent: all of it has. */
type Gaps = readonly Range[] | undefined;

/**
 * Copies what a range has in files, run by run; the runs are under way at the same time.
 * @param whole bytes
 * @returns what is left to be read and written; none of the rest is zeroes alone
 * @throws CopyError, when nothing is under way any more
 */
export function passRange(
  sides: { readonly source: CopySource; readonly target: CopyTarget },
  whole: Range,
): MaybePromise<Gaps> {
  const end = whole.offset + whole.length;
  let offset = whole.offset;
  const waiting: Promise<Gaps>[] = [];
  while (offset < end) {
    const run = passRun(sides, { offset, length: end - offset });
    const { taken } = run;
    if (isPromise(taken)) waiting.push(taken.then((count) => gap(run, count)));
    const passed = isPromise(taken) ? run.length : taken;
    if (passed === 0) break;
    offset += passed;
  }
  const rest = offset < end ? [{ offset, length: end - offset }] : undefined;
  const [only] = waiting;
  if (only === undefined) return rest;
  return waiting.length === 1 && rest === undefined ? only : allGaps(waiting, rest);
}

interface Run extends Range {
  readonly taken: MaybePromise<number>;
}

/** Begins with the first run; its length is what the promise is about. */
function passRun(
  { source, target }: { readonly source: CopySource; readonly target: CopyTarget },
  { offset, length }: Range,
): Run {
  if (source.readRange === undefined || target.writeFrom === undefined) {
    return { offset, length: 0, taken: 0 };
  }
  let runLength = 0;
  const write = (range: FileRange): MaybePromise<number> => {
    runLength = range.length;
    const failed = (error: unknown): never => {
      throw new CopyError(isReadError(error, range) ? 'read' : 'write', error);
    };
    try {
      const pending = target.writeFrom?.(offset, range) ?? 0;
      return isPromise(pending) ? pending.catch(failed) : pending;
    } catch (error) {
      return failed(error);
    }
  };
  try {
    const taken = source.readRange(offset, length, write);
    return { offset, length: runLength, taken };
  } catch (error) {
    // Other runs may be under way: they have to end first.
    return { offset, length: 0, taken: Promise.reject(error) };
  }
}

function gap({ offset, length }: Run, taken: number): Gaps {
  return taken === length ? undefined : [{ offset: offset + taken, length: length - taken }];
}

async function allGaps(waiting: readonly Promise<Gaps>[], rest: Gaps): Promise<Gaps> {
  const gaps = [...(rest ?? [])];
  const results = await Promise.allSettled(waiting);
  for (const result of results) {
    if (result.status === 'rejected') throw result.reason;
    gaps.push(...(result.value ?? []));
  }
  return gaps.length > 0 ? gaps : undefined;
}

function isReadError(error: unknown, { file }: FileRange): boolean {
  if (!(error instanceof BlockError)) return false;
  return error.context.op === 'read' && error.context.path === file.path;
}
