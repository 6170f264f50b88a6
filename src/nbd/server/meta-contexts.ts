// SPDX-License-Identifier: MIT
/**
 * Metadata contexts of an export: which there are, which a query means, what their extents say.
 * @see proto.md "Metadata querying"; QEMU docs/interop/nbd.txt for the namespace `qemu:`
 */
import {
  NBD_META_BASE_ALLOCATION,
  NBD_META_QEMU_ALLOCATION_DEPTH,
  NBD_META_QEMU_DIRTY_BITMAP,
  NBD_STATE_DIRTY,
  NBD_STATE_HOLE,
  NBD_STATE_ZERO,
} from '../../../protocol/nbd/constants.js';
import { STATUS_DATA, STATUS_ZERO } from '../../block/block-driver.js';
import type { DirtyExtents, NbdExport } from './export.js';

export interface MetaContext {
  /** As on the wire; unique within an export. */
  readonly id: number;
  readonly name: string;
  readonly kind: 'allocation' | 'depth' | 'dirty';
  /** Of kind `dirty`. */
  readonly bitmap?: DirtyExtents;
}

/** All contexts of an export, `base:allocation` first. */
export function contextsOf(exported: NbdExport): MetaContext[] {
  const contexts: MetaContext[] = [{ id: 0, name: NBD_META_BASE_ALLOCATION, kind: 'allocation' }];
  if (exported.allocationDepth) {
    contexts.push({ id: 1, name: NBD_META_QEMU_ALLOCATION_DEPTH, kind: 'depth' });
  }
  let id = 2;
  for (const [name, bitmap] of exported.bitmaps) {
    contexts.push({ id: id++, name: NBD_META_QEMU_DIRTY_BITMAP + name, kind: 'dirty', bitmap });
  }
  return contexts;
}

/**
 * The contexts that at least one query means. Queries of unknown namespaces or names mean none.
 * @param options.wildcards `base:`, `qemu:` and `qemu:dirty-bitmap:` mean all below them, as they do
 *   in LIST and don't in SET
 */
export function selectContexts(
  contexts: readonly MetaContext[],
  queries: readonly string[],
  options: { wildcards: boolean },
): MetaContext[] {
  return contexts.filter(({ name }) =>
    queries.some((query) => query === name || (options.wildcards && covers(query, name))),
  );
}

const WILDCARDS = ['base:', 'qemu:', NBD_META_QEMU_DIRTY_BITMAP];

function covers(query: string, name: string): boolean {
  return WILDCARDS.includes(query) && name.startsWith(query);
}

/** `base:allocation` of a STATUS_* mask. */
export function allocationFlags(status: number): number {
  const hole = (status & STATUS_DATA) === 0 ? NBD_STATE_HOLE : 0;
  const zero = (status & STATUS_ZERO) !== 0 ? NBD_STATE_ZERO : 0;
  return hole | zero;
}

export function dirtyFlags(dirty: boolean): number {
  return dirty ? NBD_STATE_DIRTY : 0;
}
