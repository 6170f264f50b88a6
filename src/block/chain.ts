// SPDX-License-Identifier: MIT
/** Backing chains: layers one above the other, with filters in between. */
import path from 'node:path';
import type { ChildEdge } from './edge.js';
import type { BlockNode } from './node.js';

/** The edge down the chain: to the backing node, or to what a filter filters. */
export function chainEdge(node: BlockNode): ChildEdge | undefined {
  const backing = node.children.get('backing');
  if (backing?.role === 'backing') return backing;
  if (node.kind !== 'filter') return undefined;
  return [...node.children.values()].find(({ role }) => role === 'filtered');
}

/** The next node down the chain, filters included. */
export function chainNext(node: BlockNode): BlockNode | undefined {
  return chainEdge(node)?.node;
}

/** The node itself, or the layer below its filters. */
export function skipFilters(node: BlockNode): BlockNode {
  let layer: BlockNode = node;
  while (layer.kind === 'filter') {
    const next = chainNext(layer);
    if (next === undefined) return layer;
    layer = next;
  }
  return layer;
}

/** `top` and all below it, down to `end` (excluded; undefined: to the last one). */
export function chainDown(top: BlockNode, end?: BlockNode): BlockNode[] {
  const nodes: BlockNode[] = [];
  for (let node: BlockNode | undefined = top; node !== undefined; node = chainNext(node)) {
    if (node === end) break;
    nodes.push(node);
  }
  return nodes;
}

/** From `top` down to `base`, both included; undefined when that is not below. */
export function chainDownTo(top: BlockNode, base: BlockNode): BlockNode[] | undefined {
  const nodes = chainDown(top, base);
  const last = nodes.at(-1);
  const reached = last === undefined ? top === base : chainNext(last) === base;
  return reached ? [...nodes, base] : undefined;
}

/** True when `node` is `top`, or lies below it in its chain. */
export function isInChain(top: BlockNode, node: BlockNode): boolean {
  return chainDown(top).includes(node);
}

/** The layer below `from` that is called so: by its own file name, or in the image above it. */
export async function findBackingByFilename(
  from: BlockNode,
  name: string,
): Promise<BlockNode | undefined> {
  for (let node = skipFilters(from); ; ) {
    const next = chainNext(node);
    if (next === undefined) return undefined;
    const below = skipFilters(next);
    const info = await node.driver.formatInfo?.();
    const names = [below.driver.filename, info?.backingFilename, info?.fullBackingFilename];
    if (names.includes(name) || isSameFile(node, below, name)) return below;
    node = below;
  }
}

/** Relative names start from where the daemon runs, or from the image above. */
function isSameFile(above: BlockNode, below: BlockNode, name: string): boolean {
  const { filename } = below.driver;
  if (filename === '' || isDescription(filename) || isDescription(name)) return false;
  const there = path.resolve(filename);
  const folder = path.dirname(above.driver.filename);
  return there === path.resolve(name) || there === path.resolve(folder, name);
}

/** "json:…" or a name with a scheme. */
function isDescription(name: string): boolean {
  return /^[^/:]+:/.test(name);
}
