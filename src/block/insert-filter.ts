// SPDX-License-Identifier: MIT
/** Filters that jobs put above a node while it is in use, and take out again. */
import { BlockError } from '../base/errors.js';
import type { BlockDriver, ChildRole, DriverKind } from './block-driver.js';
import { chainNext } from './chain.js';
import { drained } from './drain.js';
import type { ChildEdge } from './edge.js';
import { type BlockGraph, OPENING_PERMISSIONS } from './graph.js';
import { BlockNode } from './node.js';

const FILTER_KIND: DriverKind = 'filter';

export interface FilterOptions {
  /** Node name; made when absent. */
  readonly name: string | undefined;
  /** What QEMU says before its words against a bad or taken name; default: nothing. */
  readonly nameRefusal?: string;
  /** Key of the filter's child, as the block graph shows it: 'file' or 'backing'. */
  readonly childName: string;
  /** The filter's driver on the edge to the node below. */
  readonly driver: (child: ChildEdge, others: ReadonlyMap<string, ChildEdge>) => BlockDriver;
  /** Children besides the one below, by their keys. */
  readonly others?: ReadonlyMap<string, { readonly role: ChildRole; readonly node: BlockNode }>;
  /** Users that stay below the filter; by default all move above it. */
  readonly staysBelow?: (edge: ChildEdge) => boolean;
}

/**
 * Puts a filter between `below` and its users, in a drained section.
 * @throws BlockError when the name is bad or taken, or permissions conflict; nothing has changed then
 */
export async function insertFilter(
  graph: BlockGraph,
  below: BlockNode,
  options: FilterOptions,
): Promise<BlockNode> {
  const name = reserveName(graph, options);
  const filter = new BlockNode(name, FILTER_KIND, {
    ...below.options,
    discard: 'unmap',
    detectZeroes: 'off',
    given: { driver: options.driver.name, 'node-name': name },
  });
  filter.ofJob = true;
  try {
    await graph.exclusive(() =>
      drained([below], async () => {
        await openFilter(graph, below, filter, options);
        graph.insert(filter);
        await moveAbove(graph, below, filter, options);
      }),
    );
  } finally {
    graph.releaseName(name);
  }
  return filter;
}

function reserveName(graph: BlockGraph, { name, nameRefusal }: FilterOptions): string {
  try {
    return graph.reserveName(name);
  } catch (error) {
    if (nameRefusal === undefined || !(error instanceof BlockError)) throw error;
    throw new BlockError(error.code, `${nameRefusal}: ${error.message}`, error.context);
  }
}

async function openFilter(
  graph: BlockGraph,
  below: BlockNode,
  filter: BlockNode,
  options: FilterOptions,
): Promise<void> {
  const add = async (name: string, role: ChildRole, node: BlockNode): Promise<ChildEdge> => {
    const edge = await graph.addEdge(filter, node, { name, role, ...OPENING_PERMISSIONS });
    filter.children.set(name, edge);
    return edge;
  };
  try {
    const edge = await add(options.childName, 'filtered', below);
    for (const [name, { role, node }] of options.others ?? []) await add(name, role, node);
    filter.start(options.driver(edge, filter.children));
  } catch (error) {
    await graph.dropChildren(filter);
    throw error;
  }
}

async function moveAbove(
  graph: BlockGraph,
  below: BlockNode,
  filter: BlockNode,
  options: FilterOptions,
): Promise<void> {
  try {
    await graph.replaceLocked(below, filter, (edge) => options.staysBelow?.(edge) !== true);
  } catch (error) {
    await graph.closeUnused(filter);
    throw error;
  }
}

/**
 * Takes a filter out: its users go to `heir`, it is closed. Where `heir` is what it filtered, and other
 * filters have come in between since, they stay between the users and `heir`. For who holds the graph
 * and has drained filter, child and heir.
 * @throws BlockError when permissions conflict; nothing has changed then
 */
export async function removeFilterLocked(
  graph: BlockGraph,
  filter: BlockNode,
  heir: BlockNode,
): Promise<void> {
  const below = chainNext(filter);
  const keeps = below !== undefined && isFiltered(filter, heir);
  await graph.replaceLocked(filter, keeps ? below : heir);
  await graph.closeUnused(filter);
}

/** True when nothing but filters lies between the two. */
function isFiltered(filter: BlockNode, node: BlockNode): boolean {
  let next = chainNext(filter);
  while (next !== undefined && next !== node && next.kind === 'filter') next = chainNext(next);
  return next === node;
}
