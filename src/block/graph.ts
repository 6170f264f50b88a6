// SPDX-License-Identifier: MIT
/**
 * The graph of block nodes: who exists, who uses whom. Changes go one at a time; each either happens
 * whole or leaves everything as it was. What can wait for the outside (opening) happens before.
 */
import { BlockError } from '../base/errors.js';
import { GRAPH_DEPTH_MAX } from '../base/limits.js';
import { Mutex } from '../base/mutex.js';
import type { BlockBackend } from './backend.js';
import type { InternalSnapshot } from './block-driver.js';
import { drained } from './drain.js';
import { ChildEdge, type EdgeOptions, type EdgeParent } from './edge.js';
import type { BlockNode, NodeObserver } from './node.js';
import { checkNodeName } from './node-options.js';
import { PermissionUpdate } from './permission-update.js';
import { PERM_ALL, PERM_CONSISTENT_READ, type Permissions } from './permissions.js';
import { DriverRegistry } from './registry.js';

/** What the graph tells the layer above; all optional. */
export interface GraphObserver extends Partial<NodeObserver> {
  /** Closing a node could not flush it: acknowledged writes may not be on stable storage. */
  flushFailed?(node: BlockNode, error: unknown): void;
  /** A snapshot of a transaction that failed could not be deleted again: it is still in the image. */
  snapshotLeft?(node: BlockNode, snapshot: InternalSnapshot, error: unknown): void;
}

/** How a backend uses its node. */
export interface BackendUse extends Permissions {
  /** Of the edge, as the block graph and errors show it; default: root. */
  readonly name?: string;
}

export class BlockGraph {
  readonly drivers = new DriverRegistry();
  readonly #nodes = new Map<string, BlockNode>();
  readonly #reserved = new Set<string>();
  readonly #lock = new Mutex();
  #generated = 0;
  /** Replaceable: the daemon sets what turns these into events and logs. */
  observer: GraphObserver = {};

