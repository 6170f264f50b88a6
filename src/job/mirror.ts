// SPDX-License-Identifier: MIT
/**
 * `blockdev-mirror`: makes the target equal to a source that is being written to, and keeps it so,
 * until it is told to pivot (complete) or to stop there (cancel after READY).
 *
 * A filter above the source is where its users meet the job. Writes land in the source and mark the
 * dirty bitmap; the copy loop empties it. The last of it is copied in the drained section in which
 * the users are moved to the target, so no write is lost and nobody notices.
 */
import { BlockError } from '../base/errors.js';
import { RateLimit } from '../base/rate-limit.js';
import { BlockBackend } from '../block/backend.js';
import { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { STATUS_ALLOCATED, STATUS_ZERO } from '../block/block-driver.js';
import { chainStatus } from '../block/block-status.js';
import { drained } from '../block/drain.js';
import type { EdgeParent } from '../block/edge.js';
import { MirrorTopDriver } from '../block/filter/mirror-top.js';
import type { BlockGraph } from '../block/graph.js';
import { insertFilter, removeFilterLocked } from '../block/insert-filter.js';
import type { BlockNode } from '../block/node.js';
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from '../block/permissions.js';
import { BlockJob, type BlockJobObserver, type BlockJobOptions } from './block-job.js';
import { CopyLoop, type CopyLoopOptions } from './copy-loop.js';
import type { BitmapSyncMode } from './sync-bitmap.js';

/** Data request, bytes: measured as the best against a loopback server. */
const CHUNK_LENGTH = 256 * 1024;
/** Bytes in flight unless `buf-size` says otherwise: 16 requests deep. */
export const MIRROR_WINDOW_DEFAULT = 16 * CHUNK_LENGTH;
/** Step of the initial look at what is allocated (sync top), bytes. */
const STATUS_STEP = 1 << 30;
/** Dirty bytes that may be left for the drained section; its users wait that long. */
const FINAL_DIRTY_MAX = 4 * CHUNK_LENGTH;
/** Time that a writer gets to pause before little dirt counts as none, milliseconds. */
const NEARLY_READY_MS = 250;
/** Time for catching up before the drained section copies whatever is left, milliseconds. */
const CATCH_UP_MS = 5_000;

/** `bitmap`: what is marked in the bitmap. */
export type MirrorSync = 'full' | 'top' | 'none' | 'bitmap';

export interface MirrorOptions extends BlockJobOptions {
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly sync: MirrorSync;
  /** Of the source. Frozen while the job runs; what is written meanwhile its successor records. */
  readonly bitmap?: DirtyBitmap | undefined;
  readonly bitmapMode?: BitmapSyncMode | undefined;
  /** The target reads as zeroes when the job is made; what is zero in the source is left out. */
  readonly targetIsZero?: boolean | undefined;
  /** Node whose users the pivot moves to the target; the source when absent. */
  readonly replaces?: BlockNode;
  readonly filterNodeName?: string;
  /** Bytes a bit, a power of two from 512 to 64 MiB. */
  readonly granularity: number;
  /** Bytes in flight at most. */
  readonly windowLength: number;
  /** Zeroes may become holes in the target. */
  readonly unmap: boolean;
}

export class MirrorJob extends BlockJob {
  override readonly type = 'mirror';
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly #graph: BlockGraph;
  readonly #options: MirrorOptions;
  readonly #sourceBackend: BlockBackend;
  readonly #targetBackend: BlockBackend;
  readonly #bitmap: DirtyBitmap;
  readonly #loop: CopyLoop;
  /** Until it is given back. */
  #syncBitmap: DirtyBitmap | undefined;
  #filter: BlockNode | undefined;
  #pivot = false;
  /** The job's own bitmap says what there is to copy. */
  #began = false;
  /** Since when, and since which write, no more than FINAL_DIRTY_MAX is dirty. */
  #littleLeft: { readonly since: number; readonly generation: number } | undefined;
  #wakeReady: (() => void) | undefined;

  /** @throws BlockError when the nodes can't be what they are meant to be; nothing has changed then */
  static async create(
    graph: BlockGraph,
    options: MirrorOptions,
    observer: BlockJobObserver,
  ): Promise<MirrorJob> {
    checkNodes(options);
    const job = new MirrorJob(graph, options, observer);
    await job.#setUp();
    return job;
  }

  private constructor(graph: BlockGraph, options: MirrorOptions, observer: BlockJobObserver) {
    super(options, observer);
    this.#graph = graph;
    this.#options = options;
    this.source = options.source;
    this.target = options.target;
    this.#sourceBackend = new BlockBackend(this.describe());
    this.#targetBackend = new BlockBackend(this.describe());
    this.#bitmap = new DirtyBitmap({ size: this.source.size, granularity: options.granularity });
    this.#loop = this.#makeLoop(this.#sourceBackend, this.#targetBackend);
  }

  override owns(parent: EdgeParent): boolean {
    return parent === this.#sourceBackend || parent === this.#targetBackend;
  }

  describe(): string {
    return `block job '${this.id}'`;
  }

  /** The synchronisation has reached the source; only what is written from now on is copied. */
  get ready(): boolean {
    return this.state === 'ready' || this.state === 'standby';
  }

  async #setUp(): Promise<void> {
    const graph = this.#graph;
    try {
      await graph.attach(this.#targetBackend, this.target, {
        taken: PERM_WRITE,
        shared: PERM_WRITE_UNCHANGED,
      });
      this.#filter = await insertFilter(graph, this.source, {
        name: this.#options.filterNodeName,
        childName: 'file',
        driver: (child) => new MirrorTopDriver(child),
      });
      await graph.attach(this.#sourceBackend, this.source, {
        taken: PERM_CONSISTENT_READ,
        shared: PERM_ALL & ~PERM_RESIZE,
      });
      this.source.trackers.push(this.#bitmap);
      // In the same instant: a write is marked before it in the bitmap, after it by both others.
      this.#options.bitmap?.createSuccessor();
      this.#syncBitmap = this.#options.bitmap;
    } catch (error) {
      await this.#takeDown(undefined);
      await this.clean();
      throw error;
    }
  }

  protected override async run(): Promise<void> {
    await this.#findInitialDirty();
    this.#began = true;
    this.#progress(0);
    for (;;) {
      await this.pausePoint();
      if (this.#ending) return;
      const end = await this.#loop.run(
        () => this.shouldYield || this.#ending || this.#nearlyReady(),
      );
      if (this.state === 'running' && (end === 'clean' || this.#nearlyReady())) {
        this.setState('ready');
        continue;
      }
      if (end === 'yielded') continue;
      await this.#waitForChange();
    }
  }

  /**
   * A writer that never pauses leaves something dirty at every instant. When it keeps at it, and so
   * little is left that the drained section at the end copies it in no time, that is in sync.
   */
  #nearlyReady(): boolean {
    if (this.state !== 'running' || this.#bitmap.count > FINAL_DIRTY_MAX) {
      this.#littleLeft = undefined;
      return false;
    }
    const generation = this.source.writeGeneration;
    this.#littleLeft ??= { since: performance.now(), generation };
    if (this.#littleLeft.generation === generation) return false;
    return performance.now() - this.#littleLeft.since >= NEARLY_READY_MS;
  }

  /** Time to leave the loop: told to pivot, or cancelled. The rest is copied in `prepare`. */
  get #ending(): boolean {
    return this.#pivot || this.cancelRequested;
  }

  protected override cancelBreaksOff(): boolean {
    return !this.ready;
  }

  protected override completeRequested(): void {
    this.#pivot = true;
    this.wakeUp();
  }

  protected override brokenOff(): void {
    this.target.cancelInFlight();
  }

  protected override wakeUp(): void {
    this.#loop.wakeUp();
    this.#wakeReady?.();
  }

  /** Catches up, then in one drained section: the last copies, the flush, the change of the graph. */
  protected override async prepare(): Promise<void> {
    const deadline = performance.now() + CATCH_UP_MS;
    await this.#loop.run(
      () => this.#bitmap.count <= FINAL_DIRTY_MAX || performance.now() > deadline,
    );
    // Most of what the last flush would do, while users can still work.
    await this.#targetBackend.flush();
    await this.#takeDown(async () => {
      // Users wait: at full speed, and an error ends the job instead of being tried again.
      const rest = this.#makeLoop(this.source, this.target, {
        rate: new RateLimit(0, () => performance.now()),
        failed: () => false,
      });
      await rest.run(() => false);
      await this.target.flush();
    });
  }

  protected override async commit(): Promise<void> {
    this.#returnBitmap({ copied: true });
  }

  protected override async abort(): Promise<void> {
    this.#pivot = false;
    try {
      await this.#takeDown(undefined);
    } finally {
      this.#returnBitmap({ copied: false });
    }
  }

  protected override async clean(): Promise<void> {
    const at = this.source.trackers.indexOf(this.#bitmap);
    if (at >= 0) this.source.trackers.splice(at, 1);
    await this.#graph.detach(this.#sourceBackend);
    await this.#graph.detach(this.#targetBackend);
  }

  /** Takes the filter out; its users go back to the source, or to the target when pivoting. */
  async #takeDown(lastCopies: (() => Promise<void>) | undefined): Promise<void> {
    const filter = this.#filter;
    if (filter === undefined) return;
    const graph = this.#graph;
    const replaced = this.#options.replaces ?? this.source;
    await graph.exclusive(() =>
      drained([filter, this.source, this.target, replaced], async () => {
        await lastCopies?.();
        if (this.#pivot) await this.#relaxTarget();
        const direct = this.#pivot && replaced === this.source;
        await removeFilterLocked(graph, filter, direct ? this.target : this.source);
        this.#filter = undefined;
        if (this.#pivot && !direct) {
          await graph.replaceLocked(
            replaced,
            this.target,
            (edge) => edge.parent !== this.#sourceBackend,
          );
        }
      }),
    );
  }

  /**
   * Gives the bitmap back. The job's own still follows the source, so what it marks is where source
   * and target differ; that is all that is left, unless the mode wants the old marks kept.
   */
  #returnBitmap({ copied }: { readonly copied: boolean }): void {
    const bitmap = this.#syncBitmap;
    if (bitmap === undefined) return;
    this.#syncBitmap = undefined;
    const { bitmapMode = 'on-success' } = this.#options;
    const forget = copied ? bitmapMode !== 'never' : bitmapMode === 'always' && this.#began;
    if (!forget) {
      bitmap.reclaim();
      return;
    }
    const successor = bitmap.abdicate();
    successor.clear();
    successor.merge(this.#bitmap);
  }

  /** The target's new users want what the job took for itself. */
  async #relaxTarget(): Promise<void> {
    const edge = this.#targetBackend.root;
    await this.#graph.updatePermissions(
      [this.target],
      new Map([[edge, { taken: 0, shared: PERM_ALL }]]),
    );
  }

  async #findInitialDirty(): Promise<void> {
    const { sync, targetIsZero } = this.#options;
    const { size } = this.source;
    if (sync === 'none') return;
    if (sync === 'bitmap') {
      if (this.#syncBitmap !== undefined) this.#bitmap.merge(this.#syncBitmap);
      return;
    }
    if (sync === 'full' && targetIsZero !== true) {
      this.#bitmap.setDirty(0, size);
      return;
    }
    const backing = this.source.children.get('backing')?.node;
    const base = sync === 'top' ? backing : undefined;
    for (let offset = 0; offset < size && !this.cancelRequested; ) {
      await this.pausePoint();
      const length = Math.min(STATUS_STEP, size - offset);
      const extent = await chainStatus(this.source, offset, length, base);
      const belongs = base === undefined || (extent.flags & STATUS_ALLOCATED) !== 0;
      const there = targetIsZero === true && (extent.flags & STATUS_ZERO) !== 0;
      if (belongs && !there) this.#bitmap.setDirty(offset, extent.length);
      offset += extent.length;
    }
  }

  /** In sync: sleeps until the source changes, or somebody says something. */
  async #waitForChange(): Promise<void> {
    const filter = this.#filter?.driver;
    if (!(filter instanceof MirrorTopDriver)) throw new Error(`${this.describe()} lost its filter`);
    await new Promise<void>((resolve) => {
      this.#wakeReady = resolve;
      filter.onChange = resolve;
      if (this.#bitmap.count > 0 || this.shouldYield || this.#ending) resolve();
    });
    this.#wakeReady = undefined;
    filter.onChange = undefined;
  }

  #makeLoop(
    source: BlockBackend | BlockNode,
    target: BlockBackend | BlockNode,
    how: Partial<Pick<CopyLoopOptions, 'rate' | 'failed'>> = {},
  ): CopyLoop {
    const node = this.source;
    return new CopyLoop({
      bitmap: this.#bitmap,
      size: node.size,
      source: {
        read: (offset, buffer) => source.read(offset, buffer),
        blockStatus: (offset, length) =>
          source instanceof BlockBackend
            ? source.blockStatus(offset, length)
            : chainStatus(source, offset, length),
        get generation() {
          return node.writeGeneration;
        },
      },
      target,
      rate: this.rate,
      chunkLength: Math.max(CHUNK_LENGTH, this.#options.granularity),
      windowLength: this.#options.windowLength,
      unmap: this.#options.unmap,
      copied: (length) => this.#progress(length),
      failed: (operation, error) => this.ioFailed(operation, error) !== 'report',
      ...how,
    });
  }

  #progress(copied: number): void {
    this.progressCurrent += copied;
    this.progressTotal =
      this.progressCurrent + this.#bitmap.count + (this.#loop?.bytesInFlight ?? 0);
  }
}

function checkNodes({ source, target, replaces }: MirrorOptions): void {
  if (source === target) throw new BlockError('DF_INVALID', "Can't mirror node into itself");
  if (target.size !== source.size) {
    throw new BlockError(
      'DF_INVALID',
      `Source and target image have different sizes: node '${source.name}' has ${source.size} bytes, ` +
        `node '${target.name}' ${target.size}`,
    );
  }
  if (replaces !== undefined && replaces.size !== source.size) {
    throw new BlockError(
      'DF_INVALID',
      'cannot replace image with a mirror image of different size',
    );
  }
}
