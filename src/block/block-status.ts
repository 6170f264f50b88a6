// SPDX-License-Identifier: MIT
/** Extents as a reader of a node sees them: through filters and the backing chain. */
import type { MaybePromise } from '../base/maybe-promise.js';
import {
  type Extent,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_OFFSET_VALID,
  STATUS_ZERO,
} from './block-driver.js';
import type { BlockNode } from './node.js';

/** A run of equal status. */
export interface ChainExtent {
  /** Bytes, at least 1, at most what was asked for. */
  readonly length: number;
  /** STATUS_DATA, STATUS_ZERO, STATUS_ALLOCATED. */
  readonly flags: number;
  /** Layer that decides the content: 1 is the top one, filters don't count; 0: no layer has it. */
  readonly depth: number;
  /** Where the bytes lie as they are, where that is known: a node, and the offset in it. */
  readonly host?: { readonly node: BlockNode; readonly offset: number };
}

const DECIDED = STATUS_DATA | STATUS_ZERO | STATUS_ALLOCATED;

/**
 * Status of a prefix of the range. Layers are asked from the top to `base` (excluded; undefined: to
 * the end of the chain).
 */
export function chainStatus(
  node: BlockNode,
  offset: number,
  length: number,
  base?: BlockNode,
): MaybePromise<ChainExtent> {
  return layerStatus(node, { offset, length, depth: 1, base });
}

interface Walk {
  readonly offset: number;
  readonly length: number;
  readonly depth: number;
  readonly base: BlockNode | undefined;
}

function layerStatus(node: BlockNode, walk: Walk): MaybePromise<ChainExtent> {
  if (node === walk.base) return { length: walk.length, flags: 0, depth: 0 };
  const extent = node.blockStatus(walk.offset, walk.length);
  if (extent instanceof Promise) return extent.then((value) => refine(node, walk, value));
  return refine(node, walk, extent);
}

function refine(node: BlockNode, walk: Walk, extent: Extent): MaybePromise<ChainExtent> {
  const decided = (extent.flags & DECIDED) !== 0;
  if (extent.delegate !== undefined) {
    const { node: child } = extent.delegate;
    const at = { ...walk, offset: extent.hostOffset ?? walk.offset, length: extent.length };
    if (!decided) return layerStatus(child, at);
    if ((extent.flags & STATUS_ZERO) !== 0) {
      const { length, flags } = extent;
      return { length, flags, depth: walk.depth, ...hostOf(child, extent) };
    }
    return zeroBelow(child, at, extent);
  }
  if ((extent.flags & STATUS_ALLOCATED) !== 0) {
    return {
      length: extent.length,
      flags: extent.flags,
      depth: walk.depth,
      ...hostOf(node, extent),
    };
  }
  return descend(node, walk, extent);
}

function hostOf(node: BlockNode, { flags, hostOffset }: Extent): Pick<ChainExtent, 'host'> {
  if ((flags & STATUS_OFFSET_VALID) === 0 || hostOffset === undefined) return {};
  return { host: { node, offset: hostOffset } };
}

/** A format knows only that it has data there; its file may know that it is a hole. */
function zeroBelow(child: BlockNode, walk: Walk, extent: Extent): MaybePromise<ChainExtent> {
  const size = child.size;
  if (walk.offset >= size) {
    return { length: extent.length, flags: extent.flags | STATUS_ZERO, depth: walk.depth };
  }
  const length = Math.min(walk.length, size - walk.offset);
  const merge = (below: ChainExtent): ChainExtent => ({
    length: below.length,
    flags: extent.flags | (below.flags & STATUS_ZERO),
    depth: walk.depth,
    ...(below.host !== undefined ? { host: below.host } : {}),
  });
  const below = layerStatus(child, { ...walk, length });
  return below instanceof Promise ? below.then(merge) : merge(below);
}

/** Not allocated here: the backing node decides, zeroes where there is none. */
function descend(node: BlockNode, walk: Walk, extent: Extent): MaybePromise<ChainExtent> {
  const backing = node.children.get('backing')?.node;
  const unallocated = { length: extent.length, flags: extent.flags | STATUS_ZERO, depth: 0 };
  if (backing === undefined) return unallocated;
  if (backing === walk.base) return { length: extent.length, flags: 0, depth: 0 };
  if (walk.offset >= backing.size) {
    // A layer that ends early hides what longer ones below it have.
    const flags = extent.flags | STATUS_ZERO | STATUS_ALLOCATED;
    return { length: extent.length, flags, depth: walk.depth + 1 };
  }
  const length = Math.min(extent.length, backing.size - walk.offset);
  return layerStatus(backing, { ...walk, length, depth: walk.depth + 1 });
}
