// SPDX-License-Identifier: MIT
/** A storage daemon, ours or QEMU's, with one image, an export of it, and a monitor: the same words for both. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { QmpClient } from '../../../src/qmp.js';
import { EXPORT_NAME, type RunningServer, type ServerKind, startServer } from '../servers.js';

/** Longer than any job of the benchmark takes that comes to an end, milliseconds. */
const EVENT_TIMEOUT_MS = 40_000;
const CONNECT_TIMEOUT_MS = 10_000;
const RETRY_MS = 5;

/** The source's node in both daemons. */
export const SOURCE_NODE = EXPORT_NAME;
export const TARGET_NODE = 'target';
export const JOB_ID = 'job';
export const BITMAP = 'changes';

type Arguments = Parameters<QmpClient['execute']>[1];
type EventData = Readonly<Record<string, unknown>>;

interface SchemaEntry {
  readonly name: string;
  readonly 'arg-type'?: string;
  readonly members?: readonly { readonly name: string; readonly type?: string }[];
  readonly values?: readonly string[];
}

export class JobDaemon {
  private constructor(
    readonly server: RunningServer,
    private readonly qmp: QmpClient,
  ) {}

  /** Starts it on an image that is exported, writable, over a UNIX socket in `dir`. */
  static async start(
    kind: ServerKind,
    { image, dir }: { readonly image: string; readonly dir: string },
  ): Promise<JobDaemon> {
    const path = join(dir, 'qmp.sock');
    await rm(path, { force: true });
    const monitor = ['--chardev', `socket,id=m,path=${path},server=on,wait=off`, '--monitor', 'm'];
    const withMonitor = withArgs(kind, (args) => [...args, ...monitor]);
    const server = await startServer(withMonitor, { images: [image], transport: 'unix', dir });
    try {
      return new JobDaemon(server, await connectMonitor(path));
    } catch (error) {
      await server.stop();
      throw error;
    }
  }

  get uri(): string {
    return this.server.uri(EXPORT_NAME);
  }

  execute(command: string, args?: Arguments): Promise<unknown> {
    return this.qmp.execute(command, args);
  }

  /**
   * Runs a command and waits for an event that follows from it.
   * @returns milliseconds from sending the command to the event
   * @throws Error when the job ends with an error instead, or nothing comes
   */
  async until(
    command: string,
    args: Arguments,
    happened: (name: string, data: EventData) => boolean,
    started: () => void = () => {},
  ): Promise<number> {
    const events = new Awaited(this.qmp, happened);
    const begin = performance.now();
    try {
      await this.qmp.execute(command, args);
      started();
      return (await events.first) - begin;
    } finally {
      events.release();
    }
  }

  /** @throws Error when the job ended with one */
  async checkJob(): Promise<void> {
    const jobs = (await this.qmp.execute('query-jobs')) as unknown as { error?: string }[];
    const error = jobs[0]?.error;
    if (error !== undefined) throw new Error(`the job failed: ${error}`);
  }

  /** Whether the schema has a value for an argument of a command, such as `copy-mode` `auto`. */
  async knows(command: string, argument: string, value: string): Promise<boolean> {
    const schema = (await this.qmp.execute('query-qmp-schema')) as unknown as SchemaEntry[];
    const entry = (name: string | undefined) => schema.find((found) => found.name === name);
    const members = entry(entry(command)?.['arg-type'])?.members ?? [];
    const type = members.find(({ name }) => name === argument)?.type;
    return entry(type)?.values?.includes(value) ?? false;
  }

  async stop(): Promise<void> {
    this.qmp.close();
    await this.server.stop();
  }
}

/** The same server with other arguments. */
export function withArgs(
  kind: ServerKind,
  change: (args: readonly string[]) => string[],
): ServerKind {
  return {
    ...kind,
    command(images, endpoint) {
      const { program, args } = kind.command(images, endpoint);
      return { program, args: change(args) };
    },
  };
}

/** The monitor comes a moment after the NBD server, whose greeting was waited for. */
async function connectMonitor(path: string): Promise<QmpClient> {
  const deadline = performance.now() + CONNECT_TIMEOUT_MS;
  for (;;) {
    try {
      return await QmpClient.connect({ path });
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await sleep(RETRY_MS);
    }
  }
}

/** The job came to no end, or was not READY: a mirror may never catch up with a writer. */
export class TooLate extends Error {
  constructor() {
    super(`not ready, and not at an end, after ${EVENT_TIMEOUT_MS / 1000} s`);
  }
}

/** The first event that is waited for, with the instant at which it came. */
class Awaited {
  readonly first: Promise<number>;
  release: () => void = () => {};

  constructor(qmp: QmpClient, happened: (name: string, data: EventData) => boolean) {
    this.first = new Promise((resolve, reject) => {
      const off = qmp.onEvent(({ name, data }) => {
        if (happened(name, data)) resolve(performance.now());
        else if (name === 'BLOCK_JOB_COMPLETED' && data.error !== undefined) {
          reject(new Error(`the job failed: ${String(data.error)}`));
        } else if (concluded(name, data)) {
          reject(new Error('the job ended before it was ready'));
        }
      });
      const late = (): void => reject(new TooLate());
      const timer = setTimeout(late, EVENT_TIMEOUT_MS);
      this.release = () => {
        off();
        clearTimeout(timer);
      };
    });
    this.first.catch(() => {}); // who waits for it is told
  }
}

/** The job has ended, well or not, and can be asked about. */
export const concluded = (name: string, data: EventData): boolean =>
  name === 'JOB_STATUS_CHANGE' && data.id === JOB_ID && data.status === 'concluded';

/** A mirror has caught up with its source. */
export const isReady = (name: string): boolean => name === 'BLOCK_JOB_READY';
