// SPDX-License-Identifier: MIT
/** Commands on dirty bitmaps. */
import * as qapi from '../../../protocol/qapi/bitmaps.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import {
  addingBitmap,
  clearingBitmap,
  lookUpBitmap,
  mergingBitmaps,
  removingBitmap,
  switchingBitmap,
} from '../../block/bitmap/bitmap-changes.js';
import type { BlockGraph } from '../../block/graph.js';
import { applyChanges, type Change } from '../../block/transaction.js';
import type { CommandRegistry } from '../registry.js';

export function registerBitmaps(registry: CommandRegistry, graph: BlockGraph): void {
  registry.register(qapi.BLOCK_DIRTY_BITMAP_ADD, (args) =>
    applyChanges([addingBitmap(graph, args)]),
  );
  registry.register(qapi.BLOCK_DIRTY_BITMAP_REMOVE, (args) =>
    applyChanges([removingBitmap(graph, args)]),
  );
  registry.register(qapi.BLOCK_DIRTY_BITMAP_CLEAR, (args) =>
    applyChanges([clearingBitmap(graph, args)]),
  );
  registry.register(qapi.BLOCK_DIRTY_BITMAP_ENABLE, (args) =>
    applyChanges([switchingBitmap(graph, args, 'enabled')]),
  );
  registry.register(qapi.BLOCK_DIRTY_BITMAP_DISABLE, (args) =>
    applyChanges([switchingBitmap(graph, args, 'disabled')]),
  );
  registry.register(qapi.BLOCK_DIRTY_BITMAP_MERGE, (args) =>
    applyChanges([bitmapMerge(graph, args)]),
  );
  registry.register(qapi.X_DEBUG_BLOCK_DIRTY_BITMAP_SHA256, (args) => ({
    sha256: lookUpBitmap(graph, args).sha256(),
  }));
}

/** The change that the arguments of `block-dirty-bitmap-merge` describe. */
export function bitmapMerge(
  graph: BlockGraph,
  { node, target, bitmaps }: Infer<typeof qapi.BlockDirtyBitmapMerge>,
): Change {
  return mergingBitmaps(graph, { node, target, sources: bitmaps });
}
