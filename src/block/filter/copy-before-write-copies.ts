// SPDX-License-Identifier: MIT
/**
 * A disk as it was at one point in time, while it goes on being written: each cluster's old content
 * is copied to a target before the first write to it. What was not overwritten is read from the
 * source still.
 *
 * Three bitmaps say it all: what is still to be copied, what was copied because of a write (and is
 * read from the target from then on), and what belongs to the snapshot at all. A cluster's bit in the
 * first is cleared when a copy of it begins; a write to it waits until that copy has ended.
 */
import { alignDown, alignUp } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import { KIB, MIB } from '../../base/limits.js';
import { RangeLock } from '../../base/range-lock.js';
import { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import {
  REQ_MAY_UNMAP,
  REQ_WRITE_COMPRESSED,
  type RequestFlags,
  STATUS_ZERO,
} from '../block-driver.js';
import { type ChainExtent, chainStatus } from '../block-status.js';
import type { ChildEdge } from '../edge.js';
import type { BlockNode } from '../node.js';
import { isZero } from '../shaped-requests.js';
import { sizeMismatch } from '../size-mismatch.js';

/** Smallest cluster, bytes: QEMU's; less would make more requests, more would copy more than needed. */
export const CBW_CLUSTER_DEFAULT = 64 * KIB;
/** Largest cluster that can be asked for, bytes: a write waits for the copy of at least one. */
export const CBW_CLUSTER_MAX = 16 * MIB;
/** Data request of a copy, bytes. */
const CHUNK_LENGTH = 256 * KIB;
/** Longest run that one copy takes on for a write of many clusters (zeroing a disk), bytes. */
const RUN_MAX = 1024 * MIB;
/** Copies that one write makes at a time. */
const COPIES_AT_ONCE = 4;

export interface SnapshotOptions {
  readonly source: ChildEdge;
  readonly target: ChildEdge;
  /** Bytes that are copied together: a power of two from CBW_CLUSTER_DEFAULT to CBW_CLUSTER_MAX. */
  readonly clusterLength: number;
  /** What belongs to the snapshot, as marked now; absent: all. */
  readonly bitmap?: DirtyBitmap | undefined;
  /** Store compressed data: `clusterLength` is a multiple of what the target compresses. */
  readonly compress?: boolean | undefined;
}

/** A copy that is under way. */
interface Copying {
  readonly offset: number;
  readonly length: number;
  readonly ended: Promise<void>;
}

export class SnapshotCopies {
  readonly source: ChildEdge;
  readonly target: ChildEdge;
  readonly clusterLength: number;
  /** Bytes. */
  readonly size: number;
  /** How copies are written to the target. */
  readonly writeFlags: RequestFlags;
  /** Copies begin and end at multiples of it, bytes. */
  readonly #writeUnit: number;
  /** What is still to be copied. Who clears bits of it calls `begin` in the same instant. */
  readonly bitmap: DirtyBitmap;
  /** Called when a copy that a write made necessary has ended well, with its length in bytes. */
  onCopied: ((length: number) => void) | undefined;
  /** Counts the copies that writes have begun: equal before and after means that none has. */
  generation = 0;
  readonly #overwritten: DirtyBitmap;
  readonly #accessible: DirtyBitmap;
  readonly #copying = new Set<Copying>();
  #bytesInFlight = 0;
  /** Readers of the source share their ranges; a write waits for those that came before it. */
  readonly #readers = new RangeLock();
  /** Readers of the target share their ranges; who discards some of it there waits for them. */
  readonly #targetReaders = new RangeLock();
  readonly #idle: (() => void)[] = [];

  /** @throws BlockError DF_INVALID for a target that is too small or a bitmap of another size */
  constructor({ source, target, clusterLength, bitmap, compress }: SnapshotOptions) {
    this.source = source;
    this.target = target;
    this.clusterLength = clusterLength;
    this.size = source.size;
    this.writeFlags = compress === true ? REQ_WRITE_COMPRESSED : 0;
    this.#writeUnit = compress === true ? target.limits.compressedUnit : 1;
    if (target.size < this.size) {
      throw sizeMismatch(source.node, target.node);
    }
    const made = { size: this.size, granularity: clusterLength, disabled: true };
    this.bitmap = new DirtyBitmap(made);
    this.#overwritten = new DirtyBitmap(made);
    this.#accessible = new DirtyBitmap(made);
    this.beginAnew(bitmap);
  }

  /** The snapshot is of now, and of what the bitmap marks now; nothing has been copied yet. */
  beginAnew(bitmap: DirtyBitmap | undefined): void {
    this.bitmap.clear();
    this.#accessible.clear();
    this.#overwritten.clear();
    if (bitmap === undefined) this.bitmap.setDirty(0, this.size);
    else this.bitmap.merge(bitmap);
    this.#accessible.merge(this.bitmap);
  }

  /** Leaves the range out of what is still to be copied and of the snapshot; whole clusters only. */
  leaveOut(offset: number, length: number): void {
    this.bitmap.resetDirty(offset, length);
    this.#accessible.resetDirty(offset, length);
  }

  /** True when a write to the range needs no copy and need not wait for one, or for a reader. */
  isFree(offset: number, length: number): boolean {
    if (this.#readers.count > 0) return false;
    const { start, end } = this.#clusters(offset, length);
    if (this.bitmap.nextDirty(start, end - start) >= 0) return false;
    for (const copying of this.#copying) {
      if (copying.offset < end && start < copying.offset + copying.length) return false;
    }
    this.#overwritten.setDirty(start, end - start);
    return true;
  }

  /**
   * Copies what is to be copied of the clusters that the range touches, and waits for who copies
   * some of them already.
   * @throws what reading the source or writing the target says; then they are to be copied still
   */
  async copyAround(offset: number, length: number): Promise<void> {
    const { start, end } = this.#clusters(offset, length);
    for (;;) {
      const copies: Promise<void>[] = [];
      while (copies.length < COPIES_AT_ONCE) {
        const run = this.bitmap.nextDirtyRun(start, RUN_MAX);
        if (run === undefined || run.offset >= end) break;
        copies.push(this.#copy(run.offset, Math.min(run.length, end - run.offset)));
      }
      const waiting = copies.length > 0 ? copies : this.#overlapping(start, end);
      if (waiting.length === 0) return;
      const results = await Promise.allSettled(waiting);
      for (const result of results) if (result.status === 'rejected') throw result.reason;
    }
  }

  /** The range, copied before, will be overwritten now: it is read from the target from now on. */
  markOverwritten(offset: number, length: number): void {
    const { start, end } = this.#clusters(offset, length);
    this.#overwritten.setDirty(start, end - start);
  }

  /** Waits for those who read the range in the source at this moment. */
  async waitForReaders(offset: number, length: number): Promise<void> {
    const { start, end } = this.#clusters(offset, length);
    const hold = await this.#readers.acquire(start, end - start);
    hold.release();
  }

  /**
   * Declares a copy of the range: writes to it wait until the function that is returned is called.
   * Until then both nodes count a request in flight, so that no drained section falls into a copy.
   */
  begin(offset: number, length: number): () => void {
    const nodes: BlockNode[] = [this.source.node, this.target.node];
    for (const node of nodes) node.inFlight.begin();
    let resolve = (): void => {};
    const ended = new Promise<void>((done) => {
      resolve = done;
    });
    const copying: Copying = { offset, length, ended };
    this.#copying.add(copying);
    this.#bytesInFlight += length;
    return () => {
      this.#copying.delete(copying);
      this.#bytesInFlight -= length;
      for (const node of nodes) node.inFlight.end();
      resolve();
      if (this.#copying.size === 0) for (const wake of this.#idle.splice(0)) wake();
    };
  }

  /** Bytes that are still to be copied, or being copied now. */
  get remaining(): number {
    const { bitmap, size, clusterLength } = this;
    const tail = size % clusterLength;
    const beyond = tail > 0 && bitmap.isDirty(size - 1) ? clusterLength - tail : 0;
    return bitmap.count - beyond + this.#bytesInFlight;
  }

  /** Fulfilled when nothing is being copied. */
  async whenIdle(): Promise<void> {
    if (this.#copying.size === 0) return;
    await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  /** @throws BlockError DF_ACCESS when part of the range does not belong to the snapshot */
  checkAccessible(offset: number, length: number): void {
    if (this.#accessible.nextClean(offset, length) < 0) return;
    throw noAccess(offset, length);
  }

  /** Reads the snapshot. */
  async read(offset: number, buffer: Buffer): Promise<void> {
    for (let at = 0; at < buffer.byteLength; ) {
      at += await this.#withStorage(offset + at, buffer.byteLength - at, async (edge, length) => {
        await edge.read(offset + at, buffer.subarray(at, at + length));
        return length;
      });
    }
  }

  /** Status of a prefix of the range in the snapshot. */
  status(offset: number, length: number): Promise<ChainExtent> {
    return this.#withStorage(offset, length, async (edge, prefix) =>
      chainStatus(edge.node, offset, prefix),
    );
  }

  /** Finds where a prefix of the range lies, and keeps writes away from it while it is used there. */
  async #withStorage<T>(
    offset: number,
    length: number,
    use: (edge: ChildEdge, length: number) => Promise<T>,
  ): Promise<T> {
    this.checkAccessible(offset, length);
    const { dirty: copied, length: prefix } = this.#overwritten.status(offset, length);
    if (copied) return this.#withTarget(offset, prefix, use);
    const hold = await this.#readers.acquire(offset, prefix, { shared: true });
    try {
      this.checkAccessible(offset, prefix);
      // While we waited for a write, its range may have come to be copied.
      const now = this.#overwritten.status(offset, prefix);
      if (now.dirty) return await this.#withTarget(offset, now.length, use);
      return await use(this.source, now.length);
    } finally {
      hold.release();
    }
  }

  async #withTarget<T>(
    offset: number,
    length: number,
    use: (edge: ChildEdge, length: number) => Promise<T>,
  ): Promise<T> {
    const hold = await this.#targetReaders.acquire(offset, length, { shared: true });
    try {
      this.checkAccessible(offset, length);
      return await use(this.target, length);
    } finally {
      hold.release();
    }
  }

  /**
   * The clusters that lie whole in the range leave the snapshot: writes need not save them any more,
   * nobody can read them, and the target gives back their room where it discards.
   */
  async discard(offset: number, length: number): Promise<void> {
    const start = alignUp(offset, this.clusterLength);
    const last = offset + length;
    const end = last >= this.size ? this.size : alignDown(last, this.clusterLength);
    if (start >= end) return;
    for (;;) {
      this.leaveOut(start, end - start);
      // A copy that has begun would fill the target again; one that fails asks for another.
      const copies = this.#overlapping(start, end);
      if (copies.length === 0) break;
      await Promise.all(copies);
    }
    const hold = await this.#targetReaders.acquire(start, end - start);
    try {
      await this.target.discard(start, end - start);
    } finally {
      hold.release();
    }
  }

  /** The snapshot has become wrong, or nobody needs it: nothing can be read of it any more. */
  close(): void {
    this.#accessible.clear();
  }

  async #copy(offset: number, length: number): Promise<void> {
    this.bitmap.resetDirty(offset, length);
    this.generation++;
    const end = this.begin(offset, length);
    try {
      await this.#transfer(offset, length);
    } catch (error) {
      this.bitmap.setDirty(offset, length);
      end();
      throw error;
    }
    end();
    this.onCopied?.(length);
  }

  async #transfer(offset: number, length: number): Promise<void> {
    const { source, target } = this;
    const unit = this.#writeUnit;
    const chunkLength = Math.max(CHUNK_LENGTH, unit);
    const buffer = Buffer.allocUnsafeSlow(Math.min(length, chunkLength));
    for (let at = offset; at < offset + length; ) {
      let piece = offset + length - at;
      if (piece > chunkLength) {
        const extent = await chainStatus(source.node, at, piece);
        if (extent.length < piece) piece = Math.max(alignDown(extent.length, unit), unit);
        if ((extent.flags & STATUS_ZERO) !== 0 && piece <= extent.length) {
          await target.writeZeroes(at, piece, REQ_MAY_UNMAP);
          at += piece;
          continue;
        }
      }
      const data = buffer.subarray(0, Math.min(piece, chunkLength));
      await source.read(at, data);
      if (isZero(data)) await target.writeZeroes(at, data.byteLength, REQ_MAY_UNMAP);
      else await target.write(at, data, this.writeFlags);
      at += data.byteLength;
    }
  }

  #overlapping(start: number, end: number): Promise<void>[] {
    const found: Promise<void>[] = [];
    for (const { offset, length, ended } of this.#copying) {
      if (offset < end && start < offset + length) found.push(ended);
    }
    return found;
  }

  #clusters(offset: number, length: number): { start: number; end: number } {
    const end = Math.min(alignUp(offset + length, this.clusterLength), this.size);
    return { start: alignDown(offset, this.clusterLength), end };
  }
}

/** QEMU's EACCES for what does not, or no longer, belong to the snapshot. */
export function noAccess(offset: number, length: number): BlockError {
  return new BlockError('DF_ACCESS', 'the range does not belong to the snapshot', {
    op: 'read',
    offset,
    length,
    errno: 'EACCES',
  });
}
