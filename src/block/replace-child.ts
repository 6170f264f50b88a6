// SPDX-License-Identifier: MIT
/** `blockdev-replace`: another node takes the place of one, for one of its users alone. */
import { BlockError } from '../base/errors.js';
import { drained } from './drain.js';
import type { ChildEdge } from './edge.js';
import { type BlockGraph, isBelow } from './graph.js';
import { BlockNode } from './node.js';
import type { Change } from './transaction.js';

export interface Replacement {
  /** Leads from the user to the node that it has. */
  readonly edge: ChildEdge;
  /** The node that it gets. */
  readonly next: BlockNode;
}

/**
 * Moves one user to another node, in a drained section: it notices nothing but other data, if there
 * is any. A node gets only what shows the data that it had (a filter comes or goes); an export may get
 * any node of the size that its clients know.
 * @param find called by `prepare`, while the graph is held; may throw
 */
export function replacingChild(graph: BlockGraph, find: () => Replacement): Change {
  let moved: { readonly edge: ChildEdge; readonly from: BlockNode } | undefined;
  const move = (edge: ChildEdge, to: BlockNode): Promise<void> =>
    drained([edge.node, to], () => graph.replaceLocked(edge.node, to, (user) => user === edge));
  return {
    check(ahead) {
      if (!ahead.movesNodes) {
        const replacement = find();
        if (replacement.edge.node !== replacement.next) checkReplacement(replacement);
      }
      ahead.noteMove();
    },
    prepare: () =>
      graph.exclusive(async () => {
        const { edge, next } = find();
        const from = edge.node;
        if (from === next) return;
        checkReplacement({ edge, next });
        await move(edge, next);
        moved = { edge, from };
      }),
    commit: () =>
      graph.exclusive(async () => {
        if (moved !== undefined) await graph.closeUnused(moved.from);
      }),
    abort: () =>
      graph.exclusive(async () => {
        if (moved !== undefined) await move(moved.edge, moved.from);
      }),
  };
}

function checkReplacement({ edge, next }: Replacement): void {
  const { parent, node: old } = edge;
  const refuse = (code: 'DF_INVALID' | 'DF_IN_USE' | 'DF_NOT_SUPPORTED', text: string): never => {
    throw new BlockError(code, text, { node: next.name });
  };
  if (isBelow(parent, next)) {
    refuse(
      'DF_INVALID',
      `Making '${next.name}' a ${edge.name} child of ${parent.describe()} would create a cycle`,
    );
  }
  if (!next.active) refuse('DF_INVALID', `Node '${next.name}' is inactive`);
  if (parent instanceof BlockNode) {
    if (parent.ofJob) refuse('DF_IN_USE', `Node '${parent.name}' belongs to a job`);
    if (!showsSameData(old, next)) {
      refuse(
        'DF_NOT_SUPPORTED',
        `Node '${next.name}' does not filter '${old.name}', nor is it filtered by that: ` +
          `node '${parent.name}' would get other data`,
      );
    }
  }
  if (next.size !== old.size) {
    refuse(
      'DF_INVALID',
      `Node '${next.name}' has ${next.size} bytes, but '${old.name}', in whose place it is to come, ` +
        `has ${old.size}`,
    );
  }
  for (const filter of jobFilters(old)) {
    if (isBelow(filter, next)) continue;
    refuse(
      'DF_IN_USE',
      `Node '${next.name}' is not above '${filter.name}', through which a job sees what is written`,
    );
  }
}

/** True when one of the two is reached from the other through filters alone. */
function showsSameData(a: BlockNode, b: BlockNode): boolean {
  return filterChain(a).includes(b) || filterChain(b).includes(a);
}

/** The node and, while that is a filter, the one that it filters. */
function filterChain(node: BlockNode): BlockNode[] {
  const chain = [node];
  for (let at: BlockNode | undefined = filtered(node); at !== undefined; at = filtered(at)) {
    chain.push(at);
  }
  return chain;
}

function filtered(node: BlockNode): BlockNode | undefined {
  if (node.kind !== 'filter') return undefined;
  return [...node.children.values()].find(({ role }) => role === 'filtered')?.node;
}

/** The filters that jobs have inserted, at the node and below it. */
function jobFilters(node: BlockNode): BlockNode[] {
  return filterChain(node).filter(({ ofJob }) => ofJob);
}
