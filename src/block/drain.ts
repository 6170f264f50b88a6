// SPDX-License-Identifier: MIT
/** Drained sections: nobody submits, nothing is in flight, the graph may change. */
import type { BlockNode } from './node.js';

/**
 * Runs `change` while the nodes and all above them hold still. Parents resume afterwards, whatever
 * happened. `change` may move edges between the nodes; it must not wait for I/O of their parents.
 */
export async function drained<T>(
  nodes: readonly BlockNode[],
  change: () => T | Promise<T>,
): Promise<T> {
  const held = [...new Set(nodes)];
  for (const node of held) node.drainBegin();
  try {
    for (const node of held) await node.whenIdle();
    // Waiting for one may have let another's last requests start theirs.
    for (const node of held) await node.whenIdle();
    return await change();
  } finally {
    for (const node of held) node.drainEnd();
  }
}
