// SPDX-License-Identifier: MIT
/** The command that does several things at one moment, or none of them. */
import * as qapi from '../../../protocol/qapi/transaction.js';
import type { ArgumentsOf, Infer } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import {
  addingBitmap,
  clearingBitmap,
  removingBitmap,
  switchingBitmap,
} from '../../block/bitmap/bitmap-changes.js';
import { drained } from '../../block/drain.js';
import type { BlockNode } from '../../block/node.js';
import { applyChanges, type Change } from '../../block/transaction.js';
import { JobTransaction } from '../../job/job-transaction.js';
import type { CommandRegistry } from '../registry.js';
import { type BackupServices, backupStart } from './backup.js';
import { bitmapMerge } from './bitmap.js';
import { DriveBackup } from './drive-backup.js';
import { internalSnapshotChange } from './internal-snapshot.js';
import { blockdevReplace, nodesOfReplace, type ReplaceServices } from './replace.js';
import { SnapshotSync, snapshotChange } from './snapshot.js';

type Action = Infer<typeof qapi.TransactionAction>;
type TransactionServices = BackupServices & ReplaceServices;

export function registerTransaction(
  registry: CommandRegistry,
  services: TransactionServices,
): void {
  registry.register(qapi.TRANSACTION, (args) => runTransaction(services, args));
}

async function runTransaction(
  services: TransactionServices,
  { actions, properties = {} }: ArgumentsOf<typeof qapi.TRANSACTION>,
): Promise<void> {
  const group = properties['completion-mode'] === 'grouped' ? new JobTransaction() : undefined;
  const changes = actions.map((action) => changeOf(services, action, group));
  // Nothing is written to any of the nodes between the first action and the last.
  await applyChanges(changes, (apply) =>
    drained(
      actions.flatMap((action) => nodesOf(services, action)),
      apply,
    ),
  );
}

/** The nodes whose moment it is. */
function nodesOf(services: TransactionServices, action: Action): BlockNode[] {
  if (action.type === 'abort') return [];
  if (action.type === 'blockdev-replace') return nodesOfReplace(services, action.data);
  const node = services.graph.find(nodeName(action));
  return node === undefined ? [] : [node];
}

function nodeName(action: Exclude<Action, { type: 'abort' | 'blockdev-replace' }>): string {
  if (action.type === 'blockdev-snapshot-sync') {
    return action.data.device ?? action.data['node-name'] ?? '';
  }
  return 'device' in action.data ? action.data.device : action.data.node;
}

function changeOf(
  services: TransactionServices,
  action: Action,
  group: JobTransaction | undefined,
): Change {
  if (action.type === 'blockdev-backup') return backupStart(services, action.data, group);
  if (action.type === 'drive-backup') return new DriveBackup(services, action.data, group);
  if (action.type === 'abort') return ABORT;
  if (group !== undefined) return notGrouped(action.type);
  if (action.type === 'blockdev-replace') return blockdevReplace(services, action.data);
  if (action.type === 'blockdev-snapshot-sync') return new SnapshotSync(services, action.data);
  if (action.type === 'blockdev-snapshot') return snapshotChange(services, action.data);
  if (action.type === 'blockdev-snapshot-internal-sync') {
    return internalSnapshotChange(services, action.data);
  }
  return bitmapChange(services, action);
}

type BitmapAction = Exclude<
  Action,
  {
    type:
      | 'abort'
      | 'blockdev-backup'
      | 'blockdev-replace'
      | 'blockdev-snapshot'
      | 'blockdev-snapshot-internal-sync'
      | 'blockdev-snapshot-sync'
      | 'drive-backup';
  }
>;

function bitmapChange({ graph }: BackupServices, action: BitmapAction): Change {
  switch (action.type) {
    case 'block-dirty-bitmap-add':
      return addingBitmap(graph, action.data);
    case 'block-dirty-bitmap-remove':
      return removingBitmap(graph, action.data);
    case 'block-dirty-bitmap-clear':
      return clearingBitmap(graph, action.data);
    case 'block-dirty-bitmap-enable':
      return switchingBitmap(graph, action.data, 'enabled');
    case 'block-dirty-bitmap-disable':
      return switchingBitmap(graph, action.data, 'disabled');
    case 'block-dirty-bitmap-merge':
      return bitmapMerge(graph, action.data);
  }
}

const ABORT = refusing('Transaction aborted using Abort action');

function notGrouped(type: string): Change {
  return refusing(
    `Action '${type}' does not support Transaction property completion-mode = grouped`,
  );
}

function refusing(message: string): Change {
  const refuse = (): never => {
    throw new BlockError('DF_INVALID', message);
  };
  return { check: refuse, prepare: refuse };
}
