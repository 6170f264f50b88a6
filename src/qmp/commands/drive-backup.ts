// SPDX-License-Identifier: MIT
/** `drive-backup`, by itself and in a transaction: a backup into an image that it makes or opens. */
import { type DriveBackup as Definition, DRIVE_BACKUP } from '../../../protocol/qapi/backup.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import { drained } from '../../block/drain.js';
import type { BlockNode } from '../../block/node.js';
import { applyChanges, type Change } from '../../block/transaction.js';
import { cannotCompress } from '../../job/backup-request.js';
import type { JobTransaction } from '../../job/job-transaction.js';
import type { CommandRegistry } from '../registry.js';
import { type BackupServices, backupStart, checkBackupArguments } from './backup.js';
import { backingOfTarget, openTarget } from './target-image.js';

/** Everything written is known to be new, so zeroes become holes. */
const TARGET_OPTIONS = { discard: 'unmap', 'detect-zeroes': 'unmap' } as const;

export function registerDriveBackup(registry: CommandRegistry, services: BackupServices): void {
  registry.register(DRIVE_BACKUP, async (args) => {
    const backup = new DriveBackup(services, args);
    try {
      await backup.open();
      const source = services.graph.get(args.device);
      await drained([source], () => applyChanges([backup.start()]));
    } finally {
      await backup.release();
    }
  });
}

/** In three steps, so that only the middle one holds up the users of the source. */
export class DriveBackup {
  readonly #services: BackupServices;
  readonly #args: Infer<typeof Definition>;
  #node: BlockNode | undefined;
  #sync: Infer<typeof Definition>['sync'];

  constructor(services: BackupServices, args: Infer<typeof Definition>) {
    this.#services = services;
    this.#args = args;
    this.#sync = args.sync;
  }

  /**
   * Makes the image where that is asked for, and opens it.
   * @throws BlockError before anything is made where the arguments are wrong by themselves
   */
  async open(): Promise<void> {
    const { graph, jobs } = this.#services;
    const args = this.#args;
    const source = graph.get(args.device);
    const below = source.children.get('backing')?.node;
    if (args.sync === 'top' && below === undefined) this.#sync = 'full';
    jobs.checkFree(args['job-id'] ?? args.device);
    checkBackupArguments(args, source);
    if (args.compress === true) this.#checkCompresses(args.format ?? source.driver.name);
    const { node } = await openTarget(graph, {
      ...args,
      source,
      backing: backingOfTarget(args.sync, { source, below }),
      options: TARGET_OPTIONS,
    });
    this.#node = node;
  }

  /** Told before anything is made; of an image that is there `checkBackup` tells. */
  #checkCompresses(format: string): void {
    const { drivers } = this.#services.graph;
    if (!drivers.names.includes(format) || drivers.get(format).compresses === true) return;
    throw cannotCompress();
  }

  /** The change that makes the job and starts it; `open` has to come before its preparation. */
  start(transaction?: JobTransaction): Change {
    let started: Change | undefined;
    return {
      prepare: () => {
        if (this.#node === undefined) throw new Error('the image is not open');
        const { format: _format, mode: _mode, ...common } = this.#args;
        const args = { ...common, sync: this.#sync, target: this.#node.name };
        started = backupStart(this.#services, args, transaction);
        return started.prepare();
      },
      commit: () => started?.commit?.(),
      abort: () => started?.abort?.(),
    };
  }

  /** Lets go of the image: it is the job's now, or is closed. */
  async release(): Promise<void> {
    const node = this.#node;
    const { graph } = this.#services;
    if (node !== undefined) await graph.exclusive(() => graph.closeUnused(node));
  }
}