  /** Nodes in the order in which they were added. */
  get nodes(): readonly BlockNode[] {
    return [...this.#nodes.values()];
  }

  find(name: string): BlockNode | undefined {
    return this.#nodes.get(name);
  }

  /** @throws BlockError DF_NOT_FOUND in QEMU's words */
  get(name: string): BlockNode {
    const node = this.#nodes.get(name);
    if (node === undefined) {
      throw new BlockError('DF_NOT_FOUND', `Cannot find device='${name}' nor node-name='${name}'`);
    }
    return node;
  }

  /** Runs one change of the graph; others wait. Inside, use the `…Locked` methods only. */
  exclusive<T>(change: () => T | Promise<T>): Promise<T> {
    return this.#lock.run(change);
  }

  /**
   * Takes a name for a node that is being opened; makes one when none was given.
   * @throws BlockError DF_INVALID for a bad name, DF_EXISTS for one that is taken
   */
  reserveName(wanted: string | undefined): string {
    const name = wanted ?? this.#generateName();
    if (wanted !== undefined) checkNodeName(wanted);
    if (this.#nodes.has(name) || this.#reserved.has(name)) {
      throw duplicateNode(name);
    }
    this.#reserved.add(name);
    return name;
  }

  releaseName(name: string): void {
    this.#reserved.delete(name);
  }

  /** Makes an opened node known under its (reserved) name. */
  insert(node: BlockNode): void {
    this.#reserved.delete(node.name);
    this.#nodes.set(node.name, node);
    node.observer = {
      writeThresholdExceeded: (...args) => this.observer.writeThresholdExceeded?.(...args),
      copyBad: (...args) => this.observer.copyBad?.(...args),
      copiesFailed: (...args) => this.observer.copiesFailed?.(...args),
      imageCorrupted: (...args) => this.observer.imageCorrupted?.(...args),
      bitmapsLost: (...args) => this.observer.bitmapsLost?.(...args),
    };
  }

  /** Puts a backend on a node. @throws as `addEdge` */
  attach(backend: BlockBackend, node: BlockNode, use: BackendUse): Promise<ChildEdge> {
    return this.exclusive(() => this.attachLocked(backend, node, use));
  }

  async attachLocked(backend: BlockBackend, node: BlockNode, use: BackendUse): Promise<ChildEdge> {
    const edge = await this.addEdge(backend, node, { name: 'root', role: 'root', ...use });
    backend.edge = edge;
    return edge;
  }

  /** Takes the backend off its node, which is closed when nobody else wants it. */
  detach(backend: BlockBackend): Promise<void> {
    return this.exclusive(() => this.detachLocked(backend));
  }

  async detachLocked(backend: BlockBackend): Promise<void> {
    if (!backend.attached) return;
    const edge = backend.root;
    backend.edge = undefined;
    await this.removeEdge(edge);
  }

  /** Changes what a backend takes and shares. @throws as `attach` */
  setPermissions(backend: BlockBackend, permissions: Permissions): Promise<void> {
    return this.exclusive(() => {
      const edge = backend.root;
      return this.updatePermissions([edge.node], new Map([[edge, permissions]]));
    });
  }

  /**
   * One more user of `node`; checked against the others. Call under `exclusive`.
   * @throws BlockError DF_NOT_FOUND for a node that was closed meanwhile, DF_INVALID for a graph too
   *   deep, DF_PERMISSION_CONFLICT, and what drivers say
   */
  async addEdge(parent: EdgeParent, node: BlockNode, options: EdgeOptions): Promise<ChildEdge> {
    // Who looked the node up may have waited for the graph since.
    if (!this.#known(node)) throw noSuchNode(node.name);
    if (depthBelow(node) >= GRAPH_DEPTH_MAX) {
      throw new BlockError('DF_INVALID', `The block graph is deeper than ${GRAPH_DEPTH_MAX} nodes`);
    }
    const edge = new ChildEdge(parent, node, { ...options, taken: 0, shared: PERM_ALL });
    this.#link(edge, node);
    try {
      await this.updatePermissions([node], new Map([[edge, options]]));
    } catch (error) {
      this.#unlink(edge);
      throw error;
    }
    return edge;
  }

  /** Ends an edge; its node is closed when that was the last that wanted it. Call under `exclusive`. */
  async removeEdge(edge: ChildEdge): Promise<void> {
    this.#unlink(edge);
    await this.#loosen(edge.node);
    await this.closeUnused(edge.node);
  }

  /** Permissions anew at and below the nodes. @throws and changes nothing when they conflict */
  async updatePermissions(
    nodes: Iterable<BlockNode>,
    wanted?: ReadonlyMap<ChildEdge, Permissions>,
  ): Promise<void> {
    const update = new PermissionUpdate(nodes, wanted);
    await update.prepare();
    update.commit();
  }

  /**
   * Moves the users of `from` to `to` (those that `which` names; all by default, but for `to` itself
   * and what lies below it), in a drained section. Nobody above notices. The nodes stay open until
   * their owners let go of them.
   */
  replaceNode(
    from: BlockNode,
    to: BlockNode,
    which: (edge: ChildEdge) => boolean = () => true,
  ): Promise<void> {
    return this.exclusive(() => drained([from, to], () => this.replaceLocked(from, to, which)));
  }

  /** As `replaceNode`, for who holds the graph and has drained both nodes. */
  async replaceLocked(
    from: BlockNode,
    to: BlockNode,
    which: (edge: ChildEdge) => boolean = () => true,
  ): Promise<void> {
    const moved = [...from.parents].filter((edge) => which(edge) && !isBelow(edge.parent, to));
    checkMovable(moved);
    for (const edge of moved) this.#move(edge, to);
    try {
      await this.updatePermissions([to, from]);
    } catch (error) {
      for (const edge of moved) this.#move(edge, from);
      throw error;
    }
    for (const edge of moved) {
      edge.parent.childMoved?.(edge, from);
      edge.parent.childResized?.(edge);
    }
  }

  /** Gives up the monitor's reference. @throws BlockError when something uses the node */
  remove(name: string): Promise<void> {
    return this.exclusive(async () => {
      const node = this.#nodes.get(name);
      if (node === undefined) {
        throw noSuchNode(name);
      }
      if ([...node.parents].some((edge) => edge.role === 'root')) {
        throw new BlockError('DF_IN_USE', `Node ${name} is in use`, { node: name });
      }
      if (!node.monitorOwned) {
        throw new BlockError('DF_IN_USE', `Node ${name} is not owned by the monitor`);
      }
      if (node.parents.size > 0) {
        throw new BlockError('DF_IN_USE', `Block device ${name} is in use`, { node: name });
      }
      node.monitorOwned = false;
      await this.closeUnused(node);
    });
  }

  /** Closes a node that nobody uses and the monitor doesn't own, then what only it used. */
  async closeUnused(node: BlockNode): Promise<void> {
    if (node.parents.size > 0 || node.monitorOwned || !this.#known(node)) return;
    await node.whenIdle();
    try {
      if (!node.readOnly) await node.flush();
    } catch (error) {
      this.observer.flushFailed?.(node, error);
    }
    this.#nodes.delete(node.name);
    await node.stop().close();
    await this.dropChildren(node);
  }

  /** Removes all edges below a node that is closed or never came to be open. */
  async dropChildren(node: BlockNode): Promise<void> {
    for (const [key, edge] of [...node.children]) {
      node.children.delete(key);
      await this.removeEdge(edge);
    }
  }

  /** Closes everything: called when no export and no job is left. */
  closeAll(): Promise<void> {
    return this.exclusive(async () => {
      for (const node of this.nodes) node.monitorOwned = false;
      for (const node of this.nodes) await this.closeUnused(node);
    });
  }

  #known(node: BlockNode): boolean {
    return this.#nodes.get(node.name) === node;
  }

  #link(edge: ChildEdge, node: BlockNode): void {
    node.parents.add(edge);
    if (!node.quiesced) return;
    edge.parentDrained = true;
    edge.parent.drainBegin();
  }

  #unlink(edge: ChildEdge): void {
    edge.node.parents.delete(edge);
    if (!edge.parentDrained) return;
    edge.parentDrained = false;
    edge.parent.drainEnd();
  }

