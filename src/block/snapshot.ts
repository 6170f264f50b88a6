// SPDX-License-Identifier: MIT
/** External snapshots: an overlay comes above a node, whose users write there from then on. */
import { BlockError } from '../base/errors.js';
import type { ChangesAhead } from './changes-ahead.js';
import { drained } from './drain.js';
import type { ChildEdge } from './edge.js';
import { type BlockGraph, checkMovable, isBelow, UNUSED_PERMISSIONS } from './graph.js';
import { BlockNode } from './node.js';
import { PERM_CONSISTENT_READ } from './permissions.js';
import { makeReadOnlyLocked } from './reopen.js';
import type { Change } from './transaction.js';

const BACKING = 'backing';

export interface SnapshotNodes {
  readonly node: BlockNode;
  /** Has no backing node, and nobody reads it. */
  readonly overlay: BlockNode;
}

/**
 * Puts `overlay` above `node`; its point in time is that of `prepare`.
 * @param nodes called by `prepare`; may throw
 * @param keep the monitor owns the overlay from then on: it stays without users
 */
export function takingSnapshot(
  graph: BlockGraph,
  nodes: () => SnapshotNodes,
  { keep }: { readonly keep: boolean },
): Change {
  let taken: Snapshot | undefined;
  return {
    async prepare() {
      const { node, overlay } = nodes();
      checkOverlay(node, overlay);
      const snapshot = new Snapshot(graph, node, overlay);
      await snapshot.take();
      taken = snapshot;
    },
    async commit() {
      await taken?.keep({ monitorOwned: keep });
    },
    abort: () => taken?.undo(),
  };
}

/** @throws BlockError DF_IN_USE, in QEMU's words, when an image above relies on the node's content */
export function checkNoOverlay(node: BlockNode): void {
  const above = [...node.parents].find(({ role }) => role === 'backing');
  if (above === undefined) return;
  const user = above.parent instanceof BlockNode ? above.parent.name : above.parent.describe();
  const message = `Node '${node.name}' is busy: node is used as backing hd of '${user}'`;
  throw new BlockError('DF_IN_USE', message, { node: node.name });
}

/**
 * What can be said of a snapshot before anything of its transaction is done.
 * @param overlay its name, when it is not there yet; undefined: it will be given one
 * @throws BlockError DF_IN_USE, DF_INVALID
 */
export function foreseeSnapshot(
  ahead: ChangesAhead,
  node: BlockNode,
  overlay: BlockNode | string | undefined,
): void {
  checkNoOverlay(node);
  if (!ahead.movesNodes) checkMovable(node.parents);
  if (overlay instanceof BlockNode && !ahead.movesNodes) checkOverlay(node, overlay);
  ahead.noteOverlay(node, overlay instanceof BlockNode ? overlay.name : overlay);
}

function checkOverlay(node: BlockNode, overlay: BlockNode): void {
  const refuse = (message: string): never => {
    throw new BlockError('DF_INVALID', message, { node: node.name });
  };
  checkNoOverlay(node);
  if ((overlay.taken & PERM_CONSISTENT_READ) !== 0) refuse('The overlay is already in use');
  if (overlay.kind === 'filter') refuse('Filters cannot be used as overlays');
  if (overlay.children.has(BACKING)) refuse('The overlay already has a backing image');
  if (!overlay.driver.features.backing || overlay.driver.childReplaced === undefined) {
    refuse('The overlay does not support backing images');
  }
  if (isBelow(overlay, node)) {
    refuse(`Making '${node.name}' a ${BACKING} child of '${overlay.name}' would create a cycle`);
  }
}

class Snapshot {
  readonly #graph: BlockGraph;
  readonly #node: BlockNode;
  readonly #overlay: BlockNode;
  #moved = new Set<ChildEdge>();

  constructor(graph: BlockGraph, node: BlockNode, overlay: BlockNode) {
    this.#graph = graph;
    this.#node = node;
    this.#overlay = overlay;
  }

  /** @throws BlockError of what is in the way; nothing has changed then */
  take(): Promise<void> {
    const [graph, node, overlay] = [this.#graph, this.#node, this.#overlay];
    return graph.exclusive(() =>
      drained([node, overlay], async () => {
        if (!node.readOnly) await flushed(node);
        this.#moved = new Set(node.parents);
        const edge = await graph.addEdge(overlay, node, {
          name: BACKING,
          role: 'backing',
          ...UNUSED_PERMISSIONS,
        });
        this.#link(edge);
        try {
          await graph.replaceLocked(node, overlay, (user) => this.#moved.has(user));
        } catch (error) {
          await this.#unlink();
          throw error;
        }
      }),
    );
  }

  /** What is below is not written any more; where that can't be, it does no harm. */
  keep({ monitorOwned }: { readonly monitorOwned: boolean }): Promise<void> {
    if (monitorOwned) this.#overlay.monitorOwned = true;
    return this.#graph.exclusive(async () => {
      const node = this.#node;
      if (node.options.readOnly || node.kind === 'filter') return;
      await makeReadOnlyLocked(this.#graph, node).catch(() => undefined);
    });
  }

  undo(): Promise<void> {
    const [graph, node, overlay] = [this.#graph, this.#node, this.#overlay];
    return graph.exclusive(() =>
      drained([node, overlay], async () => {
        await graph.replaceLocked(overlay, node, (user) => this.#moved.has(user));
        await this.#unlink();
      }),
    );
  }

  #link(edge: ChildEdge): void {
    this.#overlay.children.set(BACKING, edge);
    this.#overlay.driver.childReplaced?.(BACKING, edge);
  }

  async #unlink(): Promise<void> {
    const edge = this.#overlay.children.get(BACKING);
    this.#overlay.children.delete(BACKING);
    this.#overlay.driver.childReplaced?.(BACKING, undefined);
    if (edge === undefined) return;
    // Whoever let the node go meanwhile: it is closed by them.
    await this.#graph.removeEdge(edge);
  }
}

async function flushed(node: BlockNode): Promise<void> {
  try {
    await node.flush();
  } catch (cause) {
    throw new BlockError('DF_IO', 'An IO error has occurred', { node: node.name }, { cause });
  }
}
