// SPDX-License-Identifier: MIT
/**
 * `blockdev-set-active`: hands images over to another process, and takes them back. An inactive node
 * keeps its place, but gives up locks and permissions below it and refuses I/O.
 */
import { BlockError } from '../base/errors.js';
import { drained } from './drain.js';
import type { BlockGraph } from './graph.js';
import type { BlockNode } from './node.js';

export interface SetActiveOptions {
  /** Only this node and what is below it; all nodes when absent. */
  readonly node?: BlockNode;
  readonly active: boolean;
  /** Whether a root user (an export) bears that its node goes inactive. */
  readonly mayIdle: (parent: unknown) => boolean;
}

/** @throws BlockError DF_IN_USE when somebody needs the node active, and what locks say */
export function setActive(graph: BlockGraph, options: SetActiveOptions): Promise<void> {
  return graph.exclusive(() => {
    const roots = options.node !== undefined ? [options.node] : graph.nodes.filter(isRoot);
    const nodes = [...new Set(roots.flatMap(withChildren))].filter(
      (node) => node.active !== options.active,
    );
    if (!options.active) for (const node of nodes) checkMayIdle(node, nodes, options);
    return drained(nodes, () => change(graph, nodes, options));
  });
}

async function change(
  graph: BlockGraph,
  nodes: readonly BlockNode[],
  { active }: Pick<SetActiveOptions, 'active'>,
): Promise<void> {
  if (!active) for (const node of nodes) await handOver(node);
  for (const node of nodes) node.active = active;
  try {
    await graph.updatePermissions(nodes);
    // Children first: an image is read through them.
    if (active) for (const node of [...nodes].reverse()) await node.driver.activate?.();
  } catch (error) {
    for (const node of nodes) node.active = !active;
    await graph.updatePermissions(nodes);
    throw error;
  }
}

async function handOver(node: BlockNode): Promise<void> {
  await node.flush();
  await node.driver.inactivate?.();
}

/** Used by no node: by exports and jobs at most. */
function isRoot(node: BlockNode): boolean {
  return [...node.parents].every((edge) => edge.role === 'root');
}

function withChildren(node: BlockNode): BlockNode[] {
  return [node, ...[...node.children.values()].flatMap((edge) => withChildren(edge.node))];
}

function checkMayIdle(
  node: BlockNode,
  nodes: readonly BlockNode[],
  { mayIdle }: SetActiveOptions,
): void {
  for (const edge of node.parents) {
    if (nodes.some((other) => other === edge.parent) || mayIdle(edge.parent)) continue;
    throw new BlockError(
      'DF_IN_USE',
      `Node '${node.name}' can't be made inactive: ${edge.parent.describe()} uses it`,
      { node: node.name },
    );
  }
}
