// SPDX-License-Identifier: MIT
/**
 * `blockdev-backup`: makes the target what the source was at the moment when the job was made, while
 * the source goes on being written.
 *
 * A copy-before-write filter comes between the source and its users. What they are about to overwrite
 * is saved by it; the rest is copied by the job in the background. Both take clusters from one
 * bitmap, so each is copied once.
 */
import { BlockError } from '../base/errors.js';
import { KIB, MIB } from '../base/limits.js';
import type { MaybePromise } from '../base/maybe-promise.js';
import type { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { STATUS_ALLOCATED } from '../block/block-driver.js';
import { chainStatus } from '../block/block-status.js';
import { drained } from '../block/drain.js';
import type { ChildEdge, EdgeParent } from '../block/edge.js';
import type { FileRange } from '../block/file-range.js';
import { CopyBeforeWriteDriver, type OnCbwError } from '../block/filter/copy-before-write.js';
import type { SnapshotCopies } from '../block/filter/copy-before-write-copies.js';
import { SnapshotAccessDriver } from '../block/filter/snapshot-access.js';
import type { BlockGraph } from '../block/graph.js';
import { insertFilter, removeFilterLocked } from '../block/insert-filter.js';
import type { BlockNode } from '../block/node.js';
import { PERM_ALL, PERM_CONSISTENT_READ } from '../block/permissions.js';
import { roundTripMs } from '../block/round-trip.js';
import { sizeMismatch } from '../block/size-mismatch.js';
import { BlockJob, type BlockJobObserver, type BlockJobOptions } from './block-job.js';
import { CopyLoop, type CopyLoopEnd, type CopyTarget } from './copy-loop.js';
import { COPY_WINDOW_MAX } from './copy-window.js';
import { SourceDiscards } from './source-discards.js';
import type { BitmapSyncMode } from './sync-bitmap.js';

/** Data request, bytes: measured as the best against a loopback server. */
const CHUNK_LENGTH = 256 * KIB;
/** Bytes in flight unless the target is far away, and the longest request that can be asked for. */
const WINDOW_LENGTH = 4 * MIB;
/** Step of the look at what is allocated (sync top), bytes. */
const STATUS_STEP = 1024 * MIB;

/** `bitmap`: what is marked in the bitmap. */
export type BackupSync = 'full' | 'top' | 'none' | 'bitmap';

export interface BackupOptions extends BlockJobOptions {
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly sync: BackupSync;
  /** Frozen while the job runs; what is written meanwhile is recorded by its successor. */
  readonly bitmap?: DirtyBitmap | undefined;
  readonly bitmapMode: BitmapSyncMode;
  readonly filterNodeName?: string | undefined;
  /** Bytes that are copied together: a power of two, see copy-before-write. */
  readonly clusterLength: number;
  /** Requests in flight at most. */
  readonly requestsMax: number;
  /** Longest request, bytes; 0: as is best. */
  readonly chunkLengthMax: number;
  /** The source is a snapshot-access node: what has reached the target's storage leaves the snapshot. */
  readonly discardSource?: boolean | undefined;
  /** Store compressed data; the target can, and `clusterLength` is a multiple of what it compresses. */
  readonly compress?: boolean | undefined;
  readonly onCbwError?: OnCbwError | undefined;
  /** Milliseconds; 0: no limit. */
  readonly cbwTimeoutMs?: number | undefined;
}

/** The job as a user of its nodes: what drains them pauses it, as QEMU shows. */
class JobUser implements EdgeParent {
  constructor(
    private readonly job: BackupJob,
    private readonly loop: () => CopyLoop | undefined,
  ) {}

  describe(): string {
    return this.job.describe();
  }

  drainBegin(): void {
    this.loop()?.hold();
    this.job.hold();
  }

  drainEnd(): void {
    this.loop()?.release();
    this.job.unhold();
  }

  /** A copy that reads from one node is about to write to the other. */
  whenIdle(): MaybePromise<void> {
    return this.loop()?.whenIdle();
  }
}

export class BackupJob extends BlockJob {
  override readonly type = 'backup';
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly #graph: BlockGraph;
  readonly #options: BackupOptions;
  readonly #user = new JobUser(this, () => this.#loop);
  readonly #edges: ChildEdge[] = [];
  #bitmap: DirtyBitmap | undefined;
  #filter: BlockNode | undefined;
  #driver: CopyBeforeWriteDriver | undefined;
  #loop: CopyLoop | undefined;
  /** A write could not be saved: the target will never be what it should be. */
  #broken: { readonly error: unknown } | undefined;
  readonly #discards: SourceDiscards | undefined;
  #wakeIdle: (() => void) | undefined;
  #began = false;

  /**
   * The point in time is that of this call, or of the drained section around it.
   * @throws BlockError when the nodes can't be what they are meant to be; nothing has changed then
   */
  static create(
    graph: BlockGraph,
    options: BackupOptions,
    observer: BlockJobObserver,
  ): Promise<BackupJob> {
    checkBackupNodes(options);
    // The filter and the successor of the bitmap come at one point in time.
    return drained([options.source], async () => {
      const job = new BackupJob(graph, options, observer);
      await job.#setUp();
      return job;
    });
  }

  private constructor(graph: BlockGraph, options: BackupOptions, observer: BlockJobObserver) {
    super(options, observer);
    this.#graph = graph;
    this.#options = options;
    this.source = options.source;
    this.target = options.target;
    const { driver } = options.source;
    if (options.discardSource === true && driver instanceof SnapshotAccessDriver) {
      this.#discards = new SourceDiscards(driver.filter, () => options.target.flush());
    }
  }

  override owns(parent: EdgeParent): boolean {
    return parent === this.#user;
  }

  describe(): string {
    return `block job '${this.id}'`;
  }

  async #setUp(): Promise<void> {
    const { bitmap } = this.#options;
    bitmap?.createSuccessor();
    this.#bitmap = bitmap;
    try {
      const driver = await this.#insert();
      this.#driver = driver;
      driver.onBroken = (error) => {
        this.#broken = { error };
        // What is still being copied is of no use any more, least of all to a target that is silent.
        this.target.cancelInFlight();
        this.wakeUp();
      };
      driver.copies.onCopied = (length) => this.#progress(length);
      this.#loop = this.#makeLoop(driver.copies);
      await this.#attach();
      this.#progress(0);
    } catch (error) {
      await this.abort();
      await this.clean();
      throw error;
    }
  }

  async #insert(): Promise<CopyBeforeWriteDriver> {
    const { sync, bitmap, clusterLength, compress, onCbwError, cbwTimeoutMs } = this.#options;
    let made: CopyBeforeWriteDriver | undefined;
    this.#filter = await insertFilter(this.#graph, this.source, {
      name: this.#options.filterNodeName,
      nameRefusal: 'Could not create node',
      childName: 'file',
      others: new Map([['target', { role: 'target', node: this.target }]]),
      driver: (child, others) => {
        const target = others.get('target');
        if (target === undefined) throw new Error('the filter has no target');
        made = new CopyBeforeWriteDriver(child, target, {
          onCbwError,
          timeoutMs: cbwTimeoutMs,
          clusterLength,
          compress,
          bitmap: sync === 'bitmap' ? bitmap : undefined,
        });
        return made;
      },
    });
    if (made === undefined) throw new Error('the filter was not opened');
    return made;
  }

  /** Makes the job a user of filter and target, so that they stay and are not changed below it. */
  async #attach(): Promise<void> {
    const filter = this.#filter;
    if (filter === undefined) throw new Error(`${this.describe()} has no filter`);
    await this.#graph.exclusive(async () => {
      for (const [node, name, taken] of [
        [filter, 'main node', PERM_CONSISTENT_READ],
        [this.target, 'target', 0],
      ] as const) {
        const options = { name, role: 'root', taken, shared: PERM_ALL } as const;
        this.#edges.push(await this.#graph.addEdge(this.#user, node, options));
      }
    });
  }

  #makeLoop(copies: SnapshotCopies): CopyLoop {
    const { clusterLength, chunkLengthMax, requestsMax } = this.#options;
    const chunk = chunkLengthMax === 0 ? CHUNK_LENGTH : Math.min(chunkLengthMax, WINDOW_LENGTH);
    const { source, size, bitmap } = copies;
    const lend = this.lendOnce;
    const target: CopyTarget = {
      ...(copies.writeFlags === 0 && {
        writeFrom: (offset: number, range: FileRange) =>
          copies.target.writeFrom(offset, range, lend),
        passLength: chunkLengthMax === 0 ? copies.target.node.driver.passLength : undefined,
      }),
      write: (offset, buffer) => copies.target.write(offset, buffer, copies.writeFlags),
      writeZeroes: (offset, length, flags) => copies.target.writeZeroes(offset, length, flags),
    };
    return new CopyLoop({
      bitmap,
      size,
      source: {
        read: (offset, buffer) => source.read(offset, buffer),
        readRange: (offset, length, use) => source.readRange(offset, length, use),
        blockStatus: (offset, length) => chainStatus(source.node, offset, length),
        // A cluster that is still to be copied does not change before a write has copied it.
        get generation() {
          return copies.generation;
        },
      },
      target: this.#discards?.after(target) ?? target,
      rate: this.rate,
      chunkLength: Math.max(chunk - (chunk % clusterLength), clusterLength),
      windowLength: WINDOW_LENGTH,
      windowLengthMax: COPY_WINDOW_MAX,
      roundTripMs: roundTripMs(this.source) + roundTripMs(this.target),
      requestsMax,
      unmap: true,
      taken: (offset, length) => copies.begin(offset, length),
      copied: (length) => this.#progress(length),
      failed: (operation, error) =>
        this.#broken === undefined && this.ioFailed(operation, error) !== 'report',
    });
  }

  protected override async run(): Promise<void> {
    const { sync } = this.#options;
    this.#began = true;
    await this.pausePoint();
    if (sync === 'none') return this.#untilCancelled();
    if (sync === 'top') await this.#leaveOutUnallocated();
    await this.#copyAll();
    if (this.cancelRequested) return;
    // What is reported as done has reached stable storage.
    await this.flushUnderPolicy(() => this.target.flush());
    if (!this.cancelled) await this.#discards?.discardAll();
  }

  async #copyAll(): Promise<void> {
    const copies = this.#driver?.copies;
    const loop = this.#loop;
    if (copies === undefined || loop === undefined) throw new Error(`${this.describe()} is closed`);
    for (;;) {
      await this.pausePoint();
      if (this.cancelRequested) return;
      const end = await this.#copySome(loop);
      this.#checkBroken();
      if (end === 'yielded') continue;
      // Copies for the sake of writes may be under way still, and may fail.
      await copies.whenIdle();
      this.#checkBroken();
      if (copies.bitmap.count === 0) return;
    }
  }

  /** Until it has to yield. A broken snapshot is the reason for what fails after it. */
  async #copySome(loop: CopyLoop): Promise<CopyLoopEnd> {
    try {
      return await loop.run(() => this.shouldYield || this.#broken !== undefined);
    } catch (error) {
      this.#checkBroken();
      throw error;
    }
  }

  /** Sync none: only what is overwritten is saved, for as long as that is wanted. */
  async #untilCancelled(): Promise<void> {
    while (!this.cancelRequested) {
      this.#checkBroken();
      await this.pausePoint();
      await new Promise<void>((resolve) => {
        this.#wakeIdle = resolve;
        if (this.shouldYield || this.#broken !== undefined) resolve();
      });
    }
  }

  #checkBroken(): void {
    if (this.#broken !== undefined && !this.cancelRequested) throw this.#broken.error;
  }

  /** Sync top: what the top layer does not have is no part of the backup. */
  async #leaveOutUnallocated(): Promise<void> {
    const copies = this.#driver?.copies;
    const base = this.source.children.get('backing')?.node;
    if (copies === undefined || base === undefined) return;
    for (let offset = 0; offset < copies.size && !this.cancelRequested; ) {
      await this.pausePoint();
      const length = Math.min(STATUS_STEP, copies.size - offset);
      const extent = await chainStatus(copies.source.node, offset, length, base);
      if ((extent.flags & STATUS_ALLOCATED) === 0) copies.leaveOut(offset, extent.length);
      offset += extent.length;
    }
    this.#progress(0);
  }

  protected override wakeUp(): void {
    this.#loop?.wakeUp();
    this.#wakeIdle?.();
  }

  /** Nobody waits for a copy any more, least of all the source's users. */
  protected override brokenOff(): void {
    this.#driver?.endSnapshot();
    this.target.cancelInFlight();
  }

  protected override async commit(): Promise<void> {
    try {
      await this.#takeDown();
    } finally {
      this.#returnBitmap(this.#options.bitmapMode === 'never' ? 'keep' : 'forget');
    }
  }

  protected override async abort(): Promise<void> {
    this.brokenOff();
    try {
      await this.#takeDown();
    } finally {
      const forget = this.#began && this.#options.bitmapMode === 'always';
      this.#returnBitmap(forget ? 'forget' : 'keep');
    }
  }

  protected override async clean(): Promise<void> {
    await this.#graph.exclusive(async () => {
      for (const edge of this.#edges.splice(0)) await this.#graph.removeEdge(edge);
    });
  }

  /** Takes the filter out; its users go back to what is below it. */
  async #takeDown(): Promise<void> {
    const filter = this.#filter;
    if (filter === undefined) return;
    this.#filter = undefined;
    const graph = this.#graph;
    await graph.exclusive(() => {
      const below = filter.children.get('file')?.node ?? this.source;
      return drained([filter, below, this.target], () => removeFilterLocked(graph, filter, below));
    });
  }

  /**
   * Gives the bitmap back. 'forget': it marks what was written since the job began, and what was not
   * copied; 'keep': what it marked before as well.
   */
  #returnBitmap(what: 'forget' | 'keep'): void {
    const bitmap = this.#bitmap;
    if (bitmap === undefined) return;
    this.#bitmap = undefined;
    if (what === 'keep') {
      bitmap.reclaim();
      return;
    }
    const left = this.#driver?.copies.bitmap;
    const successor = bitmap.abdicate();
    if (left !== undefined) successor.merge(left);
  }

  #progress(copied: number): void {
    this.progressCurrent += copied;
    const copies = this.#driver?.copies;
    if (copies === undefined) return;
    this.progressTotal = this.progressCurrent + copies.remaining;
  }
}

/** @throws BlockError when the target can't be one of this source, or is copied to in too small pieces */
export function checkBackupNodes({
  source,
  target,
  clusterLength,
  chunkLengthMax,
}: Pick<BackupOptions, 'source' | 'target' | 'clusterLength' | 'chunkLengthMax'>): void {
  if (source === target) {
    throw new BlockError('DF_INVALID', 'Source and target cannot be the same');
  }
  if (target.size !== source.size) {
    throw sizeMismatch(source, target);
  }
  if (chunkLengthMax !== 0 && chunkLengthMax < clusterLength) {
    throw new BlockError(
      'DF_INVALID',
      `Required max-chunk (${chunkLengthMax}) is less than backup cluster size (${clusterLength})`,
    );
  }
}
