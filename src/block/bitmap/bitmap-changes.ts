// SPDX-License-Identifier: MIT
/** What commands do to the named bitmaps of nodes, each as a change that can be undone. */
import { BlockError, toError } from '../../base/errors.js';
import type { ChangesAhead } from '../changes-ahead.js';
import type { BlockGraph } from '../graph.js';
import { imageClusters } from '../image-clusters.js';
import type { BlockNode } from '../node.js';
import type { Change } from '../transaction.js';
import type { BitmapStore } from './bitmap-store.js';
import { type BitmapBackup, checkGranularity, type DirtyBitmap } from './dirty-bitmap.js';
import {
  type AddBitmapOptions,
  addBitmap,
  checkBitmapName,
  clearBitmap,
  defaultGranularity,
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
  const { name } = options;
  return {
    check(ahead) {
      if (ahead.isComing(nodeName)) return;
      const node = graph.get(nodeName);
      if (options.granularity !== undefined) checkGranularity(options.granularity);
      if (ahead.isComingBitmap(nodeName, name)) {
        throw new BlockError('DF_EXISTS', `Bitmap already exists: ${name}`);
      }
      checkBitmapName(node, name);
      ahead.noteBitmap(nodeName, name, 'added');
    },
    async prepare() {
      const node = graph.get(nodeName);
      const granularity = options.granularity ?? defaultGranularity(await imageClusters(node));
      const wanted = { ...options, granularity };
      if (options.name !== '' && options.persistent === true)
        await prepareToStore(graph, node, wanted);
      added = addBitmap(node, wanted);
    },
    abort: () => added?.detach(),
  };
}

/** @throws BlockError when the node's image can't take one more bitmap */
async function prepareToStore(
  graph: BlockGraph,
  node: BlockNode,
  { name, granularity }: { readonly name: string; readonly granularity: number },
): Promise<void> {
  const { name: nodeName } = node;
  const store = node.driver.bitmapStore;
  if (store === undefined) {
    throw new BlockError(
      'DF_NOT_SUPPORTED',
      `Can't store persistent bitmaps to ${nodeName}: Operation not supported`,
      { node: nodeName },
    );
  }
  checkGranularity(granularity);
  if (node.bitmaps.has(name)) throw new BlockError('DF_EXISTS', `Bitmap already exists: ${name}`);
  if (node.readOnly || !node.active) {
    throw new BlockError('DF_READ_ONLY', `Block node '${nodeName}' is read-only`);
  }
  try {
    store.checkNew({ name, granularity });
  } catch (error) {
    const message = `Can't make bitmap '${name}' persistent in '${nodeName}': ${toError(error).message}`;
    throw new BlockError('DF_INVALID', message, { node: nodeName }, { cause: error });
  }
  await withStore(graph, node, (there) => there.prepareChange());
}

/** Calls the node's driver while the image can be neither closed nor handed over. */
async function withStore(
  graph: BlockGraph,
  node: BlockNode,
  act: (store: BitmapStore) => void | Promise<void>,
): Promise<void> {
  await graph.exclusive(() => {
    if (graph.find(node.name) !== node) {
      throw new BlockError('DF_NOT_FOUND', `Node '${node.name}' not found`);
    }
    if (!node.active) {
      throw new BlockError('DF_READ_ONLY', `Block node '${node.name}' is inactive`);
    }
    const store = node.driver.bitmapStore;
    if (store !== undefined) return act(store);
  });
}

/** A persistent bitmap is about to differ from what the image has of it. */
async function beforeChange(graph: BlockGraph, node: BlockNode, name: string): Promise<void> {
  const bitmap = node.bitmaps.get(name);
  if (bitmap?.persistent !== true || bitmap.inconsistent || bitmap.readOnly) return;
  await withStore(graph, node, (store) => store.prepareChange());
}

/** Nobody can use the bitmap from `prepare` on; it is gone when all changes are committed. */
export function removingBitmap(graph: BlockGraph, bitmapName: BitmapName): Change {
  let bitmap: DirtyBitmap | undefined;
  return {
    check(ahead) {
      foresee(graph, ahead, bitmapName)?.checkUse({ allowInconsistent: true });
      ahead.noteBitmap(bitmapName.node, bitmapName.name, 'busy');
    },
    async prepare() {
      const holder = holderOf(graph, bitmapName.node);
      const found = findBitmap(holder, bitmapName.name);
      found.checkUse({ allowInconsistent: true });
      found.busy = true;
      bitmap = found;
      if (!found.persistent) return;
      try {
        await withStore(graph, holder, (store) => store.remove(bitmapName.name));
      } catch (error) {
        found.busy = false;
        throw error;
      }
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
  const check = (ahead: ChangesAhead): void => foresee(graph, ahead, { node, name })?.checkUse();
  return withBackup(check, async () => {
    const holder = holderOf(graph, node);
    await beforeChange(graph, holder, name);
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
  const check = (ahead: ChangesAhead): void => {
    const { node, target, sources } = change;
    foresee(graph, ahead, { node, name: target })?.checkUse();
    for (const source of sources) {
      const from = typeof source === 'string' ? { node, name: source } : source;
      foresee(graph, ahead, from)?.checkUse({ allowReadOnly: true });
    }
  };
  return withBackup(check, async () => {
    const holder = holderOf(graph, change.node);
    await beforeChange(graph, holder, change.target);
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
    check(ahead) {
      foresee(graph, ahead, { node, name })?.checkUse({ allowReadOnly: true });
    },
    async prepare() {
      const holder = holderOf(graph, node);
      await beforeChange(graph, holder, name);
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

/**
 * The bitmap that a change will find; undefined where an earlier change makes it.
 * @throws BlockError DF_NOT_FOUND, DF_IN_USE when there will be none to be used
 */
function foresee(
  graph: BlockGraph,
  ahead: ChangesAhead,
  bitmap: BitmapName,
): DirtyBitmap | undefined {
  return ahead.isComingBitmap(bitmap.node, bitmap.name) ? undefined : lookUpBitmap(graph, bitmap);
}

function withBackup(
  check: (ahead: ChangesAhead) => void,
  act: () => Promise<{
    readonly bitmap: DirtyBitmap;
    readonly backup: BitmapBackup | undefined;
  }>,
): Change {
  let done: Awaited<ReturnType<typeof act>> | undefined;
  return {
    check,
    async prepare() {
      done = await act();
    },
    abort() {
      if (done?.backup !== undefined) done.bitmap.restore(done.backup);
    },
  };
}