  #move(edge: ChildEdge, to: BlockNode): void {
    edge.node.parents.delete(edge);
    edge.node = to;
    to.parents.add(edge);
    if (to.quiesced === edge.parentDrained) return;
    edge.parentDrained = to.quiesced;
    if (to.quiesced) edge.parent.drainBegin();
    else edge.parent.drainEnd();
  }

  /** With a user gone the others need no more than before: failing would be a driver's bug. */
  async #loosen(node: BlockNode): Promise<void> {
    try {
      await this.updatePermissions([node]);
    } catch (error) {
      this.observer.flushFailed?.(node, error);
    }
  }

  #generateName(): string {
    for (;;) {
      const name = `#block${String(this.#generated++).padStart(3, '0')}`;
      if (!this.#nodes.has(name) && !this.#reserved.has(name)) return name;
    }
  }
}

/** @throws BlockError DF_IN_USE, in QEMU's words, when a job relies on one of them */
export function checkMovable(edges: Iterable<ChildEdge>): void {
  for (const { frozen, name, node } of edges) {
    if (!frozen) continue;
    throw new BlockError('DF_IN_USE', `Cannot change '${name}' link to '${node.name}'`, {
      node: node.name,
    });
  }
}

/** A child that nobody uses yet, or any more. */
export const UNUSED_PERMISSIONS: Permissions = { taken: 0, shared: PERM_ALL };

/** What a new child edge takes until its node's driver is open and can say. */
export const OPENING_PERMISSIONS: Permissions = { taken: PERM_CONSISTENT_READ, shared: PERM_ALL };

/** True when `parent` is `node` or a node below it: moving its edge there would make a cycle. */
export function isBelow(parent: EdgeParent, node: BlockNode): boolean {
  if (parent === node) return true;
  for (const edge of node.children.values()) if (isBelow(parent, edge.node)) return true;
  return false;
}

export function duplicateNode(name: string): BlockError {
  return new BlockError('DF_EXISTS', `Duplicate nodes with node-name='${name}'`);
}

function noSuchNode(name: string): BlockError {
  return new BlockError('DF_NOT_FOUND', `Failed to find node with node-name='${name}'`);
}

function depthBelow(node: BlockNode): number {
  let depth = 0;
  for (const edge of node.children.values()) depth = Math.max(depth, depthBelow(edge.node));
  return depth + 1;
}
