// SPDX-License-Identifier: MIT
/** How far away a node's data is. */
import type { BlockNode } from './node.js';

/** The longest way there and back below a node, milliseconds; 0 where all is on this machine. */
export function roundTripMs(node: BlockNode): number {
  let longest = node.driver.roundTripMs ?? 0;
  for (const { node: child } of node.children.values()) {
    longest = Math.max(longest, roundTripMs(child));
  }
  return longest;
}
