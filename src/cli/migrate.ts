// SPDX-License-Identifier: MIT
/**
 * `diskferry migrate`: moves a disk that is in use to another NBD server. Its users go on working;
 * at the end they work on the target without having noticed.
 */
import { parseNbdTarget } from '../../protocol/nbd/uri.js';
import type { JsonObject } from '../../protocol/qapi/types.js';
import { type QmpClient, QmpCommandError } from '../qmp/client.js';
import { Interruption } from './interruption.js';
import { ProgressBar } from './progress.js';
import { connectMonitor } from './qmp.js';

export interface MigrateOptions {
  readonly from?: string | undefined;
  readonly node?: string | undefined;
  readonly to?: string | undefined;
  readonly speed?: string | undefined;
  readonly copyMode?: string | undefined;
  readonly copyOnly: boolean;
}

/** When a write to the disk reaches the target. 'auto': writers are slowed down when it does not end. */
const COPY_MODES = ['background', 'write-blocking', 'auto'];

/** Time between looks at the job, milliseconds. */
const POLL_MS = 200;

interface Plan {
  readonly node: string;
  readonly to: string;
  /** Bytes a second. */
  readonly speed: number | undefined;
  readonly copyMode: string;
  readonly pivot: boolean;
  /** Name of the node that stands for the target in the source's daemon. */
  readonly target: string;
  /** Name of the job. */
  readonly job: string;
}

/** @returns exit status: 0, or 128 and the signal's number when one has called it off */
export async function migrate(options: MigrateOptions): Promise<number> {
  const { from, node, to } = options;
  if (from === undefined || node === undefined || to === undefined) {
    throw new Error('migrate needs --from MONITOR, --node NAME and --to URI');
  }
  const target = `migrate-${process.pid}`;
  const speed = parseSpeed(options.speed);
  const copyMode = options.copyMode ?? 'auto';
  if (!COPY_MODES.includes(copyMode)) {
    throw new Error(`--copy-mode '${copyMode}': one of ${COPY_MODES.join(', ')}`);
  }
  const plan: Plan = {
    node,
    to,
    speed,
    copyMode,
    pivot: !options.copyOnly,
    target,
    job: `job-${target}`,
  };
  const server = targetOptions(plan);
  const client = await connectMonitor(from);
  const interruption = new Interruption();
  try {
    await client.execute('blockdev-add', server);
    return await run(client, plan, interruption);
  } finally {
    interruption.stopListening();
    client.close();
  }
}

/** The target as a node. @throws Error when the URI is none that a daemon could connect to */
function targetOptions({ to, target }: Plan) {
  const { address, exportName, tls } = parseNbdTarget(to);
  if (tls) throw new Error(`--to ${to}: diskferry has no TLS; use nbd://, nbd+unix:// or ws://`);
  return {
    driver: 'nbd',
    'node-name': target,
    server: address.type === 'inet' ? { ...address, port: String(address.port) } : { ...address },
    export: exportName,
    discard: 'unmap',
  };
}

async function run(client: QmpClient, plan: Plan, interruption: Interruption): Promise<number> {
  const { node, to, target } = plan;
  let moved = false;
  try {
    if (interruption.signal === undefined) moved = await mirror(client, plan, interruption);
  } catch (error) {
    await client.execute('blockdev-del', { 'node-name': target }).catch(() => undefined);
    throw error;
  }
  if (!moved || !plan.pivot) await client.execute('blockdev-del', { 'node-name': target });
  if (!moved) {
    process.stderr.write(`diskferry: called off: '${node}' is where it was\n`);
    return interruption.exitStatus;
  }
  process.stdout.write(
    plan.pivot
      ? `migrated: '${node}' is now at ${to}; its users here are on node '${target}'\n`
      : `copied: '${node}' to ${to}\n`,
  );
  return 0;
}

