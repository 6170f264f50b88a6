// SPDX-License-Identifier: MIT
/**
 * One all-or-nothing change of permissions: planned over every node that it touches, prepared by
 * their drivers (locks, reopening), then committed, or aborted as if it had never been asked.
 */
import { BlockError } from '../base/errors.js';
import type { ChildEdge } from './edge.js';
import type { BlockNode } from './node.js';
import {
  backingPermissions,
  filterPermissions,
  formatPermissions,
  PERM_ALL,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  type Permissions,
  permissionText,
} from './permissions.js';

interface PlannedNode extends Permissions {
  readonly node: BlockNode;
}

export class PermissionUpdate {
  readonly #edges = new Map<ChildEdge, Permissions>();
  readonly #nodes: PlannedNode[] = [];
  readonly #prepared: BlockNode[] = [];

  /**
   * Works out what every edge at and below `nodes` will take and share.
   * @param wanted what parents that are no nodes (exports, jobs) ask of their edges from now on
   * @throws BlockError DF_PERMISSION_CONFLICT, DF_READ_ONLY
   */
  constructor(nodes: Iterable<BlockNode>, wanted?: ReadonlyMap<ChildEdge, Permissions>) {
    for (const [edge, permissions] of wanted ?? []) this.#edges.set(edge, permissions);
    for (const node of parentsFirst(nodes)) this.#plan(node);
  }

  /** Lets drivers get ready. @throws what the first that can't says; then all are as before */
  async prepare(): Promise<void> {
    for (const { node, taken, shared } of this.#nodes) {
      if (node.driver.preparePermissions === undefined) continue;
      if (node.taken === taken && node.shared === shared) continue;
      try {
        await node.driver.preparePermissions(taken, shared);
      } catch (error) {
        this.abort();
        throw error;
      }
      this.#prepared.push(node);
    }
  }

  commit(): void {
    for (const [edge, { taken, shared }] of this.#edges) {
      edge.taken = taken;
      edge.shared = shared;
    }
    for (const { node, taken, shared } of this.#nodes) {
      node.taken = taken;
      node.shared = shared;
    }
    for (const node of this.#prepared) {
      node.driver.commitPermissions?.();
      node.refreshLimits();
    }
  }

  abort(): void {
    for (const node of this.#prepared.reverse()) node.driver.abortPermissions?.();
    this.#prepared.length = 0;
  }

  #plan(node: BlockNode): void {
    this.#checkConflicts(node);
    let taken = 0;
    let shared = PERM_ALL;
    for (const edge of node.parents) {
      const permissions = this.#of(edge);
      taken |= permissions.taken;
      shared &= permissions.shared;
    }
    if (!node.active) {
      // Others, on this host or another, may do as they like with what is below.
      taken = 0;
      shared = PERM_ALL;
    }
    if ((taken & (PERM_WRITE | PERM_WRITE_UNCHANGED)) !== 0 && node.started && node.readOnly) {
      throw new BlockError('DF_READ_ONLY', `Block node '${node.name}' is read-only`, {
        node: node.name,
      });
    }
    this.#nodes.push({ node, taken, shared });
    if (!node.started) return;
    for (const edge of node.children.values()) {
      this.#edges.set(edge, childPermissions(node, edge, { taken, shared }));
    }
  }

  #of(edge: ChildEdge): Permissions {
    return this.#edges.get(edge) ?? edge;
  }

  /** Whatever one parent takes, every other must share. */
  #checkConflicts(node: BlockNode): void {
    for (const taker of node.parents) {
      for (const sharer of node.parents) {
        if (taker === sharer) continue;
        const conflict = this.#of(taker).taken & ~this.#of(sharer).shared;
        if (conflict === 0) continue;
        throw new BlockError(
          'DF_PERMISSION_CONFLICT',
          `Permission conflict on node '${node.name}': permissions '${permissionText(conflict)}' ` +
            `are both required by ${user(taker)} and unshared by ${user(sharer)}.`,
          { node: node.name },
        );
      }
    }
  }
}

function user(edge: ChildEdge): string {
  return `${edge.parent.describe()} (uses node '${edge.node.name}' as '${edge.name}' child)`;
}

function childPermissions(node: BlockNode, edge: ChildEdge, parents: Permissions): Permissions {
  if (edge.role === 'root') return edge;
  if (!node.active) return { taken: 0, shared: PERM_ALL };
  if (node.driver.childPermissions !== undefined) {
    return node.driver.childPermissions(edge.role, parents);
  }
  if (edge.role === 'backing') return backingPermissions(parents);
  if (node.kind === 'filter' && edge.role === 'filtered') return filterPermissions(parents);
  return formatPermissions(parents, !node.readOnly);
}

/** The nodes and all below them, each after all of its parents that are among them. */
function parentsFirst(nodes: Iterable<BlockNode>): BlockNode[] {
  const seen = new Set<BlockNode>();
  const childrenFirst: BlockNode[] = [];
  const visit = (node: BlockNode): void => {
    if (seen.has(node)) return;
    seen.add(node);
    for (const edge of node.children.values()) visit(edge.node);
    childrenFirst.push(node);
  };
  for (const node of nodes) visit(node);
  return childrenFirst.reverse();
}
