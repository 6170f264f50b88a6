// SPDX-License-Identifier: MIT
/** `diskferry img convert --bitmaps`: persistent bitmaps go along with the content. */
import { BlockError } from '../../base/errors.js';
import { addingBitmap, mergingBitmaps } from '../../block/bitmap/bitmap-changes.js';
import type { BlockGraph } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import { applyChanges } from '../../block/transaction.js';

/** @throws BlockError for a source whose bitmaps can't be copied, in QEMU's words */
export function checkBitmaps(
  source: BlockNode,
  { skipBroken }: { readonly skipBroken: boolean },
): void {
  if (source.driver.bitmapStore === undefined) {
    throw new BlockError('DF_NOT_SUPPORTED', 'Source lacks bitmap support');
  }
  if (skipBroken) return;
  for (const bitmap of source.bitmaps.values()) {
    if (!bitmap.inconsistent) continue;
    throw new BlockError(
      'DF_INVALID',
      `Cannot copy inconsistent bitmap '${bitmap.name}'; try --skip-broken-bitmaps, or use ` +
        "'diskferry img bitmap --remove' to delete it",
    );
  }
}

/** @throws BlockError DF_NOT_SUPPORTED, in QEMU's words */
export function checkKeepsBitmaps({ driver }: BlockNode): void {
  if (driver.bitmapStore !== undefined) return;
  throw new BlockError(
    'DF_NOT_SUPPORTED',
    `Format driver '${driver.name}' does not support bitmaps`,
  );
}

/** Copies those that can be used. They are stored when the target is closed. */
export async function copyBitmaps(
  graph: BlockGraph,
  source: BlockNode,
  target: BlockNode,
): Promise<void> {
  for (const { name = '', inconsistent, granularity, enabled } of [...source.bitmaps.values()]) {
    if (inconsistent) {
      process.stderr.write(`diskferry: warning: Skipping inconsistent bitmap '${name}'\n`);
      continue;
    }
    const node = target.name;
    const wanted = { node, name, granularity, disabled: !enabled, persistent: true };
    await applyChanges([
      addingBitmap(graph, wanted),
      mergingBitmaps(graph, { node, target: name, sources: [{ node: source.name, name }] }),
    ]);
  }
}
