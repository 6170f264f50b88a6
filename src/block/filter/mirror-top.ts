// SPDX-License-Identifier: MIT
/**
 * The filter that a mirror puts above its source: the place where the source's users meet the job,
 * and which the pivot takes out again.
 *
 * In the background mode requests pass; the source node below marks what changes. In the
 * write-blocking mode a write is done when both source and target have it. Such a write holds its
 * granules of a lock that the job's copies hold too, so that the target never gets old over new.
 */
import { alignDown, alignUp } from '../../base/byte-range.js';
import { isPromise, type MaybePromise } from '../../base/maybe-promise.js';
import type { RangeLock } from '../../base/range-lock.js';
import type { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import type {
  BlockDriver,
  BlockLimits,
  ChildRole,
  DriverFeatures,
  Extent,
  RequestFlags,
} from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import type { Permissions } from '../permissions.js';
import {
  filterPermissions,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
} from '../permissions.js';

/** The job, as the filter sees it. */
export interface MirrorSide {
  /** The target is a backing node of the source: a commit. */
  readonly intoChain: boolean;
  /** What differs between source and target; the source node marks each write to it. */
  readonly bitmap: DirtyBitmap;
  /** Held by copies and, in the write-blocking mode, by writes; in whole granules of the bitmap. */
  readonly lock: RangeLock;
  /**
   * False while the target is not to be written: before the bitmap is complete, after an error, when
   * the job is being cancelled.
   */
  readonly targetUsable: boolean;
  /** Of a granule that is written in part the target has to get the rest as well. */
  readonly wholeGranules: boolean;
  write(offset: number, buffer: Buffer): MaybePromise<void>;
  writeZeroes(offset: number, length: number): MaybePromise<void>;
  /** The target has not taken a write that the source has; the range is marked. */
  targetFailed(error: unknown): void;
  /** The source has changed, or a range has been released. */
  changed(): void;
}

/**
 * Above a chain whose base is being written: those above can rely on what they read, though nobody who
 * looks into the chain could. Who does not let others write means others than this job.
 */
function chainPermissions({ taken, shared }: Permissions): Permissions {
  return { taken: taken & ~PERM_CONSISTENT_READ, shared: shared | PERM_WRITE };
}

interface Granules {
  /** Bytes; whole granules, cut at the end of the node. */
  readonly start: number;
  readonly end: number;
  /** What a good write to both makes equal: granules that it covers, or that were equal before. */
  readonly equalFrom: number;
  readonly equalTo: number;
}

export class MirrorTopDriver implements BlockDriver {
  readonly name = 'mirror_top';
  /**
   * Writes go to both. Changed in a drained section only, with an update of permissions: nobody may
   * write to the source past the filter then.
   */
  writesBoth = false;

  constructor(
    readonly child: ChildEdge,
    readonly side: MirrorSide,
  ) {}

  get features(): DriverFeatures {
    return { ...this.child.node.driver.features, fua: true, writeZeroes: true, discard: true };
  }

  get limits(): BlockLimits {
    return this.child.limits;
  }

  get size(): number {
    return this.child.size;
  }

  get readOnly(): boolean {
    return this.child.node.readOnly;
  }

  get filename(): string {
    return this.child.node.driver.filename;
  }

  childPermissions(_role: ChildRole, parents: Permissions): Permissions {
    const unused = parents.taken === 0 && parents.shared === PERM_ALL;
    if (this.side.intoChain) return chainPermissions(parents);
    if (!this.writesBoth || unused) return filterPermissions(parents);
    return { taken: parents.taken, shared: parents.shared & ~(PERM_WRITE | PERM_RESIZE) };
  }

  read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return this.child.read(offset, buffer, flags);
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    if (!this.writesBoth) return this.#changed(this.child.write(offset, buffer, flags));
    return this.#inBoth(offset, buffer.byteLength, {
      source: () => this.child.write(offset, buffer, flags),
      target: () => this.side.write(offset, buffer),
    });
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    if (!this.writesBoth) return this.#changed(this.child.writeZeroes(offset, length, flags));
    return this.#inBoth(offset, length, {
      source: () => this.child.writeZeroes(offset, length, flags),
      target: () => this.side.writeZeroes(offset, length),
    });
  }

  discard(offset: number, length: number): MaybePromise<void> {
    if (!this.writesBoth) return this.#changed(this.child.discard(offset, length));
    // What a discarded range reads as is the source's affair: it is copied like any other change.
    return this.#inBoth(offset, length, { source: () => this.child.discard(offset, length) });
  }

  blockStatus(offset: number, length: number): Extent {
    return { length, flags: 0, delegate: this.child, hostOffset: offset };
  }

  close(): void {}

  #changed(pending: MaybePromise<void>): MaybePromise<void> {
    if (pending !== undefined) return pending.finally(() => this.side.changed());
    this.side.changed();
  }

  /** The source first: a write that it refuses must not be in the target. */
  async #inBoth(
    offset: number,
    length: number,
    write: {
      readonly source: () => MaybePromise<void>;
      readonly target?: () => MaybePromise<void>;
    },
  ): Promise<void> {
    const { side } = this;
    const { start, end } = this.#aligned(offset, length);
    const held = side.lock.acquire(start, end - start);
    const hold = isPromise(held) ? await held : held;
    try {
      const granules = this.#granules(offset, length);
      // What is marked counts only if it was complete before the write.
      const wasUsable = side.targetUsable;
      await write.source();
      if (write.target === undefined || !wasUsable || !side.targetUsable) return;
      side.bitmap.resetDirty(granules.equalFrom, granules.equalTo - granules.equalFrom);
      try {
        await write.target();
        if (side.wholeGranules) await this.#fillUp(offset, length);
      } catch (error) {
        side.bitmap.setDirty(offset, length);
        side.targetFailed(error);
      }
    } finally {
      hold.release();
      side.changed();
    }
  }

  /** For who holds the range: granules that a write has changed in part go to the target as a whole. */
  async #fillUp(offset: number, length: number): Promise<void> {
    const { start, end } = this.#aligned(offset, length);
    const { granularity } = this.side.bitmap;
    const first = offset > start ? [start] : [];
    const last = alignDown(end - 1, granularity);
    const lastToo = offset + length < end && last !== first[0] ? [last] : [];
    for (const at of [...first, ...lastToo]) {
      const granule = Buffer.allocUnsafeSlow(Math.min(granularity, end - at));
      await this.child.read(at, granule);
      await this.side.write(at, granule);
    }
  }

  #aligned(offset: number, length: number): { start: number; end: number } {
    const { granularity } = this.side.bitmap;
    const end = Math.min(alignUp(offset + length, granularity), this.child.size);
    return { start: alignDown(offset, granularity), end };
  }

  /** For who holds the range: what is marked in it now. */
  #granules(offset: number, length: number): Granules {
    const { bitmap } = this.side;
    const { start, end } = this.#aligned(offset, length);
    const last = alignDown(end - 1, bitmap.granularity);
    const mayDiffer = !this.side.wholeGranules;
    const headDiffers = mayDiffer && offset > start && bitmap.isDirty(start);
    const tailDiffers = mayDiffer && offset + length < end && bitmap.isDirty(last);
    const equalFrom = headDiffers ? start + bitmap.granularity : start;
    return { start, end, equalFrom, equalTo: tailDiffers ? Math.max(last, equalFrom) : end };
  }
}
