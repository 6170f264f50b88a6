// SPDX-License-Identifier: MIT
/**
 * `block-commit` below the active layer: copies what the layers from `top` down to the base have into
 * the base, then puts the base in the place of `top`, in the images and in the graph.
 *
 * Until the overlay's header names the base nothing above the base has changed, and whoever reads from
 * above sees the same as ever, because the layers still lie over what the base got. The header is
 * changed when the base is on stable storage: so the chain reads the same after a kill at any moment.
 */
import { BlockBackend } from '../block/backend.js';
import { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { drained } from '../block/drain.js';
import type { EdgeParent } from '../block/edge.js';
import { CommitTopDriver } from '../block/filter/commit-top.js';
import type { BlockGraph } from '../block/graph.js';
import { insertFilter, removeFilterLocked } from '../block/insert-filter.js';
import type { BlockNode } from '../block/node.js';
import { PERM_ALL, PERM_RESIZE } from '../block/permissions.js';
import { BlockJob, type BlockJobObserver, type BlockJobOptions } from './block-job.js';
import { CommitChain } from './commit-chain.js';
import { type BackingChange, changeBackingFiles, overlaysOf } from './commit-overlays.js';
import { copyBetween } from './copy-between.js';
import { CopyLoop } from './copy-loop.js';
import { COPY_WINDOW_MAX } from './copy-window.js';
import { cancelledError } from './job.js';

/** Data request, bytes. */
const CHUNK_LENGTH = 256 * 1024;
const WINDOW_LENGTH = 16 * CHUNK_LENGTH;
/** Bytes copied together. */
const GRANULARITY = 65536;

export interface CommitOptions extends BlockJobOptions {
  /** The topmost layer that goes; nobody writes to it. */
  readonly top: BlockNode;
  /** Below `top`; it gets the data. */
  readonly base: BlockNode;
  /** The node that the user named: the top of the whole chain. */
  readonly device: BlockNode;
  /** What the images above `top` are to note as their backing file from now on. */
  readonly backing: BackingChange;
  readonly filterNodeName?: string;
}

export class CommitJob extends BlockJob {
  override readonly type = 'commit';
  readonly #graph: BlockGraph;
  readonly #options: CommitOptions;
  readonly #chain: CommitChain;
  readonly #writer: BlockBackend;
  readonly #bitmap: DirtyBitmap;
  readonly #loop: CopyLoop;
  /** Hold the images above, which note the base in the end: open until then, and as long as they are. */
  readonly #holders: BlockBackend[] = [];
  #filter: BlockNode | undefined;

  /** @throws BlockError when chain, base or overlays can't be had; nothing has changed then */
  static async create(
    graph: BlockGraph,
    options: CommitOptions,
    observer: BlockJobObserver,
  ): Promise<CommitJob> {
    const { top, base, device } = options;
    const overlays = overlaysOf(top);
    const chain = await CommitChain.take(graph, { top, base, also: [device, ...overlays] });
    const job = new CommitJob(graph, options, observer, chain);
    await job.#setUp();
    return job;
  }

  private constructor(
    graph: BlockGraph,
    options: CommitOptions,
    observer: BlockJobObserver,
    chain: CommitChain,
  ) {
    super(options, observer);
    this.#graph = graph;
    this.#options = options;
    this.#chain = chain;
    const { top, base } = options;
    this.#writer = new BlockBackend(this.#describe(), {
      drained: (held) => (held ? this.#loop.hold() : this.#loop.release()),
      whenIdle: () => this.#loop.whenIdle(),
    });
    this.#bitmap = new DirtyBitmap({ size: top.size, granularity: GRANULARITY });
    this.#loop = new CopyLoop({
      bitmap: this.#bitmap,
      size: top.size,
      ...copyBetween({
        source: () => top,
        target: () => base,
        generation: () => top.writeGeneration,
        lend: this.lendOnce,
      }),
      rate: this.rate,
      chunkLength: CHUNK_LENGTH,
      windowLength: WINDOW_LENGTH,
      windowLengthMax: COPY_WINDOW_MAX,
      unmap: true,
      copied: (length) => this.#progress(length),
      failed: (operation, error) => this.ioFailed(operation, error) !== 'report',
    });
  }

  #describe(): string {
    return `block job '${this.id}'`;
  }

  override owns(parent: EdgeParent): boolean {
    const holds = this.#holders.some((holder) => holder === parent);
    return holds || parent === this.#writer || this.#chain.owns(parent);
  }

  async #setUp(): Promise<void> {
    const { top, filterNodeName } = this.#options;
    try {
      this.#filter = await insertFilter(this.#graph, top, {
        name: filterNodeName,
        childName: 'backing',
        driver: (child) => new CommitTopDriver(child),
      });
      await this.#chain.block(this.#describe(), { writer: this.#writer });
      const { device } = this.#options;
      for (const node of new Set([device, ...overlaysOf(this.#filter)])) {
        const holder = new BlockBackend(this.#describe());
        await this.#graph.attach(holder, node, {
          ...{ taken: 0, shared: PERM_ALL & ~PERM_RESIZE },
          name: node === device ? 'main node' : 'overlay',
        });
        this.#holders.push(holder);
      }
      // Nobody is expected to write there; who does so all the same loses nothing.
      top.trackers.push(this.#bitmap);
    } catch (error) {
      await this.abort();
      await this.clean();
      throw error;
    }
  }

  protected override async run(): Promise<void> {
    await this.#chain.growBase();
    await this.#chain.markLayers(this.#bitmap, async () => {
      await this.pausePoint();
      return this.cancelRequested;
    });
    await this.#zeroBaseBehindTop();
    this.#progress(0);
    for (;;) {
      await this.pausePoint();
      if (this.cancelRequested) return;
      const end = await this.#loop.run(() => this.shouldYield);
      if (end === 'clean') break;
    }
    await this.flushUnderPolicy(() => this.#writer.flush());
  }

  /**
   * An overlay that is longer than `top` reads zeroes behind its end. A base that is longer too would
   * show what it has there.
   */
  async #zeroBaseBehindTop(): Promise<void> {
    const { top, base } = this.#options;
    const shown = Math.max(top.size, ...overlaysOf(this.#above).map(({ size }) => size));
    const end = Math.min(base.size, shown);
    if (end > top.size) await base.writeZeroes(top.size, end - top.size);
  }

  /** What the overlays use. */
  get #above(): BlockNode {
    return this.#filter ?? this.#options.top;
  }

  protected override wakeUp(): void {
    this.#loop.wakeUp();
  }

  protected override brokenOff(): void {
    this.#options.base.cancelInFlight();
  }

  /** In one drained section: what is left, the flush, the images above, the graph. */
  protected override async prepare(): Promise<void> {
    const { top, base, backing } = this.#options;
    const filter = this.#filter;
    if (filter === undefined) return;
    const graph = this.#graph;
    await graph.exclusive(() =>
      drained([filter, top, base], async () => {
        await this.#copyRest();
        await this.flushUnderPolicy(() => base.flush());
        if (this.cancelled) throw cancelledError();
        this.seal();
        await this.#letGoLocked();
        const undo = await changeBackingFiles(graph, overlaysOf(filter), backing);
        try {
          await removeFilterLocked(graph, filter, base);
          this.#filter = undefined;
        } catch (error) {
          await undo();
          throw error;
        }
      }),
    );
  }

  /** Writers below the filter, if there were any. The loop is held by the drained section. */
  async #copyRest(): Promise<void> {
    if (this.#bitmap.count === 0) return;
    const { top, base } = this.#options;
    const size = top.size;
    for (;;) {
      const run = this.#bitmap.nextDirtyRun(0, CHUNK_LENGTH);
      if (run === undefined) return;
      const length = Math.min(run.length, size - run.offset);
      const buffer = Buffer.alloc(length);
      await top.read(run.offset, buffer);
      await base.write(run.offset, buffer);
      this.#bitmap.resetDirty(run.offset, length);
    }
  }

  protected override async abort(): Promise<void> {
    const filter = this.#filter;
    if (filter === undefined) return;
    const { top, base } = this.#options;
    await this.#graph.exclusive(() =>
      drained([filter, top, base], async () => {
        await this.#letGoLocked();
        await removeFilterLocked(this.#graph, filter, top);
        this.#filter = undefined;
      }),
    );
  }

  /** Those above want back what the job took for itself. */
  async #letGoLocked(): Promise<void> {
    await this.#chain.unblockLocked();
    if (!this.#writer.attached) return;
    await this.#graph.updatePermissions(
      [this.#options.base],
      new Map([[this.#writer.root, { taken: 0, shared: PERM_ALL }]]),
    );
  }

  protected override async clean(): Promise<void> {
    const { trackers } = this.#options.top;
    const at = trackers.indexOf(this.#bitmap);
    if (at >= 0) trackers.splice(at, 1);
    for (const backend of [...this.#holders.splice(0), this.#writer]) {
      await this.#graph.detach(backend);
    }
    await this.#chain.end({ keepWritable: false });
  }

  #progress(copied: number): void {
    this.progressCurrent += copied;
    this.progressTotal = this.progressCurrent + this.#bitmap.count + this.#loop.bytesInFlight;
  }
}
