// SPDX-License-Identifier: MIT
/**
 * The part of a chain that a commit shortens: from `top` down to `base`, whose writer the job becomes.
 * What lies between can't be relied on by others meanwhile, nor afterwards.
 */
import { BlockBackend } from '../block/backend.js';
import type { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from '../block/block-driver.js';
import { chainStatus } from '../block/block-status.js';
import { chainDownTo, chainEdge, skipFilters } from '../block/chain.js';
import { drained } from '../block/drain.js';
import type { ChildEdge, EdgeParent } from '../block/edge.js';
import type { BlockGraph } from '../block/graph.js';
import type { BlockNode } from '../block/node.js';
import {
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from '../block/permissions.js';
import { makeReadOnlyLocked, makeWritableLocked } from '../block/reopen.js';
import { claimNodes } from './node-claims.js';

/** Step of the look at what is allocated, bytes. */
const STATUS_STEP = 1 << 30;
/** The layers decide what is there, above the base. */
const DECIDED = STATUS_DATA | STATUS_ZERO | STATUS_ALLOCATED;

export interface CommitChainOptions {
  /** The topmost layer whose data goes into the base. */
  readonly top: BlockNode;
  /** Below `top`. */
  readonly base: BlockNode;
  /** Other nodes that no job may take meanwhile. */
  readonly also?: readonly BlockNode[];
}

export class CommitChain {
  readonly top: BlockNode;
  readonly base: BlockNode;
  readonly #graph: BlockGraph;
  readonly #release: () => void;
  readonly #blockers: BlockBackend[] = [];
  readonly #frozen: ChildEdge[] = [];
  #openedForWriting = false;
  #ended = false;

  /**
   * Takes the chain, and opens the base for writing.
   * @throws BlockError DF_IN_USE, DF_READ_ONLY, and what opening the base for writing throws; nothing
   *   has changed then
   */
  static async take(graph: BlockGraph, options: CommitChainOptions): Promise<CommitChain> {
    const { top, base, also = [] } = options;
    const nodes = chainDownTo(top, base) ?? [top, base];
    const chain = new CommitChain(graph, options, claimNodes([...also, ...nodes], 'commit'));
    try {
      if (base.readOnly) {
        await graph.exclusive(() => makeWritableLocked(graph, base));
        chain.#openedForWriting = true;
      }
    } catch (error) {
      chain.#release();
      throw error;
    }
    return chain;
  }

  private constructor(graph: BlockGraph, options: CommitChainOptions, release: () => void) {
    this.#graph = graph;
    this.top = options.top;
    this.base = options.base;
    this.#release = release;
  }

  owns(parent: EdgeParent): boolean {
    return this.#blockers.some((blocker) => blocker === parent);
  }

  /**
   * Nobody else may rely on the layers above the base, or take another one into the chain; `writer` is
   * put on the base. @param spared a layer that others may use
   * @throws BlockError DF_PERMISSION_CONFLICT
   */
  block(
    description: string,
    { writer, spared }: { readonly writer: BlockBackend; readonly spared?: BlockNode },
  ): Promise<void> {
    return this.#graph.exclusive(async () => {
      const layers = this.#layers();
      for (const edge of layers.flatMap((node) => chainEdge(node) ?? [])) {
        edge.frozen = true;
        this.#frozen.push(edge);
      }
      for (const node of layers) {
        if (node === spared) continue;
        const blocker = new BlockBackend(description);
        // Filters right above the base show the base itself.
        const shown = skipFilters(node) === skipFilters(this.base);
        await this.#graph.attachLocked(blocker, node, {
          name: 'intermediate node',
          taken: 0,
          shared: PERM_WRITE | PERM_WRITE_UNCHANGED | (shown ? PERM_CONSISTENT_READ : 0),
        });
        this.#blockers.push(blocker);
      }
      const isActive = spared !== undefined;
      const grows = this.base.size < this.top.size;
      await this.#graph.attachLocked(writer, this.base, {
        name: isActive ? 'target' : 'base',
        taken: PERM_CONSISTENT_READ | PERM_WRITE | (grows ? PERM_RESIZE : 0),
        // What somebody else wrote there the job would overwrite, or show to those above.
        shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED,
      });
    });
  }

  #layers(): BlockNode[] {
    return (chainDownTo(this.top, this.base) ?? []).slice(0, -1);
  }

  /** The opposite of `block`, for who holds the graph. */
  async unblockLocked(): Promise<void> {
    for (const edge of this.#frozen.splice(0)) edge.frozen = false;
    for (const blocker of this.#blockers.splice(0)) await this.#graph.detachLocked(blocker);
  }

  /** Marks what the layers above the base have, as far as `pausePoint` does not say that it ends. */
  async markLayers(bitmap: DirtyBitmap, pausePoint: () => Promise<boolean>): Promise<void> {
    const { size } = this.top;
    for (let offset = 0; offset < size; ) {
      if (await pausePoint()) return;
      const length = Math.min(STATUS_STEP, size - offset);
      const extent = await chainStatus(this.top, offset, length, this.base);
      if ((extent.flags & DECIDED) !== 0) bitmap.setDirty(offset, extent.length);
      offset += extent.length;
    }
  }

  /** Makes the base as long as the top, if it is shorter. What it gains reads as zeroes. */
  async growBase(): Promise<void> {
    const { base, top } = this;
    if (base.size >= top.size) return;
    await this.#graph.exclusive(() => drained([base], () => base.truncate(top.size)));
  }

  /** Lets go of all. @param keepWritable the base has become what its users write to */
  async end({ keepWritable }: { readonly keepWritable: boolean }): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    await this.#graph.exclusive(async () => {
      await this.unblockLocked();
      if (!this.#openedForWriting || keepWritable) return;
      this.#openedForWriting = false;
      // Somebody else may have begun to write there meanwhile: then it stays open for writing.
      await makeReadOnlyLocked(this.#graph, this.base).catch(() => undefined);
    });
    this.#release();
  }
}
