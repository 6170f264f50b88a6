// SPDX-License-Identifier: MIT
/** `diskferry jobs` and `diskferry cancel`: the jobs of a daemon, whoever has begun them. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { JsonObject } from '../../protocol/qapi/types.js';
import { errorText } from '../base/error-text.js';
import { toError } from '../base/errors.js';
import type { QmpClient } from '../qmp/client.js';
import { targetOfJob } from './migrate.js';
import { formatBytes } from './progress.js';
import { connectMonitor } from './qmp.js';

/** Time between looks at a job that ends, milliseconds. */
const POLL_MS = 50;
/** Time for a job to end, milliseconds: longer than users may wait for a job's last copies. */
const END_MS = 60_000;

/** @param words the monitor */
export async function jobs(words: readonly string[]): Promise<number> {
  const [monitor, ...more] = words;
  if (monitor === undefined || more.length > 0) throw new Error('usage: diskferry jobs MONITOR');
  const client = await connectMonitor(monitor);
  try {
    for (const job of await queryJobs(client)) process.stdout.write(`${describeJob(job)}\n`);
    return 0;
  } finally {
    client.close();
  }
}

/** A line of `query-jobs`, for people. */
function describeJob(job: JsonObject): string {
  const { id, type, status, error } = job;
  const [done, total] = [Number(job['current-progress']), Number(job['total-progress'])];
  const percent = total > 0 ? `${Math.floor(Math.min(1, done / total) * 100)}%` : '-';
  const bytes = `${formatBytes(done)} of ${formatBytes(total)}`;
  const failure = typeof error === 'string' ? `  failed: ${error}` : '';
  return `${id}  ${type}  ${status}  ${percent}  ${bytes}${failure}`;
}

/** @param words monitor and job */
export async function cancel(words: readonly string[]): Promise<number> {
  const [monitor, id, ...more] = words;
  if (monitor === undefined || id === undefined || more.length > 0) {
    throw new Error('usage: diskferry cancel MONITOR JOB');
  }
  const client = await connectMonitor(monitor);
  try {
    const job = await findJob(client, id);
    if (job === undefined) throw new Error(`there is no job '${id}'`);
    if (job.status !== 'concluded') await client.execute('job-cancel', { id });
    const error = await end(client, id);
    if (job.status === 'concluded') process.stdout.write(`dismissed: ${describeJob(job)}\n`);
    else process.stdout.write(`${describeEnd(id, error)}\n`);
    if (error !== undefined) await removeTarget(client, id);
    return 0;
  } finally {
    client.close();
  }
}

function describeEnd(id: string, error: string | undefined): string {
  if (error === undefined) return `too late: '${id}' had come to its end`;
  if (error === 'Operation canceled') return `called off: '${id}'`;
  return `called off: '${id}', which had failed: ${error}`;
}

async function queryJobs(client: QmpClient): Promise<readonly JsonObject[]> {
  return (await client.execute('query-jobs')) as readonly JsonObject[];
}

async function findJob(client: QmpClient, wanted: string): Promise<JsonObject | undefined> {
  return (await queryJobs(client)).find(({ id }) => id === wanted);
}

/** Waits until it has ended, and dismisses it. @returns its error, when it could be asked for that */
async function end(client: QmpClient, id: string): Promise<string | undefined> {
  for (const deadline = performance.now() + END_MS; ; await sleep(POLL_MS)) {
    const job = await findJob(client, id);
    if (job === undefined) return undefined;
    if (job.status === 'concluded') {
      await client.execute('job-dismiss', { id });
      return typeof job.error === 'string' ? job.error : undefined;
    }
    if (performance.now() > deadline) {
      throw new Error(`the job '${id}' was told to end and has not yet: it is ${job.status}`);
    }
  }
}

/** The node that a migration's job copied to, which has failed: nobody else uses it. */
async function removeTarget(client: QmpClient, job: string): Promise<void> {
  const target = targetOfJob(job);
  if (target === undefined) return;
  await client.execute('blockdev-del', { 'node-name': target }).catch((error: unknown) => {
    const why = errorText(toError(error));
    process.stderr.write(`diskferry: node '${target}' stays: ${why}\n`);
  });
}
