// SPDX-License-Identifier: MIT
import { BlockBackend } from '../../../../src/block/backend.js';
import type { DriverOptions } from '../../../../src/block/block-driver.js';
import { Secrets } from '../../../../src/block/crypto/secrets.js';
import { fileDriver, hostDeviceDriver } from '../../../../src/block/driver/file/driver.js';
import { nullAioDriver, nullCoDriver } from '../../../../src/block/driver/null.js';
import { createQcow2Driver } from '../../../../src/block/driver/qcow2/driver.js';
import { rawDriver } from '../../../../src/block/driver/raw.js';
import { BlockGraph } from '../../../../src/block/graph.js';
import type { BlockNode } from '../../../../src/block/node.js';
import { openNode } from '../../../../src/block/open-node.js';
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  type Permissions,
} from '../../../../src/block/permissions.js';

export const READER: Permissions = { taken: PERM_CONSISTENT_READ, shared: PERM_ALL };
export const WRITER: Permissions = { taken: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };
export const RESIZER: Permissions = { taken: WRITER.taken | PERM_RESIZE, shared: PERM_ALL };

/** @param secrets those that encrypted images find; default: none */
export function localGraph(secrets = new Secrets()): BlockGraph {
  const graph = new BlockGraph();
  const drivers = [
    fileDriver,
    hostDeviceDriver,
    rawDriver,
    createQcow2Driver(secrets),
    nullCoDriver,
    nullAioDriver,
  ];
  for (const driver of drivers) graph.drivers.register(driver);
  return graph;
}

export interface UsedNode {
  readonly graph: BlockGraph;
  readonly node: BlockNode;
  readonly backend: BlockBackend;
  close(): Promise<void>;
}

/** A node with a user on it that takes `permissions`. */
export async function useNode(
  options: DriverOptions,
  permissions: Permissions = WRITER,
  graph = localGraph(),
): Promise<UsedNode> {
  const node = await openNode(graph, options, { monitorOwned: true });
  const backend = new BlockBackend('test');
  const close = async (): Promise<void> => {
    await graph.detach(backend);
    await graph.closeAll();
  };
  try {
    await graph.attach(backend, node, permissions);
  } catch (error) {
    await graph.closeAll();
    throw error;
  }
  return { graph, node, backend, close };
}