/** @returns false when a signal has ended it early enough. @throws Error when it has failed */
async function mirror(client: QmpClient, plan: Plan, interruption: Interruption): Promise<boolean> {
  const { job, speed } = plan;
  const changes = new JobChanges(client, job);
  await client.execute('blockdev-mirror', {
    'job-id': job,
    device: plan.node,
    target: plan.target,
    sync: 'full',
    'copy-mode': plan.copyMode,
    'auto-dismiss': false,
    ...(speed !== undefined ? { speed } : {}),
  });
  interruption.onSignal(() => {
    // Refused when the job is about to end anyway: then it is too late, and it says how it ended.
    client.execute('block-job-cancel', { device: job, force: true }).catch(() => undefined);
  });
  try {
    const error = await follow(client, plan, changes);
    await client.execute('job-dismiss', { id: job });
    if (error === undefined) return true;
    if (interruption.signal !== undefined) return false;
    throw new Error(`the migration failed: ${error}`);
  } catch (error) {
    throw isDisconnection(error) ? unknownEnd(plan, error) : error;
  } finally {
    changes.stopListening();
  }
}

/** Goes with the job to its end. @returns what it failed with, undefined when it has succeeded */
async function follow(
  client: QmpClient,
  { job, node, pivot }: Plan,
  changes: JobChanges,
): Promise<string | undefined> {
  const bar = new ProgressBar(process.stderr, node);
  let ending = false;
  try {
    for (;;) {
      // Asked for again and again, because only an answer shows that the daemon is still there.
      const jobs = (await client.execute('query-jobs')) as readonly JsonObject[];
      const info = jobs.find(({ id }) => id === job);
      if (info === undefined) throw new Error(`somebody else has dismissed the job '${job}'`);
      bar.show(Number(info['current-progress']), Number(info['total-progress']));
      if (info.status === 'concluded') {
        return typeof info.error === 'string' ? info.error : undefined;
      }
      if (info.status === 'ready' && !ending) {
        ending = await endJob(client, job, pivot);
      }
      await changes.next(POLL_MS);
    }
  } finally {
    bar.end();
  }
}

/** Moves the users, or leaves them where they are. @returns false when the job can't do so just now */
async function endJob(client: QmpClient, job: string, pivot: boolean): Promise<boolean> {
  const verb = pivot ? 'block-job-complete' : 'block-job-cancel';
  try {
    await client.execute(verb, { device: job });
    return true;
  } catch (error) {
    if (error instanceof QmpCommandError) return false;
    throw error;
  }
}

/** Tells when a job's state changes, so that nobody waits for the next look at it. */
class JobChanges {
  readonly stopListening: () => void;
  #changed = false;
  #wake: (() => void) | undefined;

  constructor(client: QmpClient, job: string) {
    this.stopListening = client.onEvent(({ name, data }) => {
      if (name !== 'JOB_STATUS_CHANGE' || data.id !== job) return;
      this.#changed = true;
      this.#wake?.();
    });
  }

  /** Waits for a change since the last call, `timeoutMs` at most. */
  async next(timeoutMs: number): Promise<void> {
    if (!this.#changed) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timeoutMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = undefined;
    }
    this.#changed = false;
  }
}

const isDisconnection = (error: unknown): boolean =>
  error instanceof Error && 'code' in error && error.code === 'DF_DISCONNECTED';

/** The daemon may go on without us, or have ended: all that may be said is where to look. */
function unknownEnd({ job, node }: Plan, cause: unknown): Error {
  return new Error(
    `what became of the migration of '${node}' is not known; if the daemon is still there, ` +
      `query-jobs shows its job '${job}'`,
    { cause },
  );
}

/** Bytes a second, with the suffix k, M, G or T. @throws Error naming the text */
export function parseSpeed(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const match = /^(\d+)([kMGT]?)$/.exec(text);
  if (match === null) throw new Error(`--speed '${text}': a number of bytes, with k, M, G or T`);
  const speed = Number(match[1]) * 1024 ** ' kMGT'.indexOf(match[2] || ' ');
  if (!Number.isSafeInteger(speed)) throw new Error(`--speed '${text}' is too large`);
  return speed;
}
