// SPDX-License-Identifier: MIT
/** The marks of a dirty bitmap on their way from one NBD server to another. */
import { NBD_STATE_DIRTY } from '../../protocol/nbd/constants.js';
import type { NbdClient } from '../nbd/client/client.js';

/** Marks that are made at a time. */
const MARKS_IN_FLIGHT = 512;

export interface CopyMarksOptions {
  /** Shows the bitmap as the meta context `context`. */
  readonly from: Pick<NbdClient, 'size' | 'blockStatus'>;
  readonly context: string;
  /** What is written to it is marked in the bitmap that gets the marks; of the same size. */
  readonly to: Pick<NbdClient, 'writeZeroes'>;
  /** Called between requests; may throw to end it. */
  readonly checkpoint: () => void;
}

/**
 * Writes zeroes wherever the bitmap is dirty, and nowhere else: a server has no other way to be told
 * of marks, and every server has this one.
 *
 * @throws BlockError what the servers say; what `checkpoint` throws
 */
export async function copyMarks(options: CopyMarksOptions): Promise<void> {
  const { from, context, to, checkpoint } = options;
  const { size } = from;
  for (let at = 0; at < size; ) {
    checkpoint();
    const extents = await from.blockStatus(at, size - at, { context });
    let marks: Promise<void>[] = [];
    for (const { length, flags } of extents) {
      const end = Math.min(at + length, size);
      if ((flags & NBD_STATE_DIRTY) !== 0 && end > at) marks.push(to.writeZeroes(at, end - at));
      at = end;
      if (marks.length < MARKS_IN_FLIGHT) continue;
      await allMade(marks);
      checkpoint();
      marks = [];
    }
    await allMade(marks);
  }
}

/** Waits for all, so that no rejection is left behind, then fails with the first error. */
async function allMade(marks: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(marks)) {
    if (result.status === 'rejected') throw result.reason;
  }
}
