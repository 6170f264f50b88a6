// SPDX-License-Identifier: MIT
/** In what units an image takes data up: who copies a layer into it has to fill them. */
import type { BlockNode } from './node.js';

export interface ImageClusters {
  /** Bytes. */
  readonly length: number;
  /**
   * A cluster that is written in part gets the rest from a backing node. Without one the rest reads as
   * zeroes from then on, also when the image is opened over its backing file later.
   */
  readonly filledUp: boolean;
}

/** Those of the image that a node shows, through filters or as it is; undefined: it has none. */
export async function imageClusters(node: BlockNode): Promise<ImageClusters | undefined> {
  const format = await node.driver.formatInfo?.();
  if (format !== undefined) {
    return { length: format.clusterSize, filledUp: node.children.has('backing') };
  }
  for (const { role, node: below } of node.children.values()) {
    if (role === 'filtered' || (role === 'file' && node.kind === 'format')) {
      return imageClusters(below);
    }
  }
  return undefined;
}
