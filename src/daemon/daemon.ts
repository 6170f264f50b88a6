// SPDX-License-Identifier: MIT
/** All parts of a daemon, put together, and taken apart in the right order. */

import { QAPI_COMMANDS, QAPI_EVENTS } from '../../protocol/qapi/all.js';
import { BLOCK_IO_ERROR } from '../../protocol/qapi/block-core.js';
import { requestErrorText } from '../base/error-text.js';
import { BlockError, errnoName, toError } from '../base/errors.js';
import { NBD_UNIX_SEND_BUFFER, SHUTDOWN_STEP_MS } from '../base/limits.js';
import { type Logger, subjectLog } from '../base/log.js';
import { Secrets } from '../block/crypto/secrets.js';
import { registerDrivers } from '../block/driver/all.js';
import { BlockGraph } from '../block/graph.js';
import { openNode } from '../block/open-node.js';
import { ThrottleGroups } from '../block/throttle/throttle-groups.js';
import { JobRegistry } from '../job/job-registry.js';
import { NbdService } from '../nbd/server/service.js';
import { registerBackup } from '../qmp/commands/backup.js';
import { registerBitmaps } from '../qmp/commands/bitmap.js';
import { checkRootName, registerBlockCore } from '../qmp/commands/block-core.js';
import { registerBlockCreate } from '../qmp/commands/block-create.js';
import { addExport, registerBlockExports } from '../qmp/commands/block-export.js';
import { registerBlockJobStarts } from '../qmp/commands/block-job.js';
import { registerCharCommands } from '../qmp/commands/char.js';
import { registerControlCommands } from '../qmp/commands/control.js';
import { registerDriveBackup } from '../qmp/commands/drive-backup.js';
import { registerInternalSnapshots } from '../qmp/commands/internal-snapshot.js';
import { emitJobEvents, registerBlockJobs, registerJobs } from '../qmp/commands/job.js';
import { type NamedSocket, nbdListenAddress } from '../qmp/commands/nbd-address.js';
import { addObject, registerQom } from '../qmp/commands/qom.js';
import { registerReplace } from '../qmp/commands/replace.js';
import { registerRunState } from '../qmp/commands/run-state.js';
import { registerSnapshots } from '../qmp/commands/snapshot.js';
import { registerStream } from '../qmp/commands/stream.js';
import { registerTransaction } from '../qmp/commands/transaction.js';
import { EventHub } from '../qmp/events.js';
import { Monitor } from '../qmp/monitor.js';
import { CommandRegistry } from '../qmp/registry.js';
import { ChardevSet, type ChardevSetOptions } from '../qmp/transport/chardev-set.js';
import { queuedBytes, setSendBuffer } from '../sys/socket-buffer.js';
import type { OptionAction } from './options.js';
import { qmpVersion } from './version.js';

export interface DaemonSetUp {
  readonly logger: Logger;
  readonly stdio: NonNullable<ChardevSetOptions['stdio']>;
  /** Called once, when a monitor said `quit` and its exports and jobs are gone. */
  readonly onQuit: () => void;
}

export class Daemon {
  readonly graph = new BlockGraph();
  readonly jobs = new JobRegistry();
  readonly throttleGroups = new ThrottleGroups();
  readonly secrets = new Secrets();
  readonly events = new EventHub();
  readonly registry = new CommandRegistry(QAPI_COMMANDS);
  readonly chardevs: ChardevSet;
  readonly nbd: NbdService;
  /** Sockets that a service manager passed to the process. */
  namedSockets: readonly NamedSocket[] = [];
  readonly #logger: Logger;
  readonly #monitors: Monitor[] = [];
  #workEnded: Promise<void> | undefined;
  #clean = true;

  constructor({ logger, stdio, onQuit }: DaemonSetUp) {
    this.#logger = logger;
    this.chardevs = new ChardevSet({ stdio });
    this.nbd = new NbdService(this.graph, {
      tuneUnixSocket: (fd) => setSendBuffer(fd, NBD_UNIX_SEND_BUFFER),
      queuedBytes,
    });
    registerDrivers(this.graph, this.throttleGroups, this.secrets);
    this.#registerCommands(onQuit);
    this.#observe();
  }

  /** Makes what one option of the command line asks for. @throws what it says */
  async apply(action: OptionAction): Promise<void> {
    switch (action.kind) {
      case 'blockdev':
        checkRootName(action.options);
        await openNode(this.graph, action.options, { monitorOwned: true });
        return;
      case 'chardev':
        await this.chardevs.add(action.id, action.backend);
        return;
      case 'export':
        await addExport(this, action.options);
        return;
      case 'monitor':
        this.#addMonitor(action.options);
        return;
      case 'nbd-server':
        await this.nbd.listenAlso({
          address: nbdListenAddress(action.options.addr, {
            webSocket: action.options.websocket ?? false,
            namedSockets: this.namedSockets,
          }),
          maxConnections: action.options['max-connections'],
          handshakeSeconds: action.options['handshake-max-seconds'],
        });
        return;
      case 'object':
        await addObject(this, action.options);
    }
  }

  /**
   * Ends jobs, then the NBD server and its exports, each with its events; nodes stay. Every step has
   * a deadline: what does not end by then is left to the end of the process.
   */
  endWork(): Promise<void> {
    this.#workEnded ??= this.#endWork();
    return this.#workEnded;
  }

