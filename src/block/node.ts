// SPDX-License-Identifier: MIT
/**
 * A vertex of the block graph. What is generic about a request is done here once: bounds, read-only,
 * alignment, tracking, dirty bitmaps, thresholds, statistics. A request that its driver completes at
 * once allocates no promise and no closure.
 */
import { BlockError } from '../base/errors.js';
import { NODE_SIZE_MAX } from '../base/limits.js';
import type { MaybePromise } from '../base/maybe-promise.js';
import { RangeLock } from '../base/range-lock.js';
import type { DirtyBitmap } from './bitmap/dirty-bitmap.js';
import {
  type BlockDriver,
  type BlockLimits,
  type CopyReport,
  type DriverKind,
  type Extent,
  type ImageCorruption,
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_WRITE_UNCHANGED,
  type RequestFlags,
  STATUS_ALLOCATED,
  STATUS_DATA,
  type TruncateOptions,
} from './block-driver.js';
import { CLOSED_DRIVER } from './closed-driver.js';
import type { ChildEdge, EdgeParent } from './edge.js';
import type { FileRange, RangeUse, SendRequest } from './file-range.js';
import { InFlight } from './in-flight.js';
import type { NodeOptions } from './node-options.js';
import { PERM_RESIZE } from './permissions.js';
import * as ranges from './range-requests.js';
import * as shaped from './shaped-requests.js';
import { type IoOperation, NodeStatistics, type StartedWrite } from './statistics.js';

/** What the graph wants to know of a node's I/O. */
export interface NodeObserver {
  writeThresholdExceeded(node: BlockNode, amountExceeded: number, threshold: number): void;
  /** One of the copies that a node keeps failed, or differed from the others. */
  copyBad?(copy: BlockNode, report: CopyReport): void;
  /** Too few of the copies that `node` keeps have succeeded, or agree. Bytes. */
  copiesFailed?(node: BlockNode, offset: number, length: number): void;
  imageCorrupted?(node: BlockNode, corruption: ImageCorruption): void;
  /** The image was let go of without its persistent bitmaps: they are inconsistent from now on. */
  bitmapsLost?(node: BlockNode, error: unknown): void;
}

const TRUNCATE_EXACT: TruncateOptions = { exact: true, preallocation: 'off' };

export class BlockNode implements EdgeParent {
  readonly children = new Map<string, ChildEdge>();
  /** Edges from those that use this node; kept by the graph. */
  readonly parents = new Set<ChildEdge>();
  readonly bitmaps = new Map<string, DirtyBitmap>();
  /** Bitmaps that see every write: the named ones that record, and those of jobs. */
  readonly trackers: DirtyBitmap[] = [];
  readonly stats = new NodeStatistics();
  readonly inFlight = new InFlight();
  /** Held by whoever needs a range for itself: read-modify-write, copy-on-read, jobs' filters. */
  readonly rangeLock = new RangeLock();
  /** blockdev-add owns it: it stays without parents until blockdev-del. */
  monitorOwned = false;
  /** A filter that a job has put here, which goes with the job. */
  ofJob = false;
  /** False after `blockdev-set-active`: locks and permissions below are given up, I/O is refused. */
  active = true;
  /** Byte offset past which a write is reported once; 0: none. */
  writeThreshold = 0;
  /** The bits that all parents together take, and that all of them share. */
  taken = 0;
  shared = 0;
  observer: NodeObserver | undefined;

  #driver: BlockDriver = CLOSED_DRIVER;
  #quiesceCount = 0;
  #alignMask = 0;
  /** Size that those above know of, bytes. */
  #notedSize = 0;
  #maxTransfer = Number.POSITIVE_INFINITY;
  #detectZeroes = false;
  #writeGeneration = 0;
  #flushedGeneration = 0;

  constructor(
    readonly name: string,
    readonly kind: DriverKind,
    public options: NodeOptions,
  ) {}

  /** The driver is open: requests may come. Called by the graph, once. */
  start(driver: BlockDriver): void {
    this.#driver = driver;
    this.#notedSize = driver.size;
    this.refreshLimits();
  }

  /** Hands the driver back to be closed; whoever still has the node gets an error. */
  stop(): BlockDriver {
    const driver = this.#driver;
    this.#driver = CLOSED_DRIVER;
    this.refreshLimits();
    return driver;
  }

  get started(): boolean {
    return this.#driver !== CLOSED_DRIVER;
  }

  get driver(): BlockDriver {
    return this.#driver;
  }

  /** Bytes. */
  get size(): number {
    return this.#driver.size;
  }

  get limits(): BlockLimits {
    return this.#driver.limits;
  }

