// SPDX-License-Identifier: MIT
/** `drive-backup`, by itself and in a transaction: a backup into an image that it makes or opens. */
import { type DriveBackup as Definition, DRIVE_BACKUP } from '../../../protocol/qapi/backup.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { ChangesAhead } from '../../block/changes-ahead.js';
import { drained } from '../../block/drain.js';
import { checkMovable } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import { applyChanges, type Change } from '../../block/transaction.js';
import { cannotCompress } from '../../job/backup-request.js';
import type { JobTransaction } from '../../job/job-transaction.js';
import type { CommandRegistry } from '../registry.js';
import {
  type BackupServices,
  backupStart,
  checkBackupArguments,
  foreseeBackup,
  foreseesBitmap,
} from './backup.js';
import { backingOfTarget, checkTarget, openTarget, type TargetArguments } from './target-image.js';

/** Everything written is known to be new, so zeroes become holes. */
const TARGET_OPTIONS = { discard: 'unmap', 'detect-zeroes': 'unmap' } as const;

export function registerDriveBackup(registry: CommandRegistry, services: BackupServices): void {
  registry.register(DRIVE_BACKUP, (args) =>
    applyChanges([new DriveBackup(services, args)], (apply) =>
      drained([services.graph.get(args.device)], apply),
    ),
  );
}

/** `drive-backup`. */
export class DriveBackup implements Change {
  readonly #services: BackupServices;
  readonly #args: Infer<typeof Definition>;
  readonly #transaction: JobTransaction | undefined;
  #node: BlockNode | undefined;
  #sync: Infer<typeof Definition>['sync'];
  #started: Change | undefined;

  /** @param transaction jobs that end together with this one */
  constructor(
    services: BackupServices,
    args: Infer<typeof Definition>,
    transaction?: JobTransaction,
  ) {
    this.#services = services;
    this.#args = args;
    this.#transaction = transaction;
    this.#sync = args.sync;
  }

  check(ahead: ChangesAhead): void {
    const { graph, jobs } = this.#services;
    const args = this.#args;
    const source = ahead.isComing(args.device) ? undefined : graph.get(args.device);
    foreseeBackup(jobs, ahead, args);
    if (args.mode !== 'existing') ahead.noteImage(args.target);
    if (source === undefined) return;
    if (!ahead.movesNodes) checkMovable(source.parents);
    if (!foreseesBitmap(ahead, args)) checkBackupArguments(args, source);
    this.#checkImage(source);
  }

  /** What is wrong with the image, before anything is made. */
  #checkImage(source: BlockNode): void {
    const { graph } = this.#services;
    const args = this.#args;
    if (args.compress === true) this.#checkCompresses(args.format ?? source.driver.name);
    checkTarget(graph, this.#target(source));
  }

  #target(source: BlockNode): TargetArguments {
    const args = this.#args;
    const below = source.children.get('backing')?.node;
    const backing = backingOfTarget(args.sync, { source, below });
    return { ...args, source, backing, options: TARGET_OPTIONS };
  }

  /** Makes the image where that is asked for, and opens it. @throws BlockError */
  async make(): Promise<void> {
    const { graph, jobs } = this.#services;
    const args = this.#args;
    const source = graph.get(args.device);
    if (args.sync === 'top' && !source.children.has('backing')) this.#sync = 'full';
    jobs.checkFree(args['job-id'] ?? args.device);
    this.#checkImage(source);
    const { node } = await openTarget(graph, this.#target(source));
    this.#node = node;
  }

  /** Told before anything is made; of an image that is there `checkBackup` tells. */
  #checkCompresses(format: string): void {
    const { drivers } = this.#services.graph;
    if (!drivers.names.includes(format) || drivers.get(format).compresses === true) return;
    throw cannotCompress();
  }

  /** Makes the job, which is started when all others are prepared. */
  prepare(): MaybePromise<void> {
    if (this.#node === undefined) throw new Error('the image is not open');
    const { format: _format, mode: _mode, ...common } = this.#args;
    const args = { ...common, sync: this.#sync, target: this.#node.name };
    this.#started = backupStart(this.#services, args, this.#transaction);
    return this.#started.prepare();
  }

  commit(): MaybePromise<void> {
    return this.#started?.commit?.();
  }

  abort(): MaybePromise<void> {
    return this.#started?.abort?.();
  }

  /** Lets go of the image: it is the job's now, or is closed. */
  async release(): Promise<void> {
    const node = this.#node;
    const { graph } = this.#services;
    if (node !== undefined) await graph.exclusive(() => graph.closeUnused(node));
  }
}
