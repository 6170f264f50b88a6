// SPDX-License-Identifier: MIT
/** Nodes that a job needs for itself: another that would change the same links or data is refused. */
import { BlockError } from '../base/errors.js';
import type { BlockNode } from '../block/node.js';

/** The kind of job that has a node. */
const claims = new WeakMap<BlockNode, string>();

/** @throws BlockError DF_IN_USE, in QEMU's words, when a job has the node */
export function checkUnclaimed(node: BlockNode): void {
  const type = claims.get(node);
  if (type === undefined) return;
  throw new BlockError(
    'DF_IN_USE',
    `Node '${node.name}' is busy: block device is in use by block job: ${type}`,
    { node: node.name },
  );
}

/**
 * Takes the nodes for a job of the kind, all or none.
 * @returns what lets them go again
 * @throws BlockError DF_IN_USE
 */
export function claimNodes(nodes: readonly BlockNode[], type: string): () => void {
  for (const node of nodes) checkUnclaimed(node);
  for (const node of nodes) claims.set(node, type);
  return () => {
    for (const node of nodes) claims.delete(node);
  };
}
