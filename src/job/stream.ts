// SPDX-License-Identifier: MIT
/**
 * `block-stream`: copies into a layer what it shows of the layers below it, down to a base, and takes
 * these out of the chain.
 *
 * A copy-on-read filter comes above the layer. It has the one lock for copies and the writes of users, so
 * a copy never undoes a newer write. The job looks for what is allocated below only, and lets the
 * filter fetch it.
 */
import { KIB, MIB } from '../base/limits.js';
import type { MaybePromise } from '../base/maybe-promise.js';
import { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { REQ_PREFETCH, STATUS_DATA } from '../block/block-driver.js';
import { chainStatus } from '../block/block-status.js';
import { drained } from '../block/drain.js';
import type { ChildEdge, EdgeParent } from '../block/edge.js';
import { CopyOnReadDriver } from '../block/filter/copy-on-read.js';
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
import { makeReadOnlyLocked, makeWritableLocked } from '../block/reopen.js';
import { BlockJob, type BlockJobObserver, type BlockJobOptions } from './block-job.js';
import { CopyLoop } from './copy-loop.js';
import { claimNodes } from './node-claims.js';
import { type StreamBacking, StreamChain } from './stream-chain.js';

/** Longest copy, bytes. */
const CHUNK_LENGTH = 256 * KIB;
/** Bytes in flight. */
const WINDOW_LENGTH = 4 * MIB;
/** What is looked for and copied together, bytes. */
const GRANULARITY = 64 * KIB;
/** Step of the look at what is allocated, bytes. */
const STATUS_STEP = 1024 * MIB;
/** Bits that are not the job's to share: the size stays, and nobody changes what is still to be read. */
const UNCHANGED = PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED;

export interface StreamOptions extends BlockJobOptions {
  /** The node that was named; the layer below its filters gets the data. */
  readonly top: BlockNode;
  /** The lowest layer whose data is copied; `top`'s own layer when there is nothing to do. */
  readonly bottom: BlockNode;
  /** The lowest node that goes: `bottom`, or the last of the filters below it. */
  readonly last: BlockNode;
  readonly backing: StreamBacking;
  readonly filterNodeName?: string | undefined;
}

/** The job as a user of its nodes: what drains them pauses it. */
class StreamUser implements EdgeParent {
  constructor(
    private readonly job: StreamJob,
    private readonly loop: () => CopyLoop,
  ) {}

  describe(): string {
    return this.job.describe();
  }

  drainBegin(): void {
    this.loop().hold();
    this.job.hold();
  }

  drainEnd(): void {
    this.loop().release();
    this.job.unhold();
  }

  whenIdle(): MaybePromise<void> {
    return this.loop().whenIdle();
  }
}

export class StreamJob extends BlockJob {
  override readonly type = 'stream';
  readonly #graph: BlockGraph;
  readonly #options: StreamOptions;
  readonly #chain: StreamChain;
  readonly #bitmap: DirtyBitmap;
  readonly #loop: CopyLoop;
  readonly #user: StreamUser;
  readonly #edges: ChildEdge[] = [];
  readonly #size: number;
  /** Errors after which the copy is tried again. */
  readonly #again = new WeakSet<object>();
  #releaseNodes: (() => void) | undefined;
  #filter: BlockNode | undefined;
  #driver: CopyOnReadDriver | undefined;
  #openedForWriting = false;
  /** The first error that was ignored: the chain can't be shortened. */
  #ignored: { readonly error: unknown } | undefined;
  #failed = false;
  #lookedAt = 0;

  /** @throws BlockError when the nodes can't be had; nothing has changed then */
  static async create(
    graph: BlockGraph,
    options: StreamOptions,
    observer: BlockJobObserver,
  ): Promise<StreamJob> {
    const job = new StreamJob(graph, options, observer);
    await job.#setUp();
    return job;
  }

  private constructor(graph: BlockGraph, options: StreamOptions, observer: BlockJobObserver) {
    super(options, observer);
    this.#graph = graph;
    this.#options = options;
    this.#chain = new StreamChain(graph, options.top, options.last);
    this.#size = options.top.size;
    this.#bitmap = new DirtyBitmap({ size: this.#size, granularity: GRANULARITY });
    this.#loop = this.#makeLoop();
    this.#user = new StreamUser(this, () => this.#loop);
  }

  override owns(parent: EdgeParent): boolean {
    return parent === this.#user;
  }

  describe(): string {
    return `block job '${this.id}'`;
  }

  async #setUp(): Promise<void> {
    const { top, bottom, filterNodeName } = this.#options;
    const graph = this.#graph;
    const nodes = [...new Set([top, this.#chain.layer, ...this.#chain.between])];
    this.#releaseNodes = claimNodes(nodes, this.type);
    try {
      this.#chain.freeze(top);
      if (top.readOnly) {
        await graph.exclusive(() => makeWritableLocked(graph, top));
        this.#openedForWriting = true;
      }
      this.#filter = await insertFilter(graph, top, {
        name: filterNodeName,
        nameRefusal: 'Could not create node',
        childName: 'file',
        driver: (child) => {
          this.#driver = new CopyOnReadDriver(child, bottom);
          return this.#driver;
        },
      });
      await this.#attach(this.#filter);
    } catch (error) {
      await this.abort();
      await this.clean();
      throw error;
    }
  }

  #attach(filter: BlockNode): Promise<void> {
    const { top } = this.#options;
    const between = this.#chain.between;
    return this.#graph.exclusive(async () => {
      const add = async (node: BlockNode, name: string, shared: number): Promise<void> => {
        const taken = node === filter ? PERM_CONSISTENT_READ : 0;
        const options = { name, role: 'root', taken, shared } as const;
        this.#edges.push(await this.#graph.addEdge(this.#user, node, options));
      };
      await add(filter, 'main node', PERM_ALL & ~PERM_RESIZE);
      await add(top, 'active node', UNCHANGED | PERM_WRITE);
      for (const node of between) await add(node, 'intermediate node', UNCHANGED);
    });
  }

  #makeLoop(): CopyLoop {
    return new CopyLoop({
      bitmap: this.#bitmap,
      size: this.#size,
      source: {
        read: (offset, buffer) => this.#fetch(offset, buffer),
        blockStatus: (_offset, length) => ({ length, flags: STATUS_DATA, depth: 1 }),
        generation: 0,
      },
      // What was read has been stored by the filter.
      target: { write: () => undefined, writeZeroes: () => undefined },
      rate: this.rate,
      chunkLength: CHUNK_LENGTH,
      windowLength: WINDOW_LENGTH,
      unmap: false,
      copied: () => this.#progress(),
      failed: (_operation, error) => this.#again.has(error as object),
    });
  }

  async #fetch(offset: number, buffer: Buffer): Promise<void> {
    try {
      await this.#filter?.read(offset, buffer, REQ_PREFETCH);
    } catch (error) {
      // The job has failed already; what was in flight beside it is no news.
      if (this.#failed) throw error;
      const action = this.ioFailed('read', error);
      if (action === 'ignore') {
        this.#ignored ??= { error };
        return;
      }
      if (action === 'report') this.#failed = true;
      if (action === 'stop') this.#again.add(error as object);
      throw error;
    }
  }

  protected override async run(): Promise<void> {
    await this.pausePoint();
    if (this.#chain.between.length === 0) return;
    this.progressTotal = this.#size;
    while (!this.cancelRequested && (this.#lookedAt < this.#size || this.#bitmap.count > 0)) {
      await this.pausePoint();
      if (this.#lookedAt < this.#size) await this.#look();
      await this.#loop.run(() => this.shouldYield);
    }
    if (this.cancelRequested) return;
    if (this.#ignored !== undefined) throw this.#ignored.error;
    await this.flushUnderPolicy(() => this.#chain.layer.flush());
  }

  /** Marks what is to be copied of the next step. */
  async #look(): Promise<void> {
    const { layer } = this.#chain;
    const { bottom } = this.#options;
    const end = Math.min(this.#lookedAt + STATUS_STEP, this.#size);
    while (this.#lookedAt < end && !this.shouldYield) {
      const offset = this.#lookedAt;
      try {
        const base = bottom.children.get('backing')?.node;
        const extent = await chainStatus(layer, offset, end - offset, base);
        if (extent.depth > 1) this.#bitmap.setDirty(offset, extent.length);
        this.#lookedAt = offset + extent.length;
      } catch (error) {
        const action = this.ioFailed('read', error);
        if (action === 'report') throw error;
        if (action === 'stop') return;
        this.#ignored ??= { error };
        this.#lookedAt = Math.min(offset + GRANULARITY, end);
      }
      this.#progress();
    }
  }

  #progress(): void {
    const left = Math.min(this.#bitmap.count + this.#loop.bytesInFlight, this.#lookedAt);
    this.progressCurrent = Math.max(this.progressCurrent, this.#lookedAt - left);
  }

  protected override wakeUp(): void {
    this.#loop.wakeUp();
  }

  /** The filter goes, then the layers between: first in the graph and then in the image. */
  protected override async prepare(): Promise<void> {
    await this.#removeFilter();
    this.#chain.thaw();
    if (this.#chain.between.length === 0) return;
    const graph = this.#graph;
    await graph.exclusive(() => this.#chain.relinkLocked(this.#options.backing));
  }

  protected override abort(): Promise<void> {
    return this.#removeFilter();
  }

  protected override async clean(): Promise<void> {
    const graph = this.#graph;
    this.#chain.thaw();
    await graph.exclusive(async () => {
      for (const edge of this.#edges.splice(0)) await graph.removeEdge(edge);
      if (!this.#openedForWriting) return;
      // Somebody may have begun to write there meanwhile: then it stays open for writing.
      await makeReadOnlyLocked(graph, this.#options.top).catch(() => undefined);
    });
    this.#releaseNodes?.();
    this.#releaseNodes = undefined;
  }

  async #removeFilter(): Promise<void> {
    const filter = this.#filter;
    if (filter === undefined) return;
    this.#filter = undefined;
    const graph = this.#graph;
    await graph.exclusive(() => {
      const below = filter.children.get('file')?.node ?? this.#options.top;
      return drained([filter, below], () => {
        this.#driver?.leave();
        return removeFilterLocked(graph, filter, below);
      });
    });
  }
}
