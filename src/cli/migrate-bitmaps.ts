// SPDX-License-Identifier: MIT
/** What `--bitmaps` means for the command `migrate`: its options, and what is said of its end. */
import type { BitmapCarrier } from './carry-bitmaps.js';

export interface BitmapOptions {
  /** The dirty bitmaps of the node go along. */
  readonly bitmaps: boolean;
  readonly toMonitor?: string | undefined;
  readonly toNode?: string | undefined;
  readonly fromNbd?: string | undefined;
}

export type BitmapEnds = Pick<BitmapOptions, 'toNode' | 'fromNbd'> & { readonly toMonitor: string };

/** Marks the name of a job whose end without the command would leave bitmaps behind. */
export const WITH_BITMAPS = '-bitmaps';

/** @returns undefined without --bitmaps @throws Error for options that do not go together */
export function bitmapEnds(
  options: BitmapOptions & { readonly copyOnly: boolean },
): BitmapEnds | undefined {
  const { bitmaps, toMonitor, toNode, fromNbd, copyOnly } = options;
  if (!bitmaps) {
    if ((toMonitor ?? toNode ?? fromNbd) === undefined) return undefined;
    throw new Error('--to-monitor, --to-node and --from-nbd go with --bitmaps');
  }
  if (toMonitor === undefined) throw new Error('--bitmaps needs --to-monitor MONITOR');
  if (copyOnly) throw new Error('--bitmaps goes with a move, not with --copy-only');
  return { toMonitor, toNode, fromNbd };
}

interface Move {
  readonly node: string;
  readonly to: string;
}

/** Looks after the bitmaps once the users have moved. @throws Error that says that they have */
export async function settleBitmaps(carrier: BitmapCarrier, { node, to }: Move): Promise<void> {
  const moved = `'${node}' is now at ${to}`;
  let changed: readonly string[];
  try {
    changed = await carrier.settle();
  } catch (cause) {
    const text = `${moved} with its bitmaps; whether somebody changed them meanwhile is not known`;
    throw new Error(text, { cause });
  }
  if (changed.length === 0) return;
  const names = changed.map((name) => `'${name}'`).join(', ');
  throw new Error(`${moved} without bitmaps that somebody changed meanwhile: ${names}`);
}

/**
 * The disk was not moved, because its bitmaps could not be; or somebody else has moved it.
 * @param error of the job that was cancelled for it
 */
export function leftBehind({ node, to }: Move, error: string | undefined, cause: Error): Error {
  const where = error === undefined ? `is at ${to} without them` : 'is where it was';
  return new Error(`the bitmaps could not be carried along, '${node}' ${where}`, { cause });
}
