// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { openNode } from '../../src/block/open-node.js';
import { localGraph } from '../unit/block/driver/test-graph.js';

/**
 * All bytes of a chain that is opened by its topmost image alone.
 * @throws BlockError when it, or an image that it names, is no image
 */
export async function chainContent(dir: string, name: string): Promise<Buffer> {
  const graph = localGraph();
  try {
    const file = { driver: 'file', filename: join(dir, name) };
    const options = { driver: 'qcow2', 'read-only': true, file };
    const node = await openNode(graph, options, { monitorOwned: true });
    const content = Buffer.alloc(node.size);
    await node.read(0, content);
    return content;
  } finally {
    await graph.closeAll();
  }
}
