// SPDX-License-Identifier: MIT
/** What commands do to the named bitmaps of nodes, each as a change that can be undone. */
import { BlockError } from '../../base/errors.js';
import type { BlockGraph } from '../graph.js';
import type { BlockNode } from '../node.js';
import type { Change } from '../transaction.js';
import type { BitmapBackup, DirtyBitmap } from './dirty-bitmap.js';
import {
  type AddBitmapOptions,
  addBitmap,
  clearBitmap,
  disableBitmap,
  enableBitmap,
  findBitmap,
  mergeBitmaps,
} from './node-bitmaps.js';

/** Names a bitmap together with its node. */
export interface BitmapName {
  readonly node: string;
  readonly name: string;
}

/** @throws BlockError DF_NOT_FOUND for the node or the bitmap, in QEMU's words */
export function lookUpBitmap(graph: BlockGraph, { node, name }: BitmapName): DirtyBitmap {
  return findBitmap(holderOf(graph, node), name);
}

function holderOf(graph: BlockGraph, name: string): BlockNode {
  const node = graph.find(name);
  if (node === undefined) throw new BlockError('DF_NOT_FOUND', `Node '${name}' not found`);
  return node;
}

/** A new bitmap. @throws (by `prepare`) BlockError DF_NOT_FOUND, DF_INVALID, DF_EXISTS, DF_NOT_SUPPORTED */
export function addingBitmap(
  graph: BlockGraph,
  { node: nodeName, ...options }: AddBitmapOptions & { readonly node: string },
): Change {
  let added: DirtyBitmap | undefined;
  return {
    prepare() {
      const node = graph.get(nodeName);
      if (options.name !== '' && options.persistent === true) throw cannotStore(node);
      added = addBitmap(node, options);
    },
    abort: () => added?.detach(),
  };
}

/** No driver here keeps bitmaps in its image. */
function cannotStore({ name }: BlockNode): BlockError {
  return new BlockError(
    'DF_NOT_SUPPORTED',
    `Can't store persistent bitmaps to ${name}: Operation not supported`,
    { node: name },
  );
}

/** Nobody can use the bitmap from `prepare` on; it is gone when all changes are committed. */
export function removingBitmap(graph: BlockGraph, bitmapName: BitmapName): Change {
  let bitmap: DirtyBitmap | undefined;
  return {
    prepare() {
      const found = lookUpBitmap(graph, bitmapName);
      found.checkUse({ allowInconsistent: true });
      found.busy = true;
      bitmap = found;
    },
    commit() {
      if (bitmap === undefined) return;
      bitmap.busy = false;
      bitmap.detach();
    },
    abort() {
      if (bitmap !== undefined) bitmap.busy = false;
    },
  };
}

export function clearingBitmap(graph: BlockGraph, { node, name }: BitmapName): Change {
  return withBackup(() => {
    const holder = holderOf(graph, node);
    return { bitmap: findBitmap(holder, name), backup: clearBitmap(holder, name) };
  });
}

/** @param change.sources names without a node are of the target's node */
export function mergingBitmaps(
  graph: BlockGraph,
  change: {
    readonly node: string;
    readonly target: string;
    readonly sources: readonly (string | BitmapName)[];
  },
): Change {
  return withBackup(() => {
    const holder = holderOf(graph, change.node);
    const bitmap = findBitmap(holder, change.target);
    const sources = change.sources.map((source) =>
      typeof source === 'string' ? findBitmap(holder, source) : lookUpBitmap(graph, source),
    );
    return { bitmap, backup: mergeBitmaps(bitmap, sources) };
  });
}

/** Switches recording on or off. */
export function switchingBitmap(
  graph: BlockGraph,
  { node, name }: BitmapName,
  state: 'enabled' | 'disabled',
): Change {
  let before: DirtyBitmap | undefined;
  return {
    prepare() {
      const holder = holderOf(graph, node);
      const bitmap = findBitmap(holder, name);
      const same = bitmap.enabled === (state === 'enabled');
      if (state === 'enabled') enableBitmap(holder, name);
      else disableBitmap(holder, name);
      before = same ? undefined : bitmap;
    },
    abort() {
      if (state === 'enabled') before?.disable();
      else before?.enable();
    },
  };
}

function withBackup(
  act: () => { readonly bitmap: DirtyBitmap; readonly backup: BitmapBackup | undefined },
): Change {
  let done: ReturnType<typeof act> | undefined;
  return {
    prepare() {
      done = act();
    },
    abort() {
      if (done?.backup !== undefined) done.bitmap.restore(done.backup);
    },
  };
}
