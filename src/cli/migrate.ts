// SPDX-License-Identifier: MIT
/**
 * `diskferry migrate`: moves a disk that is in use to another NBD server. Its users go on working;
 * at the end they work on the target without having noticed.
 */
import { parseNbdTarget } from '../../protocol/nbd/uri.js';
import type { JsonObject } from '../../protocol/qapi/types.js';
import { toError } from '../base/errors.js';
import { type QmpClient, QmpCommandError } from '../qmp/client.js';
import { BitmapCarrier } from './carry-bitmaps.js';
import { addressOfNode, diskOfJob } from './earlier-migration.js';
import { Interruption } from './interruption.js';
import { JobChanges } from './job-changes.js';
import {
  type BitmapOptions,
  bitmapEnds,
  leftBehind,
  settleBitmaps,
  WITH_BITMAPS,
} from './migrate-bitmaps.js';
import { ProgressBar } from './progress.js';
import { connectMonitor } from './qmp.js';

export interface MigrateOptions extends BitmapOptions {
  readonly from?: string | undefined;
  readonly node?: string | undefined;
  readonly to?: string | undefined;
  readonly speed?: string | undefined;
  readonly copyMode?: string | undefined;
  readonly copyOnly: boolean;
  /** The job of an earlier call that did not see its end: it is gone on with. */
  readonly job?: string | undefined;
}

/** When a write to the disk reaches the target. 'auto': writers are slowed down when it does not end. */
const COPY_MODES = ['background', 'write-blocking', 'auto'];

/** Time between looks at the job, milliseconds. */
const POLL_MS = 200;

interface Plan {
  readonly node: string;
  readonly to: string;
  readonly pivot: boolean;
  /** Name of the node that stands for the target in the source's daemon. */
  readonly target: string;
  /** Name of the job. */
  readonly job: string;
  /** The job is that of an earlier call. */
  readonly begunBefore?: boolean;
  /** Of the bitmaps that go along. */
  readonly carrier?: BitmapCarrier | undefined;
}

/** @returns exit status: 0, or 128 and the signal's number when one has called it off */
export async function migrate(options: MigrateOptions): Promise<number> {
  const interruption = new Interruption();
  try {
    return await (options.job === undefined
      ? begin(options, interruption)
      : goOn(options, interruption));
  } finally {
    interruption.stopListening();
  }
}

async function begin(options: MigrateOptions, interruption: Interruption): Promise<number> {
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
  const pivot = !options.copyOnly;
  const ends = bitmapEnds(options);
  const job = `job-${target}${ends === undefined ? '' : WITH_BITMAPS}`;
  const plan: Plan = { node, to, pivot, target, job };
  const server = targetOptions(plan);
  return withMonitor(from, plan, interruption, async (client) => {
    const checkpoint = (): void => {
      if (interruption.signal !== undefined) throw new Error('the migration was called off');
    };
    const shared = { source: client, from, node, to: parseNbdTarget(to), tag: target, checkpoint };
    const carrier = ends && (await BitmapCarrier.open({ ...shared, ...ends }));
    try {
      await client.execute('blockdev-add', server);
      const start = (): Promise<void> => startJob(client, plan, { from, copyMode, speed });
      return await run(client, { ...plan, carrier }, interruption, start);
    } finally {
      await carrier?.close();
    }
  });
}

/** With the job of an earlier call, which has ended or is still at work. */
async function goOn(options: MigrateOptions, interruption: Interruption): Promise<number> {
  const { from, job = '', copyOnly } = options;
  const given = (['node', 'to', 'speed', 'copyMode'] as const).filter(
    (name) => options[name] !== undefined,
  );
  if (from === undefined || given.length > 0 || bitmapEnds(options) !== undefined) {
    throw new Error('migrate --job JOB needs --from MONITOR, and takes --copy-only and no more');
  }
  const target = targetOfJob(job);
  if (target === undefined) throw new Error(`--job '${job}': its name is none that migrate gives`);
  if (job.endsWith(WITH_BITMAPS)) {
    const advice = `'diskferry cancel ${from} ${job}' calls it off; then begin anew`;
    throw new Error(`--job '${job}': the disk's bitmaps would stay behind. ${advice}`);
  }
  const to = `node '${target}'`;
  const plan: Plan = { node: job, to, pivot: !copyOnly, target, job, begunBefore: true };
  return withMonitor(from, plan, interruption, async (client) => {
    const jobs = (await client.execute('query-jobs')) as readonly JsonObject[];
    if (!jobs.some(({ id }) => id === job)) throw new Error(`there is no job '${job}'`);
    const node = (await diskOfJob(client, job, target)) ?? plan.node;
    const to = (await addressOfNode(client, target)) ?? plan.to;
    return run(client, { ...plan, node, to }, interruption);
  });
}

