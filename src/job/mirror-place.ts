// SPDX-License-Identifier: MIT
/**
 * Where a mirror is in the graph: its filter above the source, its edges to both nodes, and at the end
 * its users on the target, or back on the source.
 */
import type { MaybePromise } from '../base/maybe-promise.js';
import { BlockBackend } from '../block/backend.js';
import { drained } from '../block/drain.js';
import type { EdgeParent } from '../block/edge.js';
import { type BlockGraph, isBelow } from '../block/graph.js';
import { insertFilter, removeFilterLocked } from '../block/insert-filter.js';
import type { BlockNode } from '../block/node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE } from '../block/permissions.js';
import type { CopyLoop } from './copy-loop.js';
import { checkStillReplaceable, type MirrorOptions, targetPermissions } from './mirror-options.js';
import type { MirrorWrites } from './mirror-writes.js';

/** The parts of a mirror that are told when nodes are drained, or the filter comes and goes. */
export interface MirrorParts {
  /** Of the job, for messages on conflicts. */
  readonly title: string;
  readonly loop: () => CopyLoop;
  readonly writes: () => MirrorWrites;
}

export interface TakeDownOptions {
  /** Users go to the target, not back to the source. */
  readonly pivot: boolean;
  /** Done while they wait; when it throws, all stays as it is. */
  readonly lastCopies?: () => Promise<void>;
}

export class MirrorPlace {
  readonly source: BlockBackend;
  readonly target: BlockBackend;
  readonly #graph: BlockGraph;
  readonly #options: MirrorOptions;
  readonly #parts: MirrorParts;
  #filter: BlockNode | undefined;
  /** The filter that holds still because the target is drained. */
  #heldFilter: BlockNode | undefined;
  /** Users of the source itself are on the target now. */
  #pivoted = false;

  constructor(graph: BlockGraph, options: MirrorOptions, parts: MirrorParts) {
    this.#graph = graph;
    this.#options = options;
    this.#parts = parts;
    const { title, loop } = parts;
    this.source = new BlockBackend(title, {
      drained: (held) => (held ? loop().hold() : loop().release()),
      whenIdle: () => loop().whenIdle(),
    });
    this.target = new BlockBackend(title, {
      drained: (held) => this.#targetDrained(held),
      whenIdle: () => this.#targetIdle(),
    });
  }

  owns(parent: EdgeParent): boolean {
    return parent === this.source || parent === this.target;
  }

  /** @throws BlockError on a conflict with other users; what was done by then `takeDown` undoes */
  async take(): Promise<void> {
    const graph = this.#graph;
    const { source, target, commit, filterNodeName } = this.#options;
    // Of a chain the filter lets the base be written; elsewhere it must find the target attached.
    if (commit === undefined) {
      const use = { name: 'target', ...targetPermissions(this.#options) };
      await graph.attach(this.target, target, use);
    }
    const writes = this.#parts.writes();
    this.#filter = await insertFilter(graph, source, {
      name: filterNodeName,
      childName: 'file',
      driver: (child) => writes.makeDriver(child),
      // The target may lie above the source already: it stays there.
      staysBelow: (edge) => isBelow(edge.parent, target),
    });
    writes.filter = this.#filter;
    await graph.attach(this.source, source, {
      name: 'source',
      taken: commit === undefined ? PERM_CONSISTENT_READ : 0,
      shared: PERM_ALL & ~PERM_RESIZE,
    });
    await commit?.block(this.#parts.title, { writer: this.target, spared: source });
  }

  /** Takes the filter out; its users go back to the source, or to the target when pivoting. */
  async takeDown({ pivot, lastCopies }: TakeDownOptions): Promise<void> {
    const filter = this.#filter;
    if (filter === undefined) return;
    const graph = this.#graph;
    const { source, target, commit, replaces } = this.#options;
    const replaced = replaces ?? source;
    await graph.exclusive(() =>
      drained([filter, source, target, replaced], async () => {
        if (pivot) checkStillReplaceable(this.#options);
        await lastCopies?.();
        await commit?.unblockLocked();
        if (pivot || commit !== undefined) await this.#relaxTarget();
        const direct = pivot && replaced === source;
        await removeFilterLocked(graph, filter, direct ? target : source);
        this.#filter = undefined;
        this.#pivoted = direct;
        this.#parts.writes().filter = undefined;
        if (!pivot || direct) return;
        await graph.replaceLocked(replaced, target, (edge) => edge.parent !== this.source);
      }),
    );
  }

  /** Lets both nodes go; the filter is out already. */
  async leave(): Promise<void> {
    const graph = this.#graph;
    const { replaces, commit } = this.#options;
    await graph.detach(this.source);
    await graph.detach(this.target);
    // A copy that was made in place had its users alone to keep it.
    if (replaces !== undefined) await graph.exclusive(() => graph.closeUnused(replaces));
    await commit?.end({ keepWritable: this.#pivoted });
  }

  /** Writes for both go to the target past the backend: its drained section holds them back too. */
  #targetDrained(held: boolean): void {
    if (held) {
      this.#parts.loop().hold();
      this.#heldFilter = this.#filter;
      this.#heldFilter?.drainBegin();
      return;
    }
    const filter = this.#heldFilter;
    this.#heldFilter = undefined;
    filter?.drainEnd();
    this.#parts.loop().release();
  }

  #targetIdle(): MaybePromise<void> {
    const copies = this.#parts.loop().whenIdle();
    const writes = this.#heldFilter?.whenIdle();
    if (copies === undefined) return writes;
    return writes === undefined ? copies : copies.then(() => writes);
  }

  /** The target's new users want what the job took for itself. */
  async #relaxTarget(): Promise<void> {
    if (!this.target.attached) return;
    await this.#graph.updatePermissions(
      [this.#options.target],
      new Map([[this.target.root, { taken: 0, shared: PERM_ALL }]]),
    );
  }
}