  /** False once something could not be ended in order: clients may have got errors, or worse. */
  get clean(): boolean {
    return this.#clean;
  }

  /** Ends everything: work, nodes (flushed), monitors. Never rejects. */
  async shutDown(): Promise<void> {
    await this.endWork();
    await this.#step('closing nodes', () => this.graph.closeAll());
    for (const monitor of this.#monitors) monitor.stop();
    await this.#step('closing monitors', () => this.chardevs.close(SHUTDOWN_STEP_MS));
    this.events.close();
  }

  async #endWork(): Promise<void> {
    this.nbd.exported.release();
    await this.#step('ending jobs', () => this.jobs.cancelAll());
    await this.#step('ending exports', () => this.nbd.stopIfRunning());
  }

  /** Runs a step of the shut-down for so long as it may take; the next follows in any case. */
  async #step(what: string, act: () => Promise<void>): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const deadline = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), SHUTDOWN_STEP_MS);
    });
    try {
      const outcome = await Promise.race([act().then(() => 'done' as const), deadline]);
      if (outcome === 'late') {
        this.#clean = false;
        this.#logger.error({ event: 'daemon.shutdown', what }, `gave up ${what} after a while`);
      }
    } catch (error) {
      this.#clean = false;
      this.#logger.error({ event: 'daemon.shutdown', what, error }, `${what} failed`);
    } finally {
      clearTimeout(timer);
    }
  }

  #addMonitor(options: Extract<OptionAction, { kind: 'monitor' }>['options']): void {
    const chardev = this.chardevs.find(options.chardev);
    if (chardev === undefined) {
      // What is a chardev for commands is one in other words here, as in QEMU.
      throw new BlockError('DF_NOT_FOUND', `chardev "${options.chardev}" not found`);
    }
    this.#monitors.push(
      new Monitor({
        chardev,
        registry: this.registry,
        events: this.events,
        version: qmpVersion(),
        logger: this.#logger,
        pretty: options.pretty ?? false,
      }),
    );
  }

  #registerCommands(onQuit: () => void): void {
    const { registry, graph, jobs, events, nbd } = this;
    registerControlCommands(registry, {
      version: qmpVersion(),
      events: QAPI_EVENTS,
      quit: async () => {
        await this.endWork();
        onQuit();
      },
    });
    registerCharCommands(registry, this.chardevs);
    registerBlockCore(registry, {
      graph,
      events,
      jobOf: (parent) => jobs.jobOf(parent),
      nodeOfExport: (id) => (nbd.exports.has(id) ? nbd.exports.get(id).nodeName : undefined),
      mayIdle: (parent) => nbd.exported.mayIdle(parent),
    });
    registerBlockCreate(registry, { graph, jobs });
    registerBitmaps(registry, this.graph);
    registerBlockExports(registry, {
      graph,
      nbd,
      events,
      namedSockets: () => this.namedSockets,
    });
    registerBlockJobStarts(registry, { graph, jobs });
    registerBackup(registry, { graph, jobs });
    registerDriveBackup(registry, { graph, jobs });
    registerSnapshots(registry, { graph, jobs });
    registerInternalSnapshots(registry, { graph, jobs });
    registerStream(registry, { graph, jobs });
    registerReplace(registry, { graph, exported: nbd.exported });
    registerTransaction(registry, { graph, jobs, exported: nbd.exported });
    registerJobs(registry, jobs);
    registerBlockJobs(registry, jobs);
    registerQom(registry, this);
    registerRunState(registry, { exported: nbd.exported, events });
    emitJobEvents(jobs, events);
    const missing = registry.missing();
    if (missing.length > 0) throw new Error(`commands without a handler: ${missing.join(', ')}`);
  }

  #observe(): void {
    this.graph.observer.flushFailed = (node, error) => {
      subjectLog({ node: node.name }, this.#logger).error(
        { event: 'block.close', error },
        'closing the node could not flush it: acknowledged writes may be lost',
      );
    };
    this.graph.observer.bitmapsLost = (node, error) => {
      subjectLog({ node: node.name }, this.#logger).error(
        { event: 'block.close', error },
        'closing the node could not store its persistent bitmaps: they are inconsistent now',
      );
    };
    this.graph.observer.snapshotLeft = (node, { id, name }, error) => {
      subjectLog({ node: node.name }, this.#logger).error(
        { event: 'block.snapshot', id, name, file: node.driver.filename, error },
        'a snapshot of a transaction that failed could not be deleted: it is still in the image; when ' +
          'the image is not in use, check it (qemu-img check) and delete the snapshot ' +
          '(qemu-img snapshot -d, or diskferry img snapshot -d)',
      );
    };
    this.jobs.listen({
      stateChanged: (job) =>
        subjectLog({ job: job.id }, this.#logger).debug(
          { event: 'job.state', state: job.state },
          'job changed its state',
        ),
    });
    this.nbd.exported.onIoError = ({ exportId, nodeName, operation, error }) => {
      this.events.emit(BLOCK_IO_ERROR, {
        device: exportId,
        'node-name': nodeName,
        operation,
        action: 'report',
        nospace: errnoName(error) === 'ENOSPC',
        reason: requestErrorText(toError(error)),
      });
    };
  }
}
