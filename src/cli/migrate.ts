// SPDX-License-Identifier: MIT
/**
 * `diskferry migrate`: moves a disk that is in use to another NBD server. Its users go on working;
 * at the end they work on the target without having noticed.
 */

import { parseNbdTarget } from '../../protocol/nbd/uri.js';
import type { JsonObject } from '../../protocol/qapi/types.js';
import { QmpClient } from '../qmp/client.js';
import { ProgressBar } from './progress.js';
import { parseMonitor } from './qmp.js';

export interface MigrateOptions {
  readonly from?: string | undefined;
  readonly node?: string | undefined;
  readonly to?: string | undefined;
  readonly speed?: string | undefined;
  readonly copyOnly: boolean;
}

/** Time between looks at the job, milliseconds. */
const POLL_MS = 200;

export async function migrate(options: MigrateOptions): Promise<number> {
  const { from, node, to } = options;
  if (from === undefined || node === undefined || to === undefined) {
    throw new Error('migrate needs --from MONITOR, --node NAME and --to URI');
  }
  const client = await QmpClient.connect(parseMonitor(from));
  try {
    await run(client, { node, to, speed: parseSpeed(options.speed), pivot: !options.copyOnly });
  } finally {
    client.close();
  }
  return 0;
}

interface Plan {
  readonly node: string;
  readonly to: string;
  readonly speed: number | undefined;
  readonly pivot: boolean;
}

async function run(client: QmpClient, plan: Plan): Promise<void> {
  const target = `migrate-${process.pid}`;
  const { address, exportName, tls } = parseNbdTarget(plan.to);
  if (tls) throw new Error(`--to ${plan.to}: diskferry has no TLS; use nbd:// or nbd+unix://`);
  if (address.type === 'websocket') throw new Error(`--to ${plan.to}: a server on TCP or UNIX`);
  await client.execute('blockdev-add', {
    driver: 'nbd',
    'node-name': target,
    server: address.type === 'unix' ? { ...address } : { ...address, port: String(address.port) },
    export: exportName,
    discard: 'unmap',
  });
  try {
    await mirror(client, plan, target);
  } catch (error) {
    await client.execute('blockdev-del', { 'node-name': target }).catch(() => undefined);
    throw error;
  }
  if (!plan.pivot) await client.execute('blockdev-del', { 'node-name': target });
  process.stdout.write(
    plan.pivot ? `migrated: '${plan.node}' is now at ${plan.to}\n` : `copied to ${plan.to}\n`,
  );
}

async function mirror(client: QmpClient, plan: Plan, target: string): Promise<void> {
  const id = `job-${target}`;
  const ended = jobConcluded(client, id);
  await client.execute('blockdev-mirror', {
    'job-id': id,
    device: plan.node,
    target,
    sync: 'full',
    'auto-dismiss': false,
    ...(plan.speed !== undefined ? { speed: plan.speed } : {}),
  });
  const bar = new ProgressBar(process.stderr, plan.node);
  try {
    await followUntilReady(client, id, bar, ended);
    const state = await jobInfo(client, id);
    if (state?.status === 'ready') {
      const verb = plan.pivot ? 'block-job-complete' : 'block-job-cancel';
      await client.execute(verb, { device: id });
    }
    await ended;
  } finally {
    bar.end();
  }
  const jobs = (await client.execute('query-jobs')) as readonly JsonObject[];
  const error = jobs.find((job) => job.id === id)?.error;
  await client.execute('job-dismiss', { id });
  if (typeof error === 'string') throw new Error(`the migration failed: ${error}`);
}

function jobConcluded(client: QmpClient, id: string): Promise<void> {
  return new Promise((resolve) => {
    const stop = client.onEvent(({ name, data }) => {
      if (name !== 'JOB_STATUS_CHANGE' || data.id !== id || data.status !== 'concluded') return;
      stop();
      resolve();
    });
  });
}

async function followUntilReady(
  client: QmpClient,
  id: string,
  bar: ProgressBar,
  ended: Promise<void>,
): Promise<void> {
  for (;;) {
    const job = await jobInfo(client, id);
    if (job === undefined || job.status === 'concluded') return;
    bar.show(Number(job.offset), Number(job.len));
    if (job.status === 'ready') return;
    const pause = new Promise<void>((resolve) => setTimeout(resolve, POLL_MS));
    await Promise.race([pause, ended]);
  }
}

async function jobInfo(client: QmpClient, id: string): Promise<JsonObject | undefined> {
  const jobs = (await client.execute('query-block-jobs')) as readonly JsonObject[];
  return jobs.find((job) => job.device === id);
}

/** Bytes a second, with the suffix k, M, G or T. */
function parseSpeed(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const match = /^(\d+)([kMGT]?)$/.exec(text);
  if (match === null) throw new Error(`--speed '${text}': a number of bytes, with k, M, G or T`);
  return Number(match[1]) * 1024 ** ' kMGT'.indexOf(match[2] || ' ');
}
