// SPDX-License-Identifier: MIT
/** The part of a chain that a stream takes out: everything between its top layer and its base. */
import { BlockError } from '../base/errors.js';
import { chainDown, chainEdge, chainNext, skipFilters } from '../block/chain.js';
import { drained } from '../block/drain.js';
import type { ChildEdge } from '../block/edge.js';
import { type BlockGraph, UNUSED_PERMISSIONS } from '../block/graph.js';
import { backingFileOf } from '../block/image-name.js';
import type { BlockNode } from '../block/node.js';

export interface StreamBacking {
  /** What the top image notes as its backing file; undefined: the base's file name. */
  readonly filename: string | undefined;
  /** Note `raw` for a base that has no format. */
  readonly maskProtocol: boolean;
}

export class StreamChain {
  /** The layer that gets the data, filters left out. */
  readonly layer: BlockNode;
  readonly #graph: BlockGraph;
  readonly #last: BlockNode;
  readonly #frozen: ChildEdge[] = [];

  /**
   * @param top the node that was named
   * @param last the lowest node that goes (or `top`'s layer itself: nothing goes)
   */
  constructor(graph: BlockGraph, top: BlockNode, last: BlockNode) {
    this.#graph = graph;
    this.layer = skipFilters(top);
    this.#last = last;
  }

  /** What is below the top layer and goes. */
  get between(): BlockNode[] {
    if (this.layer === this.#last) return [];
    const below = chainNext(this.layer);
    return below === undefined ? [] : chainDown(below, chainNext(this.#last));
  }

  /** What the chain goes on with afterwards; it may change while the job works. */
  get base(): BlockNode | undefined {
    return chainNext(this.#last);
  }

  /** No link from `from` down to the last node changes until `thaw`. @throws BlockError DF_IN_USE */
  freeze(from: BlockNode): void {
    const edges: ChildEdge[] = [];
    for (const node of chainDown(from, this.#last)) {
      const edge = chainEdge(node);
      if (edge === undefined) break;
      if (edge.frozen) {
        const text = `Cannot change '${edge.name}' link from '${node.name}' to '${edge.node.name}'`;
        throw new BlockError('DF_IN_USE', text, { node: node.name });
      }
      edges.push(edge);
    }
    for (const edge of edges) edge.frozen = true;
    this.#frozen.push(...edges);
  }

  thaw(): void {
    for (const edge of this.#frozen.splice(0)) edge.frozen = false;
  }

  /**
   * Puts the base right below the top layer, in the graph and in the image, durably. For who holds the
   * graph. What the layers between had is in the top layer, on stable storage, before the image says so.
   * @throws BlockError of what could not be done; the chain is as before then
   */
  relinkLocked(backing: StreamBacking): Promise<void> {
    const { layer, between, base } = this;
    const old = layer.children.get('backing');
    if (old === undefined) return Promise.resolve();
    const nodes = [layer, ...between, ...(base === undefined ? [] : [base])];
    return drained(nodes, async () => {
      await layer.flush();
      const next = base === undefined ? undefined : await this.#newEdge(base);
      const before = { edge: old, taken: old.taken, shared: old.shared };
      try {
        this.#link(next);
        const going = new Map([[old, UNUSED_PERMISSIONS]]);
        await this.#graph.updatePermissions([layer, old.node], going);
        const noted =
          base === undefined
            ? undefined
            : await backingFileOf(layer.driver.filename, base, backing);
        if (layer.driver.changeBackingFile === undefined) throw notNoted(layer);
        await layer.driver.changeBackingFile(noted);
      } catch (error) {
        this.#link(old);
        old.taken = before.taken;
        old.shared = before.shared;
        if (next !== undefined) await this.#graph.removeEdge(next);
        await this.#graph.updatePermissions([layer]);
        throw error;
      }
      await this.#graph.removeEdge(old);
    });
  }

  #newEdge(base: BlockNode): Promise<ChildEdge> {
    const options = { name: 'backing', role: 'backing', ...UNUSED_PERMISSIONS } as const;
    return this.#graph.addEdge(this.layer, base, options);
  }

  #link(edge: ChildEdge | undefined): void {
    if (edge === undefined) this.layer.children.delete('backing');
    else this.layer.children.set('backing', edge);
    this.layer.driver.childReplaced?.('backing', edge);
  }
}

/** Else the image would go on to name what it does not need any more. */
function notNoted({ name, driver }: BlockNode): BlockError {
  const text = `The driver '${driver.name}' can't note another backing file`;
  return new BlockError('DF_NOT_SUPPORTED', text, { node: name });
}
