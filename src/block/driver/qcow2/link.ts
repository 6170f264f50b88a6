// SPDX-License-Identifier: MIT
/** New clusters that have been written become part of the image. */
import { ENTRY_COPIED, highWord, lowWord } from '../../../../protocol/qcow2/entries.js';
import { alignDown, alignUp } from '../../../base/byte-range.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import type { Copying } from './copy-on-write.js';
import type { Qcow2Image } from './image.js';
import { getEntry, giveUp, setEntry, withEntries } from './l2-entries.js';

/** What is to be done with a run of clusters, all alike. */
export interface Plan {
  readonly clusters: number;
  /** The host clusters that are there and ours, one after the other; 0: new ones are needed. */
  readonly reuse: number | undefined;
  /** Whole clusters have to be filled; else subclusters. */
  readonly whole: boolean;
}

/**
 * The clusters become part of the image; what they replace is given up.
 * @returns how many: all, as a run lies in one slice
 */
export function link(
  image: Qcow2Image,
  { start, host, unit }: Copying,
  { offset, length, plan }: { offset: number; length: number; plan: Plan },
): MaybePromise<number> {
  const { clusterSize } = image.geometry;
  const filledFrom = alignDown(offset, unit);
  const filledTo = alignUp(offset + length, unit);
  const clusters = Math.ceil((filledTo - start) / clusterSize);
  return withEntries(image, start, clusters, ({ table, first, count }) => {
    for (let nth = 0; nth < count; nth++) {
      const old = getEntry(image, table, first + nth);
      const at = host + nth * clusterSize;
      const cluster = start + nth * clusterSize;
      const bits = plan.whole
        ? 0xffff_ffff
        : subclusterBits(image, filledFrom - cluster, filledTo - cluster);
      const kept = plan.whole ? { zero: 0, allocated: 0 } : old;
      setEntry(image, table, first + nth, {
        high: (highWord(at) | ENTRY_COPIED) >>> 0,
        low: lowWord(at),
        zero: (kept.zero & ~bits) >>> 0,
        allocated: (kept.allocated | bits) >>> 0,
      });
      if (plan.reuse === undefined) giveUp(image, old, false);
    }
  });
}

/** Bits of the subclusters from `from` to `to`, bytes from the start of a cluster; may lie outside. */
export function subclusterBits(image: Qcow2Image, from: number, to: number): number {
  const { subclusterSize, subclusters } = image.geometry;
  const first = Math.max(Math.ceil(from / subclusterSize), 0);
  const end = Math.min(Math.floor(to / subclusterSize), subclusters);
  if (end <= first) return 0;
  const ones = end - first === 32 ? 0xffff_ffff : 2 ** (end - first) - 1;
  return (ones << first) >>> 0;
}