  /** No writer may attach: the options, the medium or the driver say so. */
  get readOnly(): boolean {
    return this.options.readOnly || this.#driver.readOnly === true || !this.#driver.write;
  }

  /** Takes over what the driver's limits and the node's options say; after open and each change. */
  refreshLimits(): void {
    const { requestAlignment, maxTransfer } = this.#driver.limits;
    this.#alignMask = requestAlignment - 1;
    this.#maxTransfer = maxTransfer > 0 ? maxTransfer : Number.POSITIVE_INFINITY;
    this.#detectZeroes = this.options.detectZeroes !== 'off';
  }

  /** Reads `buffer.byteLength` bytes at `offset`. @throws BlockError DF_OUT_OF_RANGE, or the driver's */
  read(offset: number, buffer: Buffer, flags: RequestFlags = 0): MaybePromise<void> {
    const length = buffer.byteLength;
    if (!this.active || offset < 0 || offset + length > this.#driver.size) {
      this.stats.invalid('read');
      throw this.active ? this.#outOfRange('read', offset, length) : this.#inactive('read');
    }
    const started = this.stats.start();
    let pending: MaybePromise<void>;
    try {
      if (((offset | length) & this.#alignMask) !== 0 || length > this.#maxTransfer) {
        pending = shaped.read(this, offset, buffer, flags);
      } else {
        pending = this.#driver.read(offset, buffer, flags);
      }
    } catch (error) {
      this.stats.failed('read', length, started);
      throw error;
    }
    if (pending !== undefined) return this.#track(pending, 'read', length, started);
    this.stats.done('read', offset, length, started);
  }

  /** A read whose reply goes straight to a socket, where nothing above the file needs its bytes. */
  send(request: SendRequest): number {
    const { offset, reply, headLength } = request;
    const length = reply.byteLength - headLength;
    if (this.#driver.send === undefined || !this.#fits(offset, length)) return 0;
    const started = this.stats.start();
    try {
      const taken = this.#driver.send(request);
      if (taken > 0) this.stats.done('read', offset, length, started);
      return taken;
    } catch (error) {
      this.stats.failed('read', length, started);
      throw error;
    }
  }

  /**
   * A read whose bytes are taken from the file of the host in which they lie as they are; counts as a read
   * of as many bytes as were dealt with. @see BlockDriver.readRange
   * @returns what `use` does; 0: `read` has to do it @throws only what `use` throws
   */
  readRange(offset: number, length: number, use: RangeUse): MaybePromise<number> {
    return ranges.readRange(this, offset, length, use);
  }

  /** Writes all of `buffer`; REQ_FUA: on stable storage before it completes. */
  write(offset: number, buffer: Buffer, flags: RequestFlags = 0): MaybePromise<void> {
    const length = buffer.byteLength;
    this.#checkWrite('write', offset, length);
    const started = this.stats.start();
    let pending: MaybePromise<void>;
    try {
      const plain =
        ((offset | length) & this.#alignMask) === 0 &&
        length <= this.#maxTransfer &&
        this.rangeLock.count === 0 &&
        !this.#detectZeroes &&
        ((flags & REQ_FUA) === 0 || this.#driver.features.fua);
      if (plain) {
        pending = this.#driver.write?.(offset, buffer, flags);
        // Only where writes can be unaligned does anybody lock a range and wait for this one.
        if (pending !== undefined && this.#alignMask !== 0) {
          this.inFlight.plainWrite(offset, length, pending);
        }
      } else pending = shaped.write(this, offset, buffer, flags);
    } catch (error) {
      this.noteWritten(offset, length);
      this.stats.failed('write', length, started);
      throw error;
    }
    if (pending !== undefined) {
      return this.#trackWrite(pending, { operation: 'write', offset, length, started, flags });
    }
    this.noteWritten(offset, length, flags);
    this.stats.done('write', offset, length, started);
  }

  /**
   * Writes a leading part of a file's range without its bytes passing through us. @see BlockDriver.writeFrom
   * @returns bytes written; 0: none, and nothing was changed; who wants more has to read and write
   */
  writeFrom(offset: number, source: FileRange, flags: RequestFlags = 0): MaybePromise<number> {
    return ranges.writeFrom(this, offset, source, flags);
  }

  /** Makes the range read as zeroes, by the quickest way that the flags allow. */
  writeZeroes(offset: number, length: number, flags: RequestFlags = 0): MaybePromise<void> {
    this.#checkWrite('write zeroes', offset, length);
    if (length === 0) return;
    const started = this.stats.start();
    const allowed = this.options.discard === 'unmap' ? flags : flags & ~REQ_MAY_UNMAP;
    const pending = shaped.writeZeroes(this, offset, length, allowed);
    return this.#endWrite(pending, { operation: 'write', offset, length, started, flags });
  }

  /** The range's content is no longer needed. Does nothing where the node's `discard` is ignore. */
  discard(offset: number, length: number): MaybePromise<void> {
    this.#checkWrite('discard', offset, length);
    if (this.options.discard !== 'unmap' || this.#driver.discard === undefined) return;
    const started = this.stats.start();
    const pending = shaped.discard(this, offset, length);
    return this.#endWrite(pending, { operation: 'unmap', offset, length, started, flags: 0 });
  }

  /**
   * What was written and acknowledged before is on stable storage afterwards, here and below.
   * Nothing is done when nothing was written since the last flush. A filter asks what is below: it may
   * have come there after the writes.
   */
  flush(): MaybePromise<void> {
    const generation = this.#writeGeneration;
    if (generation === this.#flushedGeneration && this.kind !== 'filter') return;
    const started = this.stats.start();
    const pending = shaped.flush(this);
    if (pending === undefined) {
      this.#flushedGeneration = generation;
      this.stats.done('flush', 0, 0, started);
      return;
    }
    const flushed = pending.then(() => {
      if (generation > this.#flushedGeneration) this.#flushedGeneration = generation;
    });
    return this.#track(flushed, 'flush', 0, started);
  }

  /** Status of a prefix of the range at this layer. A driver that can't tell has data everywhere. */
  blockStatus(offset: number, length: number): MaybePromise<Extent> {
    if (offset < 0 || length <= 0 || offset + length > this.size) {
      throw this.#outOfRange('block status', offset, length);
    }
    if (this.#driver.blockStatus === undefined) {
      return { length, flags: STATUS_DATA | STATUS_ALLOCATED };
    }
    const pending = this.#driver.blockStatus(offset, length);
    if (!(pending instanceof Promise)) return pending;
    this.inFlight.begin();
    return pending.finally(() => this.inFlight.end());
  }

  childMoved(edge: ChildEdge, from: BlockNode): void {
    this.#driver.childMoved?.(edge, from);
  }

  /** Counts changes: equal before and after means that nothing was written in between. */
  get writeGeneration(): number {
    return this.#writeGeneration;
  }

  /**
   * Changes the size, in a drained section or before anybody uses the node.
   * @param size bytes, at most NODE_SIZE_MAX; bytes gained read as zeroes
   * @throws BlockError DF_NOT_SUPPORTED, DF_READ_ONLY, or the driver's
   */
  async truncate(size: number, options: TruncateOptions = TRUNCATE_EXACT): Promise<void> {
    if (this.readOnly) throw new BlockError('DF_READ_ONLY', 'Image is read-only');
    if (size > NODE_SIZE_MAX) {
      throw new BlockError('DF_TOO_LARGE', `Size ${size} is more than ${NODE_SIZE_MAX} bytes`);
    }
    if (this.#driver.truncate === undefined) {
      throw new BlockError('DF_NOT_SUPPORTED', 'Image format driver does not support resize');
    }
    await this.#driver.truncate(size, options);
    this.#notedSize = this.size;
    this.#writeGeneration++;
    const bitmaps = new Set([...this.bitmaps.values(), ...this.trackers]);
    for (const bitmap of bitmaps) bitmap.resize(this.size);
    this.childResized();
  }

  /** True while parents must submit nothing. */
  get quiesced(): boolean {
    return this.#quiesceCount > 0;
  }

  describe(): string {
    return `node '${this.name}'`;
  }

  /** As a parent of drained children, and as the one who is drained: nobody above submits. */
  drainBegin(): void {
    this.#quiesceCount++;
    if (this.#quiesceCount > 1) return;
    this.#driver.drainBegin?.();
    for (const edge of this.parents) {
      edge.parentDrained = true;
      edge.parent.drainBegin();
    }
  }

  drainEnd(): void {
    if (this.#quiesceCount === 0) throw new Error(`node '${this.name}': drain ended twice`);
    this.#quiesceCount--;
    if (this.#quiesceCount > 0) return;
    this.#driver.drainEnd?.();
    for (const edge of [...this.parents]) {
      if (!edge.parentDrained) continue;
      edge.parentDrained = false;
      edge.parent.drainEnd();
    }
  }

  /** When nothing is in flight, here or above. */
  whenIdle(): MaybePromise<void> {
    for (const edge of this.parents) {
      if (edge.parent.whenIdle() !== undefined) return this.#settle();
    }
    if (this.inFlight.count > 0) return this.#settle();
    return this.#driver.whenIdle?.();
  }

  /** Ends what waits for a lost peer, here and below. @see BlockDriver.cancelInFlight */
  cancelInFlight(): void {
    this.#driver.cancelInFlight?.();
    for (const edge of this.children.values()) edge.node.cancelInFlight();
  }

  /** A child's size changed: sizes above follow. */
  childResized(): void {
    for (const edge of this.parents) edge.parent.childResized?.(edge);
  }

  /** Used when a write's bytes are known to have changed without passing `write` (truncate, jobs). */
  markDirty(offset: number, length: number): void {
    this.#writeGeneration++;
    for (const bitmap of this.trackers) bitmap.setDirty(offset, length);
  }

  async #settle(): Promise<void> {
    for (let waited = true; waited; ) {
      waited = false;
      for (const edge of [...this.parents]) {
        const pending = edge.parent.whenIdle();
        if (pending === undefined) continue;
        await pending;
        waited = true;
      }
      if (this.inFlight.count > 0) {
        await this.inFlight.whenIdle();
        waited = true;
      }
    }
    await this.#driver.whenIdle?.();
  }

  /** A read that its driver can take as it is. */
  #fits(offset: number, length: number): boolean {
    return (
      this.active &&
      offset >= 0 &&
      offset + length <= this.#driver.size &&
      this.#alignMask === 0 &&
      length <= this.#maxTransfer
    );
  }

  #track(
    pending: Promise<void>,
    operation: IoOperation,
    length: number,
    started: number,
  ): Promise<void> {
    this.inFlight.begin();
    return pending.then(
      () => {
        this.stats.done(operation, 0, length, started);
        this.inFlight.end();
      },
      (error: unknown) => {
        this.stats.failed(operation, length, started);
        this.inFlight.end();
        throw error;
      },
    );
  }

  #endWrite(pending: MaybePromise<void>, write: StartedWrite): MaybePromise<void> {
    if (pending !== undefined) return this.#trackWrite(pending, write);
    const { operation, offset, length, started, flags } = write;
    this.noteWritten(offset, length, flags);
    this.stats.done(operation, offset, length, started);
  }

  #trackWrite(
    pending: Promise<void>,
    { operation, offset, length, started, flags }: StartedWrite,
  ): Promise<void> {
    this.inFlight.begin();
    return pending.then(
      () => {
        this.noteWritten(offset, length, flags);
        this.stats.done(operation, offset, length, started);
        this.inFlight.end();
      },
      (error: unknown) => {
        // A failed write may have changed some of its bytes.
        this.noteWritten(offset, length);
        this.stats.failed(operation, length, started);
        this.inFlight.end();
        throw error;
      },
    );
  }

  /** A write has changed these bytes, or may have. For those who carry out requests. */
  noteWritten(offset: number, length: number, flags: RequestFlags = 0): void {
    this.#writeGeneration++;
    if (offset + length > this.#notedSize) this.#noteSize();
    if ((flags & REQ_WRITE_UNCHANGED) === 0) {
      for (const bitmap of this.trackers) bitmap.setDirty(offset, length);
    }
    const threshold = this.writeThreshold;
    if (threshold !== 0 && offset + length > threshold) {
      this.writeThreshold = 0;
      this.observer?.writeThresholdExceeded(this, offset + length - threshold, threshold);
    }
  }

  /** A write has grown the node: who is above learns it. */
  #noteSize(): void {
    const { size } = this;
    if (size <= this.#notedSize) return;
    this.#notedSize = size;
    this.childResized();
  }

  #checkWrite(op: string, offset: number, length: number): void {
    const end = offset + length;
    if (this.active && offset >= 0 && !this.readOnly) {
      if (end <= this.#driver.size) return;
      const grows = (this.taken & PERM_RESIZE) !== 0 && this.#driver.truncate !== undefined;
      if (grows && end <= NODE_SIZE_MAX) return;
    }
    this.stats.invalid(op === 'discard' ? 'unmap' : 'write');
    if (!this.active) throw this.#inactive(op);
    if (this.readOnly) {
      throw new BlockError('DF_READ_ONLY', `Block node '${this.name}' is read-only`, {
        node: this.name,
        op,
      });
    }
    throw this.#outOfRange(op, offset, length);
  }

  #inactive(op: string): BlockError {
    return new BlockError('DF_READ_ONLY', `Block node '${this.name}' is inactive`, {
      node: this.name,
      op,
    });
  }

  #outOfRange(op: string, offset: number, length: number): BlockError {
    return new BlockError(
      'DF_OUT_OF_RANGE',
      `${op} of ${length} bytes at ${offset} reaches past the end of node '${this.name}', ${this.size} bytes`,
      { node: this.name, op, offset, length },
    );
  }
}
