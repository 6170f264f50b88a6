// SPDX-License-Identifier: MIT
/** `block_resize`: another size for a node that may be in use. */
import { BlockError } from '../base/errors.js';
import { BlockBackend } from './backend.js';
import { drained } from './drain.js';
import type { BlockGraph } from './graph.js';
import { BlockNode } from './node.js';
import { PERM_ALL, PERM_RESIZE } from './permissions.js';
import { checkNoOverlay } from './snapshot.js';

/**
 * @param size bytes, 0 and up
 * @throws BlockError DF_NOT_FOUND when the node is gone, DF_IN_USE when an image lies above it,
 *   DF_PERMISSION_CONFLICT naming who needs the size to stay, DF_NOT_SUPPORTED,
 *   DF_READ_ONLY, and the driver's; the size is as before then
 */
export async function resizeNode(graph: BlockGraph, node: BlockNode, size: number): Promise<void> {
  if (size < 0) throw new BlockError('DF_INVALID', "Parameter 'size' expects a >0 size");
  await graph.exclusive(async () => {
    // A job's filter may have gone while this waited; another node may have its name.
    if (graph.get(node.name) !== node) throw new BlockError('DF_IN_USE', 'The node was replaced');
    checkNoOverlays(node);
    const backend = new BlockBackend('block_resize');
    await graph.attachLocked(backend, node, { taken: PERM_RESIZE, shared: PERM_ALL });
    try {
      await drained([node], () => node.truncate(size));
    } finally {
      await graph.detachLocked(backend);
    }
  });
}

/** What an image shows past the end of what is below it, or no more, changes with that size. */
function checkNoOverlays(node: BlockNode): void {
  checkNoOverlay(node);
  for (const { role, parent } of node.parents) {
    if (role === 'filtered' && parent instanceof BlockNode) checkNoOverlays(parent);
  }
}
