// SPDX-License-Identifier: MIT
/** Which nodes a copy of another may replace without anybody seeing other data of a sudden. */
import type { ChildRole } from './block-driver.js';
import type { BlockNode } from './node.js';

/** Children of filters that have the content that the filter shows. */
const SAME_CONTENT: ReadonlySet<string> = new Set<ChildRole>(['filtered', 'test', 'raw']);

/**
 * True when a node with the content of `source` may take the place of `replaced`: it is the source
 * itself, one that it only filters, or a copy that a quorum there keeps and nobody else uses.
 */
export function canReplace(source: BlockNode, replaced: BlockNode): boolean {
  if (source === replaced) return true;
  for (const edge of source.children.values()) {
    if (source.kind === 'filter' && SAME_CONTENT.has(edge.role)) {
      if (canReplace(edge.node, replaced)) return true;
    } else if (edge.node === replaced && replaced.parents.size === 1) {
      if (source.driver.maySwap?.(edge) === true) return true;
    }
  }
  return false;
}
