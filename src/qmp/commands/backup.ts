// SPDX-License-Identifier: MIT
/** The command that copies a node as it is at one moment. */
import * as qapi from '../../../protocol/qapi/backup.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import type { ChangesAhead } from '../../block/changes-ahead.js';
import { drained } from '../../block/drain.js';
import type { BlockGraph } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import { applyChanges, type Change } from '../../block/transaction.js';
import { BackupJob, checkBackupNodes } from '../../job/backup.js';
import { checkBackup, checkBackupSettings } from '../../job/backup-request.js';
import type { JobRegistry } from '../../job/job-registry.js';
import type { JobTransaction } from '../../job/job-transaction.js';
import type { CommandRegistry } from '../registry.js';

export interface BackupServices {
  readonly graph: BlockGraph;
  readonly jobs: JobRegistry;
}

type BackupArguments = Infer<typeof qapi.BlockdevBackup>;

export function registerBackup(registry: CommandRegistry, services: BackupServices): void {
  registry.register(qapi.BLOCKDEV_BACKUP, (args) => {
    const source = services.graph.get(args.device);
    return drained([source], () => applyChanges([backupStart(services, args)]));
  });
}

/**
 * The change that makes a backup job, and starts it when all others are prepared. The point in time
 * is that of the drained section in which it happens.
 * @param transaction jobs that end together with this one
 */
export function backupStart(
  { graph, jobs }: BackupServices,
  args: BackupArguments,
  transaction?: JobTransaction,
): Change {
  let job: BackupJob | undefined;
  return {
    async check(ahead) {
      const isComing = ahead.isComing(args.device) || ahead.isComing(args.target);
      if (!isComing) await checkNodes({ graph, jobs }, ahead, args);
      foreseeBackup(jobs, ahead, args);
    },
    async prepare() {
      const source = graph.get(args.device);
      const target = graph.get(args.target);
      checkTargetIdle(jobs, target);
      const checked = await checkBackup({ ...requestOf(args, source), target });
      const id = args['job-id'] ?? args.device;
      const options = {
        ...checked,
        id,
        filterNodeName: args['filter-node-name'],
        onSourceError: args['on-source-error'] ?? 'report',
        onTargetError: args['on-target-error'] ?? 'report',
        onCbwError: args['on-cbw-error'],
        cbwTimeoutMs: (args['cbw-timeout'] ?? 0) * 1000,
        autoFinalize: args['auto-finalize'] ?? true,
        autoDismiss: args['auto-dismiss'] ?? true,
        ...(transaction !== undefined ? { transaction } : {}),
      };
      job = await jobs.create(id, () => BackupJob.create(graph, options, jobs));
    },
    commit() {
      // A shut-down may have ended it already.
      if (job?.state === 'created') job.start();
    },
    abort: () => job?.abandon(),
  };
}

/** Of a backup between nodes that are there. */
async function checkNodes(
  { graph, jobs }: BackupServices,
  ahead: ChangesAhead,
  args: BackupArguments,
): Promise<void> {
  const source = graph.get(args.device);
  const target = graph.get(args.target);
  checkTargetIdle(jobs, target);
  if (!foreseesBitmap(ahead, args)) {
    checkBackupNodes(await checkBackup({ ...requestOf(args, source), target }));
  }
  ahead.noteTarget(target);
}

/** The job that there will be. @throws BlockError when its id is bad or taken */
export function foreseeBackup(
  jobs: JobRegistry,
  ahead: ChangesAhead,
  args: Pick<BackupArguments, 'job-id' | 'device'>,
): void {
  const id = args['job-id'] ?? args.device;
  jobs.checkFree(id);
  ahead.noteJob(id, args.device);
}

/**
 * The bitmap, if any, is the backup's from then on.
 * @returns true when it is not there yet, so that nothing can be said of it
 * @throws BlockError DF_IN_USE when an earlier change has taken it
 */
export function foreseesBitmap(
  ahead: ChangesAhead,
  { device, bitmap }: Pick<BackupArguments, 'bitmap' | 'device'>,
): boolean {
  if (bitmap === undefined) return false;
  const isComing = ahead.isComingBitmap(device, bitmap);
  ahead.noteBitmap(device, bitmap, 'busy');
  return isComing;
}

/** @throws BlockError of what is wrong whatever the target is */
export function checkBackupArguments(
  args: Omit<BackupArguments, 'target'>,
  source: BlockNode,
): void {
  checkBackupSettings(requestOf(args, source));
}

function requestOf(
  args: Omit<BackupArguments, 'target'>,
  source: BlockNode,
): Parameters<typeof checkBackupSettings>[0] {
  const perf = args['x-perf'] ?? {};
  return {
    source,
    sync: args.sync,
    bitmap: args.bitmap,
    bitmapMode: args['bitmap-mode'],
    compress: args.compress ?? false,
    speed: args.speed ?? 0,
    maxWorkers: perf['max-workers'],
    maxChunk: perf['max-chunk'],
    minClusterSize: perf['min-cluster-size'],
    discardSource: args['discard-source'],
  };
}

/** Two jobs that write to one target would make it neither's. */
function checkTargetIdle(jobs: JobRegistry, target: BlockNode): void {
  for (const edge of target.parents) {
    const job = jobs.jobOf(edge.parent);
    if (job === undefined) continue;
    throw new BlockError(
      'DF_IN_USE',
      `Node '${target.name}' is busy: block device is in use by block job: ${job.type}`,
      { node: target.name },
    );
  }
}
