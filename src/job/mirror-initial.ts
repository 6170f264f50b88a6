// SPDX-License-Identifier: MIT
/** What a mirror has to copy when it begins. */
import type { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { STATUS_ALLOCATED, STATUS_ZERO } from '../block/block-driver.js';
import { chainStatus } from '../block/block-status.js';
import type { BlockNode } from '../block/node.js';

/** Step of the look at what is allocated, bytes. */
const STATUS_STEP = 1 << 30;

export interface InitialDirtyOptions {
  readonly source: BlockNode;
  /** Only what the source's own layer has. */
  readonly topOnly: boolean;
  /** What reads as zeroes is there already. */
  readonly targetIsZero: boolean;
  /** Waits while the job is held; true when it is to end. */
  readonly pausePoint: () => Promise<boolean>;
}

/** Marks what is to be copied. @throws BlockError what asking for the status throws */
export async function markInitialDirty(
  bitmap: DirtyBitmap,
  { source, topOnly, targetIsZero, pausePoint }: InitialDirtyOptions,
): Promise<void> {
  const { size } = source;
  if (!topOnly && !targetIsZero) {
    bitmap.setDirty(0, size);
    return;
  }
  const base = topOnly ? source.children.get('backing')?.node : undefined;
  for (let offset = 0; offset < size; ) {
    if (await pausePoint()) return;
    const length = Math.min(STATUS_STEP, size - offset);
    const extent = await chainStatus(source, offset, length, base);
    const belongs = base === undefined || (extent.flags & STATUS_ALLOCATED) !== 0;
    const there = targetIsZero && (extent.flags & STATUS_ZERO) !== 0;
    if (belongs && !there) bitmap.setDirty(offset, extent.length);
    offset += extent.length;
  }
}
