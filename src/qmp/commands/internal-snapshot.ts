// SPDX-License-Identifier: MIT
/** Snapshots inside images, by themselves and in a transaction. */
import * as qapi from '../../../protocol/qapi/chain.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import type { ChangesAhead } from '../../block/changes-ahead.js';
import { deleteInternalSnapshot, takingInternalSnapshot } from '../../block/internal-snapshot.js';
import type { BlockNode } from '../../block/node.js';
import { applyChanges, type Change } from '../../block/transaction.js';
import type { CommandRegistry } from '../registry.js';
import { describeSnapshot } from './describe-node.js';
import type { SnapshotServices } from './snapshot.js';

export function registerInternalSnapshots(
  registry: CommandRegistry,
  services: SnapshotServices,
): void {
  registry.register(qapi.BLOCKDEV_SNAPSHOT_INTERNAL_SYNC, (args) =>
    applyChanges([internalSnapshotChange(services, args)]),
  );
  registry.register(qapi.BLOCKDEV_SNAPSHOT_DELETE_INTERNAL_SYNC, async ({ device, id, name }) => {
    const gone = await deleteInternalSnapshot(services.graph, () => rootNode(services, device), {
      device,
      id,
      name,
    });
    return describeSnapshot(gone);
  });
}

/** `blockdev-snapshot-internal-sync`. */
export function internalSnapshotChange(
  services: SnapshotServices,
  args: Infer<typeof qapi.BlockdevSnapshotInternal>,
): Change {
  return takingInternalSnapshot(
    services.graph,
    (ahead) => rootNode(services, args.device, ahead),
    args,
  );
}

/** A node that only exports and the like use. @throws BlockError in QEMU's words */
function rootNode(
  { graph, jobs }: SnapshotServices,
  device: string,
  ahead?: ChangesAhead,
): BlockNode {
  const node = graph.find(device);
  if (node === undefined) {
    throw new BlockError(
      'DF_NOT_FOUND',
      `Cannot find device='${device}' nor node-name='${device}'`,
    );
  }
  const isRoot = [...node.parents].every(
    ({ role, parent }) => role === 'root' && jobs.jobOf(parent) === undefined,
  );
  if (isRoot && ahead?.isCovered(node) !== true) return node;
  throw new BlockError('DF_INVALID', 'Need a root block node', { node: node.name });
}
