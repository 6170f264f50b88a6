// SPDX-License-Identifier: MIT
/** The connection between a parent and the node that it uses. */
import type { MaybePromise } from '../base/maybe-promise.js';
import type {
  BlockLimits,
  ChildRole,
  Extent,
  RequestFlags,
  TruncateOptions,
} from './block-driver.js';
import type { FileRange, RangeUse } from './file-range.js';
import type { BlockNode } from './node.js';
import type { PermissionMask, ShareMask } from './permissions.js';

/**
 * Whoever uses a node: another node, an export, a job, a command. Drain talks to it (see drain.ts):
 * between `drainBegin` and `drainEnd` it submits nothing new to any of its children.
 */
export interface EdgeParent {
  /** "node 'disk'", "export 'exp0'", "block job 'j0'": names the parent in error texts. */
  describe(): string;
  drainBegin(): void;
  drainEnd(): void;
  /** Nothing (at once) or a promise, fulfilled when none of its requests is in flight; never rejects. */
  whenIdle(): MaybePromise<void>;
  /** The child's size has changed. */
  childResized?(edge: ChildEdge): void;
  /** The edge has been moved from node `from` to another, in a drained section. */
  childMoved?(edge: ChildEdge, from: BlockNode): void;
}

export interface EdgeOptions {
  /** Key of the child in the parent's options ('file', 'backing'), or 'root' for exports and jobs. */
  readonly name: string;
  readonly role: ChildRole | 'root';
  readonly taken: PermissionMask;
  readonly shared: ShareMask;
}

/**
 * An edge is made and removed by the graph only (`graph.ts`), which checks permissions. Its node
 * changes when the graph replaces one node by another; so requests go through the edge, and nobody
 * keeps the node itself.
 */
export class ChildEdge {
  readonly name: string;
  readonly role: ChildRole | 'root';
  taken: PermissionMask;
  shared: ShareMask;
  /** True while the parent has been asked, on account of this edge, to hold still. */
  parentDrained = false;
  /** A job relies on this edge leading where it does. */
  frozen = false;

  constructor(
    readonly parent: EdgeParent,
    public node: BlockNode,
    options: EdgeOptions,
  ) {
    this.name = options.name;
    this.role = options.role;
    this.taken = options.taken;
    this.shared = options.shared;
  }

  /** Bytes. */
  get size(): number {
    return this.node.size;
  }

  get limits(): BlockLimits {
    return this.node.limits;
  }

  read(offset: number, buffer: Buffer, flags: RequestFlags = 0): MaybePromise<void> {
    return this.node.read(offset, buffer, flags);
  }

  readRange(offset: number, length: number, use: RangeUse): MaybePromise<number> {
    return this.node.readRange(offset, length, use);
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags = 0): MaybePromise<void> {
    return this.node.write(offset, buffer, flags);
  }

  writeFrom(offset: number, source: FileRange, flags: RequestFlags = 0): MaybePromise<number> {
    return this.node.writeFrom(offset, source, flags);
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags = 0): MaybePromise<void> {
    return this.node.writeZeroes(offset, length, flags);
  }

  discard(offset: number, length: number): MaybePromise<void> {
    return this.node.discard(offset, length);
  }

  flush(): MaybePromise<void> {
    return this.node.flush();
  }

  truncate(size: number, options?: TruncateOptions): Promise<void> {
    return this.node.truncate(size, options);
  }

  /** Status at the child's own layer; see block-status.ts for the whole chain. */
  blockStatus(offset: number, length: number): MaybePromise<Extent> {
    return this.node.blockStatus(offset, length);
  }
}
