// SPDX-License-Identifier: MIT
/** The images above a layer that goes: what they note as their backing file. */
import { BlockError } from '../base/errors.js';
import type { BackingFile } from '../block/block-driver.js';
import { skipFilters } from '../block/chain.js';
import type { BlockGraph } from '../block/graph.js';
import { backingFileOf } from '../block/image-name.js';
import { BlockNode } from '../block/node.js';
import { whileWritableLocked } from '../block/reopen.js';

/** What overlays are to note. */
export interface BackingChange {
  readonly base: BlockNode;
  /** As the user gave it; undefined: the base's own file name. */
  readonly filename: string | undefined;
  /** A protocol is noted as 'raw': to its reader that is the same. */
  readonly maskProtocol: boolean;
}

/** The images whose backing node `node` is, also where filters lie between. */
export function overlaysOf(node: BlockNode): BlockNode[] {
  const overlays: BlockNode[] = [];
  for (const { parent, role } of node.parents) {
    if (!(parent instanceof BlockNode)) continue;
    if (role === 'backing') overlays.push(parent);
    else if (role === 'filtered') overlays.push(...overlaysOf(parent));
  }
  return overlays;
}

/** @throws BlockError where an overlay can't note a backing file, or the base has no name to note */
export async function checkOverlays(
  overlays: readonly BlockNode[],
  change: BackingChange,
): Promise<void> {
  for (const overlay of overlays) {
    if (overlay.driver.changeBackingFile === undefined) {
      throw new BlockError(
        'DF_NOT_SUPPORTED',
        `Node '${overlay.name}' can't note another backing file: driver '${overlay.driver.name}'`,
        { node: overlay.name },
      );
    }
    await noted(overlay, change);
  }
}

async function noted(overlay: BlockNode, { base, ...how }: BackingChange): Promise<BackingFile> {
  const backing = await backingFileOf(overlay.driver.filename, base, how);
  if (backing.filename !== '') return backing;
  const { name } = skipFilters(base);
  throw new BlockError(
    'DF_INVALID',
    `No file name for node '${name}' that an image could note; 'backing-file' can give one`,
    { node: name },
  );
}

/**
 * Notes it in each of the images, durably. For who holds the graph and has drained the overlays.
 * @returns what notes the old one again
 * @throws BlockError and has changed nothing then
 */
export async function changeBackingFiles(
  graph: BlockGraph,
  overlays: readonly BlockNode[],
  change: BackingChange,
): Promise<() => Promise<void>> {
  const done: (() => Promise<void>)[] = [];
  const undo = async (): Promise<void> => {
    for (const back of done.splice(0).reverse()) await back();
  };
  try {
    for (const overlay of overlays) {
      const info = await overlay.driver.formatInfo?.();
      const before: BackingFile | undefined =
        info?.backingFilename === undefined
          ? undefined
          : { filename: info.backingFilename, format: info.backingFormat };
      await note(graph, overlay, await noted(overlay, change));
      done.push(() => note(graph, overlay, before));
    }
  } catch (error) {
    await undo();
    throw error;
  }
  return undo;
}

function note(
  graph: BlockGraph,
  overlay: BlockNode,
  backing: BackingFile | undefined,
): Promise<void> {
  return whileWritableLocked(graph, overlay, () => overlay.driver.changeBackingFile?.(backing));
}
