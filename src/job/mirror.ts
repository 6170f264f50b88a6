// SPDX-License-Identifier: MIT
/**
 * `blockdev-mirror`: makes the target equal to a source that is being written to, and keeps it so,
 * until it is told to pivot (complete) or to stop there (cancel after READY).
 *
 * A filter above the source is where its users meet the job. Writes land in the source and mark the
 * dirty bitmap, or in both (mirror-writes.ts); the copy loop empties the bitmap. The last of it is
 * copied in the drained section in which the users are moved to the target, so no write is lost and
 * nobody notices. The commit of an active layer is such a mirror, into the base of its chain.
 */
import { RateLimit } from '../base/rate-limit.js';
import { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { REQ_LEND } from '../block/block-driver.js';
import type { EdgeParent } from '../block/edge.js';
import type { BlockGraph } from '../block/graph.js';
import type { BlockNode } from '../block/node.js';
import { roundTripMs } from '../block/round-trip.js';
import { BlockJob, type ErrorAction } from './block-job.js';
import { CatchUp, LAST_COPIES_MS, lastCopiesLate } from './catch-up.js';
import { type CopyRates, watchConvergence } from './convergence.js';
import { copyBetween } from './copy-between.js';
import { CopyLoop, type CopyLoopOptions, ZERO_RUN_MAX } from './copy-loop.js';
import { cancelledError } from './job.js';
import { markInitialDirty } from './mirror-initial.js';
import {
  checkMirrorNodes,
  claimSource,
  type GranularOptions,
  type MirrorObserver,
  type MirrorOptions,
  withGranules,
} from './mirror-options.js';
import { MirrorPlace } from './mirror-place.js';
import { type MirrorCopyMode, MirrorWrites } from './mirror-writes.js';
import { returnMirrorBitmap } from './sync-bitmap.js';

/** Data request, bytes: measured as the best against a loopback server. */
const CHUNK_LENGTH = 256 * 1024;
/** Bytes in flight unless `buf-size` says otherwise: 16 requests deep. */
export const MIRROR_WINDOW_DEFAULT = 16 * CHUNK_LENGTH;
/** Longest run that is zeroed at once while writes wait for copies of what they change, bytes. */
const ZERO_RUN_GENTLE = 16 * 1024 * 1024;
/** Dirty bytes that may be left for the drained section in any case; its users wait that long. */
const FINAL_DIRTY_MAX = 4 * CHUNK_LENGTH;
/** Time for catching up with what was written before the job was finalized, milliseconds. */
const CATCH_UP_MS = 5_000;

export class MirrorJob extends BlockJob {
  override readonly type: 'mirror' | 'commit';
  override readonly observer: MirrorObserver;
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly #options: GranularOptions;
  readonly #place: MirrorPlace;
  readonly #bitmap: DirtyBitmap;
  readonly #loop: CopyLoop;
  readonly #writes: MirrorWrites;
  readonly #releaseSource: () => void;
  /** Until it is given back. */
  #syncBitmap: DirtyBitmap | undefined;
  /** A write for both that the target did not take, when the policy is to fail. */
  #targetError: { readonly error: unknown } | undefined;
  #brokenOff = false;
  #pivot = false;
  /** The job's own bitmap says what there is to copy. */
  #began = false;
  readonly #catchUp = new CatchUp({
    small: () => this.#fewDirty,
    dirty: () => this.#bitmap.count,
    generation: () => this.source.writeGeneration,
  });
  #wakeReady: (() => void) | undefined;

  /** @throws BlockError when the nodes can't be what they are meant to be; nothing has changed then */
  static async create(
    graph: BlockGraph,
    options: MirrorOptions,
    observer: MirrorObserver,
  ): Promise<MirrorJob> {
    checkMirrorNodes(options);
    const job = new MirrorJob(graph, await withGranules(options), observer);
    await job.#setUp();
    return job;
  }

  private constructor(graph: BlockGraph, options: GranularOptions, observer: MirrorObserver) {
    super(options, observer);
    this.#releaseSource = claimSource(options);
    this.type = options.commit === undefined ? 'mirror' : 'commit';
    this.observer = observer;
    this.#options = options;
    this.source = options.source;
    this.target = options.target;
    this.#place = new MirrorPlace(graph, options, {
      title: this.describe(),
      loop: () => this.#loop,
      writes: () => this.#writes,
    });
    this.#bitmap = new DirtyBitmap({ size: this.source.size, granularity: options.granularity });
    this.#writes = new MirrorWrites({
      graph,
      bitmap: this.#bitmap,
      target: this.#place.target,
      intoChain: options.commit !== undefined,
      unmap: options.unmap,
      wholeGranules: options.wholeGranules,
      mode: options.copyMode ?? 'background',
      usable: () => this.#began && this.#targetUsable,
      failed: (error) => this.#writeFailed(error),
      changed: () => this.#sourceChanged(),
    });
    this.#loop = this.#makeLoop({
      source: () => this.#place.source.root.node,
      target: () => this.#place.target.root.node,
    });
  }

  override owns(parent: EdgeParent): boolean {
    return this.#place.owns(parent) || this.#options.commit?.owns(parent) === true;
  }

  describe(): string {
    return `block job '${this.id}'`;
  }

  /** The synchronisation has reached the source; only what is written from now on is copied. */
  get ready(): boolean {
    return this.state === 'ready' || this.state === 'standby';
  }

  async #setUp(): Promise<void> {
    try {
      await this.#place.take();
      this.source.trackers.push(this.#bitmap);
      // In the same instant: a write is marked before it in the bitmap, after it by both others.
      this.#options.bitmap?.createSuccessor();
      this.#syncBitmap = this.#options.bitmap;
    } catch (error) {
      await this.#place.takeDown({ pivot: false });
      await this.clean();
      throw error;
    }
  }

  protected override async run(): Promise<void> {
    await this.#options.commit?.growBase();
    await this.#findInitialDirty();
    if (this.cancelRequested) return;
    this.#began = true;
    this.#progress(0);
    const stopWatching = watchConvergence({
      small: FINAL_DIRTY_MAX,
      atWork: () => !this.pauseRequested && !this.#writes.toBoth && !this.#ending,
      progress: () => ({
        copied: this.progressCurrent,
        remaining: this.#bitmap.count + this.#loop.bytesInFlight,
      }),
      lost: (rates) => void this.#doesNotConverge(rates),
    });
    try {
      await this.#copyUntilTold();
    } finally {
      stopWatching();
    }
  }

  protected override runOn(): Promise<void> {
    return this.#copyUntilTold();
  }

  /** Returns when the job is told to end and has caught up, as far as that goes with users at work. */
  async #copyUntilTold(): Promise<void> {
    for (;;) {
      await this.pausePoint();
      if (this.cancelled) return;
      if (this.#targetError !== undefined) throw this.#targetError.error;
      if (this.#ending && this.#catchUp.isDone()) {
        // Most of what the last flush would do, while users can still work.
        await this.flushUnderPolicy(() => this.#place.target.flush());
        return;
      }
      const end = await this.#loop.run(
        () =>
          this.pauseRequested ||
          this.cancelled ||
          this.#targetError !== undefined ||
          (this.#ending ? this.#catchUp.isDone() : this.#nearlyReady()),
      );
      if (this.#ending) continue;
      if (this.state === 'running' && (end === 'clean' || this.#nearlyReady())) {
        // What is reported as copied has reached stable storage.
        await this.flushUnderPolicy(() => this.#place.target.flush());
        if (!this.shouldYield && this.#targetError === undefined) this.setState('ready');
        continue;
      }
      if (end === 'yielded') continue;
      await this.#waitForChange();
    }
  }

  #nearlyReady(): boolean {
    if (this.state === 'running') return this.#catchUp.keepsUp();
    this.#catchUp.forget();
    return false;
  }

  /** A writer dirties meanwhile what takes one round trip to copy, so over a long way that has to do. */
  get #fewDirty(): number {
    return Math.max(FINAL_DIRTY_MAX, this.#loop.windowLength / 2);
  }

  /** Told to pivot, or to end with a copy, or broken off. */
  get #ending(): boolean {
    return this.#pivot || this.cancelRequested;
  }

  protected override ioFailed(operation: 'read' | 'write', error: unknown): ErrorAction {
    this.#catchUp.noteTrouble();
    return super.ioFailed(operation, error);
  }

  protected override cancelBreaksOff(): boolean {
    return !this.ready;
  }

  protected override completeRequested(): void {
    this.#pivot = true;
    this.wakeUp();
  }

  protected override brokenOff(): void {
    this.#brokenOff = true;
    this.target.cancelInFlight();
  }

  /** As asked for, or (`auto`) what is in force now. */
  get copyMode(): MirrorCopyMode {
    return this.#writes.mode;
  }

  /** Target and source are equal, and writes are done when both have them. */
  get activelySynced(): boolean {
    if (!this.#writes.toBoth || !this.#targetUsable) return false;
    return this.#bitmap.count === 0 && this.#loop.whenIdle() === undefined;
  }

  /**
   * User verb. When it ends, all writes of the old mode are done.
   * @throws BlockError in the wrong state, or when somebody writes past the job's filter
   */
  async changeCopyMode(mode: MirrorCopyMode): Promise<void> {
    this.checkVerb('change');
    await this.#writes.change(mode);
  }

  protected override wakeUp(): void {
    this.#loop.wakeUp();
    this.#wakeReady?.();
  }

  #sourceChanged(): void {
    this.#wakeReady?.();
    // What the loop waits for may be a range that a write held.
    if (this.#writes.toBoth) this.#loop.wakeUp();
  }

  get #targetUsable(): boolean {
    return !this.#brokenOff && this.#targetError === undefined && this.ioStatus === 'ok';
  }

  /** The range is marked; whether the job goes on is the policy's affair, as with a failed copy. */
  #writeFailed(error: unknown): void {
    const atWork = this.ready || this.state === 'running' || this.state === 'paused';
    // Later on, what is marked is copied when the end takes effect, or fails it.
    if (!atWork || !this.#targetUsable) return;
    if (this.ioFailed('write', error) === 'report') this.#targetError ??= { error };
    this.wakeUp();
  }

  async #doesNotConverge(rates: CopyRates): Promise<void> {
    if (this.#writes.mode === 'auto') {
      // Refused when somebody writes past the filter: then it stays as it is, and the event says so.
      await this.#writes.slowDownWriters().catch(() => undefined);
    }
    const mode = this.#writes.toBoth ? 'write-blocking' : 'background';
    this.observer.notConverging?.(this, rates, mode);
  }

  /** Catches up, then in one drained section: the last copies, the flush, the change of the graph. */
  protected override async prepare(): Promise<void> {
    const deadline = performance.now() + CATCH_UP_MS;
    await this.#loop.run(
      () => this.cancelled || this.#bitmap.count <= this.#fewDirty || performance.now() > deadline,
    );
    await this.flushUnderPolicy(() => this.#place.target.flush());
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.target.cancelInFlight();
    }, LAST_COPIES_MS);
    try {
      const lastCopies = (): Promise<void> => this.#lastCopies(() => late);
      await this.#place.takeDown({ pivot: this.#pivot, lastCopies });
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Users wait: at full speed, and an error ends the job instead of being tried again.
   * @throws BlockError DF_TIMEOUT when it is late: users go back to the source
   */
  async #lastCopies(isLate: () => boolean): Promise<void> {
    const rest = this.#makeLoop(
      { source: () => this.source, target: () => this.target },
      { rate: new RateLimit(0, () => performance.now()) },
    );
    await rest.run(() => this.cancelled || isLate());
    if (isLate()) throw lastCopiesLate();
    await this.flushUnderPolicy(() => this.target.flush());
    this.#progress(0);
    if (this.cancelled) throw cancelledError();
    this.seal();
  }

  protected override async commit(): Promise<void> {
    this.#returnBitmap({ copied: true });
  }

  protected override async abort(): Promise<void> {
    this.#pivot = false;
    try {
      await this.#place.takeDown({ pivot: false });
    } finally {
      this.#returnBitmap({ copied: false });
    }
  }

  protected override async clean(): Promise<void> {
    const at = this.source.trackers.indexOf(this.#bitmap);
    if (at >= 0) this.source.trackers.splice(at, 1);
    this.#releaseSource();
    await this.#place.leave();
  }

  /** Gives the user's bitmap back. The job's own has followed the source until now. */
  #returnBitmap({ copied }: { readonly copied: boolean }): void {
    const bitmap = this.#syncBitmap;
    if (bitmap === undefined) return;
    this.#syncBitmap = undefined;
    const { bitmapMode: mode = 'on-success' } = this.#options;
    const outcome = { copied, began: this.#began, differences: this.#bitmap };
    returnMirrorBitmap(bitmap, mode, outcome);
  }

  async #findInitialDirty(): Promise<void> {
    const { sync, commit, targetIsZero = false } = this.#options;
    if (sync === 'none') return;
    const pausePoint = async (): Promise<boolean> => {
      await this.pausePoint();
      return this.cancelRequested;
    };
    if (commit !== undefined) return commit.markLayers(this.#bitmap, pausePoint);
    if (sync === 'bitmap') {
      if (this.#syncBitmap !== undefined) this.#bitmap.merge(this.#syncBitmap);
      return;
    }
    await markInitialDirty(this.#bitmap, {
      source: this.source,
      topOnly: sync === 'top',
      targetIsZero,
      pausePoint,
    });
  }

  /** In sync: sleeps until the source changes, or somebody says something. */
  async #waitForChange(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wakeReady = resolve;
      const told = this.shouldYield || this.#ending || this.#targetError !== undefined;
      if (this.#bitmap.count > 0 || told) resolve();
    });
    this.#wakeReady = undefined;
  }

  /** Between nodes, not backends: a copy that has begun ends, also when they are being drained. */
  #makeLoop(
    { source, target }: { readonly source: () => BlockNode; readonly target: () => BlockNode },
    how: Partial<Pick<CopyLoopOptions, 'rate' | 'failed'>> = {},
  ): CopyLoop {
    const node = this.source;
    return new CopyLoop({
      bitmap: this.#bitmap,
      size: node.size,
      // A change meanwhile is marked, and its newer content is what the target is to have.
      ...copyBetween({ source, target, generation: () => node.writeGeneration, lend: REQ_LEND }),
      lock: this.#writes.lock,
      zeroRunMax: () => (this.#writes.toBoth ? ZERO_RUN_GENTLE : ZERO_RUN_MAX),
      rate: this.rate,
      chunkLength: Math.max(CHUNK_LENGTH, this.#options.granularity),
      windowLength: this.#options.windowLength,
      windowLengthMax: this.#options.windowLengthMax,
      // Where writes wait for the target they would wait behind what is too much for the link.
      roundTripMs:
        this.#writes.mode === 'write-blocking'
          ? undefined
          : roundTripMs(node) + roundTripMs(this.target),
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