/** Name of the node that a migration's job copies to; undefined when it is no such job. */
export function targetOfJob(job: string): string | undefined {
  const name = job.endsWith(WITH_BITMAPS) ? job.slice(0, -WITH_BITMAPS.length) : job;
  return /^job-(migrate-\d{1,10})$/.exec(name)?.[1];
}

/** Connects, unless a signal comes before that. */
async function withMonitor(
  from: string,
  plan: Plan,
  interruption: Interruption,
  act: (client: QmpClient) => Promise<number>,
): Promise<number> {
  const controller = new AbortController();
  interruption.onSignal(() => controller.abort());
  let client: QmpClient;
  try {
    client = await connectMonitor(from, controller.signal);
  } catch (error) {
    if (interruption.signal === undefined) throw error;
    return calledOff(plan, interruption);
  }
  try {
    return await act(client);
  } finally {
    client.close();
  }
}

function calledOff({ node }: Plan, interruption: Interruption): number {
  process.stderr.write(`diskferry: called off: '${node}' is where it was\n`);
  return interruption.exitStatus;
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

/** @param start makes the job, where there is none yet */
async function run(
  client: QmpClient,
  plan: Plan,
  interruption: Interruption,
  start?: () => Promise<void>,
): Promise<number> {
  const { node, to, target, carrier } = plan;
  let moved = false;
  try {
    const began = start === undefined || interruption.signal === undefined;
    if (began) moved = await mirror(client, plan, interruption, start);
  } catch (error) {
    if (error instanceof EndedByOthers) throw error;
    await client.execute('blockdev-del', { 'node-name': target }).catch(() => undefined);
    throw error;
  }
  if (!moved || !plan.pivot) await client.execute('blockdev-del', { 'node-name': target });
  if (!moved) return calledOff(plan, interruption);
  if (carrier !== undefined) await settleBitmaps(carrier, plan);
  process.stdout.write(
    plan.pivot
      ? `migrated: '${node}' is now at ${to}; its users here are on node '${target}'\n`
      : `copied: '${node}' to ${to}\n`,
  );
  if (carrier !== undefined) {
    process.stdout.write(`bitmaps on node '${carrier.node}' there: ${carrier.names.join(', ')}\n`);
  }
  return 0;
}

interface JobStart {
  readonly from: string;
  readonly copyMode: string;
  /** Bytes a second. */
  readonly speed: number | undefined;
}

async function startJob(
  client: QmpClient,
  { job, node, target }: Plan,
  { from, copyMode, speed }: JobStart,
): Promise<void> {
  try {
    await client.execute('blockdev-mirror', {
      'job-id': job,
      device: node,
      target,
      sync: 'full',
      'copy-mode': copyMode,
      'auto-dismiss': false,
      ...(speed !== undefined ? { speed } : {}),
    });
  } catch (error) {
    if (!(error instanceof QmpCommandError && error.message.includes('is busy'))) throw error;
    const jobs = (await client.execute('query-jobs')) as readonly JsonObject[];
    const earlier = jobs.find(({ id }) => targetOfJob(String(id)) !== undefined);
    if (earlier === undefined) throw error;
    const { id, status } = earlier;
    const goesOn = `'diskferry migrate --from ${from} --job ${id}' goes on with it, `;
    throw new Error(
      `${error.message}; the job of an earlier migrate is still there: ${id}, ${status}; ` +
        (String(id).endsWith(WITH_BITMAPS) ? '' : goesOn) +
        `'diskferry cancel ${from} ${id}' calls it off`,
    );
  }
}

/** @returns false when a signal has ended it early enough. @throws Error when it has failed */
async function mirror(
  client: QmpClient,
  plan: Plan,
  interruption: Interruption,
  start?: () => Promise<void>,
): Promise<boolean> {
  const { job } = plan;
  const changes = new JobChanges(client, job);
  await start?.();
  interruption.onSignal(() => {
    // Refused when the job is about to end anyway: then it is too late, and it says how it ended.
    client.execute('block-job-cancel', { device: job, force: true }).catch(() => undefined);
  });
  try {
    const { error, bitmapError } = await follow(client, plan, changes);
    await client.execute('job-dismiss', { id: job });
    if (error === undefined && bitmapError === undefined) return true;
    if (interruption.signal !== undefined && error !== undefined) return false;
    if (bitmapError !== undefined) throw leftBehind(plan, error, bitmapError);
    throw new Error(`the migration failed: ${error}`);
  } catch (error) {
    if (error instanceof EndedByOthers) plan.carrier?.leave();
    throw isDisconnection(error) ? unknownEnd(plan, error) : error;
  } finally {
    changes.stopListening();
  }
}

/** A job that ends well does so in one of two ways, and which one nobody can be asked afterwards. */
class EndedByOthers extends Error {
  constructor({ job, target, node }: Plan) {
    super(
      `somebody else has ended the job '${job}', or an earlier migrate has; it did not fail. Whether ` +
        `users of '${node}' are on node '${target}' now, query-block-exports tells`,
    );
  }
}

interface End {
  /** What the job failed with; undefined when it has succeeded. */
  readonly error: string | undefined;
  /** Why the bitmaps could not be carried along. The job was cancelled for that. */
  readonly bitmapError: Error | undefined;
}

/** Goes with the job to its end. @throws EndedByOthers */
async function follow(client: QmpClient, plan: Plan, changes: JobChanges): Promise<End> {
  const { job, node, carrier } = plan;
  const bar = new ProgressBar(process.stderr, node);
  let begunBefore = plan.begunBefore === true;
  let ending = false;
  let bitmapError: Error | undefined;
  let carried = carrier === undefined;
  try {
    for (;;) {
      // Asked for again and again, because only an answer shows that the daemon is still there.
      const jobs = (await client.execute('query-jobs')) as readonly JsonObject[];
      const info = jobs.find(({ id }) => id === job);
      if (info === undefined) {
        carrier?.leave();
        throw new Error(`somebody else has dismissed the job '${job}'`);
      }
      const done = Number(info['current-progress']);
      if (begunBefore) bar.beginAt(done);
      begunBefore = false;
      bar.show(done, Number(info['total-progress']));
      if (info.status === 'concluded') {
        if (typeof info.error === 'string') return { error: info.error, bitmapError };
        if (ending) return { error: undefined, bitmapError };
        await client.execute('job-dismiss', { id: job });
        throw new EndedByOthers(plan);
      }
      if (info.status === 'ready' && !carried) {
        bitmapError = await failureOf(carrier?.transfer());
        carried = true;
      }
      const failed = bitmapError !== undefined;
      if ((info.status === 'ready' || failed) && !ending) {
        ending = await endJob(client, plan, { giveUp: failed });
      }
      await changes.next(POLL_MS);
    }
  } finally {
    bar.end();
  }
}

async function failureOf(work: Promise<void> | undefined): Promise<Error | undefined> {
  try {
    await work;
    return undefined;
  } catch (error) {
    return toError(error);
  }
}

/** Moves the users, or leaves them where they are. @returns false when the job can't do so just now */
async function endJob(
  client: QmpClient,
  { job, pivot }: Plan,
  { giveUp }: { readonly giveUp: boolean },
): Promise<boolean> {
  const verb = pivot && !giveUp ? 'block-job-complete' : 'block-job-cancel';
  try {
    await client.execute(verb, { device: job, ...(giveUp ? { force: true } : {}) });
    return true;
  } catch (error) {
    if (error instanceof QmpCommandError) return false;
    throw error;
  }
}

const isDisconnection = (error: unknown): boolean =>
  error instanceof Error && 'code' in error && error.code === 'DF_DISCONNECTED';

/** The daemon may go on without us, or have ended: all that may be said is where to look. */
function unknownEnd({ job, node, carrier }: Plan, cause: unknown): Error {
  const bitmaps = carrier?.leave() === true ? '; its bitmaps are at the target' : '';
  return new Error(
    `what became of the migration of '${node}' is not known; if the daemon is still there, ` +
      `query-jobs shows its job '${job}'${bitmaps}`,
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
