// SPDX-License-Identifier: MIT
/**
 * Random jobs of a whole daemon, whose target is another process that is killed, full or cut off.
 * `DISKFERRY_SEED=n` runs one again, `DISKFERRY_SCHEDULES=n` more, `DISKFERRY_FIRST_SEED=n` others.
 */
import { existsSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { waitUntil } from '../support/daemon.js';
import {
  DAEMON_FAULTS,
  type DaemonFault,
  DaemonFaultBench,
} from '../support/daemon-fault-bench.js';
import { checkErrors, checkOrder, type Heard } from '../support/job-oracle.js';
import {
  describeSchedule,
  makeSchedule,
  type Schedule,
  type Step,
  seedsToRun,
  type Verb,
} from '../support/job-schedule.js';
import type { QmpReply } from '../support/qmp-client.js';
import { SeededRandom } from '../support/seeded-random.js';
import { TARGET_PEERS } from '../support/target-server.js';
import { type Scope, testScope } from '../support/temp.js';

const CLUSTER = 64 * 1024;
const SIZE = 24 * CLUSTER + 1024;
const SLOW = 1_000_000;
const OPTIONS = {
  size: SIZE,
  alignment: 512,
  faults: DAEMON_FAULTS,
  stepsMax: 14,
  slowSpeed: SLOW,
};
/** A step of waiting, milliseconds. */
const WAIT_MS = 3;
const END_TIMEOUT_MS = 60_000;

/** What a verb may be answered with; which of them fits depends on when it arrives. */
const REFUSALS =
  /in state '\w+' cannot accept command verb|^Job is already paused$|not paused$|cannot be completed$|is being finalized already$|^(Block )?[jJ]ob .*not found$|is about to end$|does not change|is currently paused$/;

type Ending = 'heal' | 'cancel-by-force' | 'quit' | 'SIGTERM';

class DaemonRun {
  readonly heard: Heard[] = [];
  readonly #patient: Promise<unknown>[] = [];
  readonly #ending: Ending;
  readonly #reconnectDelay: number;
  #targetBefore: Buffer = Buffer.alloc(0);
  #sourceBefore: Buffer = Buffer.alloc(0);
  #marked: (offset: number) => boolean = () => false;
  readonly #written = new Set<number>();
  #frozen = false;
  #pivotAsked = false;
  #descriptors = 0;
  #eventsTaken = 0;
  #error: string | undefined;

  private constructor(
    readonly schedule: Schedule,
    readonly bench: DaemonFaultBench,
    random: SeededRandom,
  ) {
    this.#ending = random.pick([
      'heal',
      'heal',
      'heal',
      'heal',
      'cancel-by-force',
      'quit',
      'SIGTERM',
    ]);
    this.#reconnectDelay = random.pick([0, 0, 20]);
  }

  static async begin(scope: Scope, schedule: Schedule): Promise<DaemonRun> {
    const { job, seed } = schedule;
    const random = new SeededRandom(seed + 77);
    const peer = TARGET_PEERS[seed % TARGET_PEERS.length] ?? 'nbdkit';
    const equal = job.sync === 'bitmap' || job.bitmapMode !== undefined;
    const sourceFails = random.chance(0.2);
    const formats = ['raw', 'raw', 'qcow2'] as const;
    const sourceFormat = random.pick(formats);
    const targetFormat = random.pick(formats);
    const options = { size: SIZE, peer, equal, sourceFails, sourceFormat, targetFormat };
    const bench = await DaemonFaultBench.start(scope, options);
    const run = new DaemonRun(schedule, bench, random);
    await run.#start();
    return run;
  }

  get told(): string {
    const { peer, sourceFormat, targetFormat } = this.bench.options;
    const disks = `${sourceFormat} to ${targetFormat} by ${peer}`;
    return `ending: ${this.#ending}, reconnect-delay: ${this.#reconnectDelay}, ${disks}`;
  }

  async #start(): Promise<void> {
    const { bench, schedule } = this;
    const { qmp } = bench;
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'b' });
    for (const step of schedule.before) {
      if (!('offset' in step)) continue;
      bench.write(step.act, step.offset, step.length);
      await bench.settled();
    }
    this.#marked = await bench.marked(SIZE);
    this.#descriptors = (await bench.daemon.descriptors()).length;
    await bench.addTarget(this.#reconnectDelay);
    this.#targetBefore = await bench.content('target');
    this.#sourceBefore = Buffer.from(bench.model);
    await qmp.execute(`blockdev-${schedule.job.kind}`, jobArguments(schedule));
  }

  async play(): Promise<void> {
    for (const step of this.schedule.steps) {
      await this.#step(step);
      this.#take();
    }
    if (this.#ending === 'quit' || this.#ending === 'SIGTERM') return this.#endDaemon();
    await this.#finish();
    await this.#check();
  }

  async #step(step: Step): Promise<void> {
    const { bench } = this;
    if (step.act === 'say') await this.#say(step.verb);
    else if (step.act === 'wait') await sleep(step.count * WAIT_MS);
    else if (step.act === 'heal') await bench.heal();
    else if (step.act === 'break') await bench.break(step.fault as DaemonFault);
    else if (step.act === 'await') await this.#await(step.state);
    else if (step.act !== 'quit' && !this.#frozen) {
      bench.write(step.act, step.offset, step.length);
      const end = step.offset + step.length;
      const granule = Math.max(CLUSTER, this.schedule.job.granularity);
      const from = step.offset - (step.offset % granule);
      for (let at = from; at < Math.ceil(end / granule) * granule; at += CLUSTER) {
        this.#written.add(at);
      }
    }
  }

  /** Puts the events that have come into words. */
  #take(): void {
    const { events } = this.bench.qmp;
    for (; this.#eventsTaken < events.length; this.#eventsTaken++) {
      const { event, data = {} } = events[this.#eventsTaken] ?? { event: '' };
      if (event === 'JOB_STATUS_CHANGE') {
        this.heard.push({ what: 'state', state: String(data.status) });
      } else if (event === 'BLOCK_JOB_COMPLETED' || event === 'BLOCK_JOB_CANCELLED') {
        this.heard.push({ what: 'end' });
        this.#error = event === 'BLOCK_JOB_CANCELLED' ? 'cancelled' : (data.error as string);
      } else if (event === 'BLOCK_JOB_ERROR') {
        const [operation, action] = [String(data.operation), String(data.action)];
        this.heard.push({ what: 'error', operation, action, noSpace: this.#noSpace(operation) });
      }
    }
  }

  /** Whether an error can only be, or can't be, a lack of space; undefined when it may be. */
  #noSpace(operation: string): boolean | undefined {
    const { schedule, bench } = this;
    if (operation === 'read' || !bench.server.canBeFull) return false;
    const faults = schedule.steps.flatMap((step) => (step.act === 'break' ? [step.fault] : []));
    if (!faults.includes('target full')) return false;
    return faults.every((fault) => fault === 'target full') ? true : undefined;
  }

  get #state(): string {
    this.#take();
    const states = this.heard.flatMap((entry) => (entry.what === 'state' ? [entry.state] : []));
    return states.at(-1) ?? '';
  }

  get #over(): boolean {
    return ['concluded', 'null'].includes(this.#state);
  }

  async #await(state: 'ready' | 'pending' | 'over'): Promise<void> {
    for (let n = 0; n < 20 && this.#state !== state && !this.#over; n++) await sleep(WAIT_MS);
  }

  async #say(verb: Verb): Promise<void> {
    const { bench } = this;
    if (verb === 'cancel') {
      // What is copied until the end of the job is then what there is now.
      this.#frozen = true;
      if (this.schedule.job.kind === 'mirror' && !this.#blocking) await bench.settled();
    }
    this.#take();
    this.heard.push({ what: 'said', verb });
    const [command, args] = commandOf(verb, this.schedule);
    if (verb === 'finalize') {
      this.#patient.push(
        bench.patient.reply(command, args).then((reply) => checkReply(verb, reply)),
      );
      return;
    }
    const reply = await bench.qmp.reply(command, args);
    this.#take();
    this.heard.push({ what: 'said', verb });
    checkReply(verb, reply);
    if (verb === 'complete' && reply.error === undefined) this.#pivotAsked = true;
  }

  get #blocking(): boolean {
    const { job, steps } = this.schedule;
    const said = steps.some((step) => step.act === 'say' && step.verb === 'write-blocking');
    return said || job.copyMode !== 'background';
  }

  /** Brings the job to its end: with all well again, or by force with all as it is. */
  async #finish(): Promise<void> {
    const { bench, schedule } = this;
    if (this.#ending === 'cancel-by-force') await this.#say('cancel-by-force');
    else await bench.heal();
    const complete = schedule.seed % 2 === 0;
    let finalized = false;
    let ended = false;
    for (const deadline = performance.now() + END_TIMEOUT_MS; !this.#over; await sleep(10)) {
      if (performance.now() > deadline) throw new Error(`the job hangs in state '${this.#state}'`);
      if (this.#ending === 'cancel-by-force') continue;
      if (this.#state === 'paused' || this.#state === 'standby') {
        await this.#checkPaused();
        await this.#say('resume');
      }
      if (this.#state === 'running') await this.#say('fast');
      if (this.#state === 'ready' && !ended) {
        await this.#say(complete ? 'complete' : 'cancel');
        ended = true;
      }
      if (this.#state === 'pending' && !schedule.job.autoFinalize && !finalized) {
        await this.#say('finalize');
        finalized = true;
      }
      const endless = schedule.job.kind === 'backup' && schedule.job.sync === 'none';
      if (endless && this.#state === 'running') await this.#say('cancel');
    }
    await bench.heal();
    await Promise.all(this.#patient);
    await bench.settled();
    if (this.#state === 'concluded') await this.#say('dismiss');
    await waitUntil(() => this.#state === 'null', { what: () => 'the job to go' });
  }

  /** A query tells why it does not go on. */
  async #checkPaused(): Promise<void> {
    const [info] = await this.bench.qmp.execute<Record<string, unknown>[]>('query-block-jobs');
    if (info?.status !== 'paused' && info?.status !== 'standby') return;
    const since = this.heard.findLastIndex(
      (entry) => entry.what === 'said' && entry.verb === 'resume',
    );
    const stopped = this.heard
      .slice(since + 1)
      .some((entry) => entry.what === 'error' && entry.action === 'stop');
    expect(info.paused, 'paused').toBe(true);
    if (stopped) expect(info['io-status']).toMatch(/^(failed|nospace)$/);
  }

  async #check(): Promise<void> {
    const { heard, schedule, bench } = this;
    checkOrder(heard);
    checkErrors(heard, schedule.job);
    const { qmp } = bench;
    await bench.client.flush();
    expect(await qmp.execute('query-jobs')).toEqual([]);
    const reported = heard.some((entry) => entry.what === 'error' && entry.action === 'report');
    if (this.#error === undefined) expect(reported, 'success after a reported error').toBe(false);
    else expect(this.#error, 'text of the error').not.toBe('');
    const pivoted = this.#pivotAsked && this.#error === undefined;
    const mayFail =
      pivoted || (schedule.job.kind === 'backup' && schedule.job.onCbwError !== 'break-snapshot');
    if (!mayFail) expect(bench.refused, 'writes that failed').toEqual([]);
    if (this.#error === undefined) await this.#checkTarget(pivoted);
    if (!pivoted) {
      expect(await bench.firstDifference(bench.model), 'the source').toBe(-1);
      await qmp.execute('blockdev-del', { 'node-name': 'target' });
      await this.#checkMarks();
      const count = async () => (await bench.daemon.descriptors()).length;
      await waitUntil(async () => (await count()) <= this.#descriptors, {
        what: () => `no more than ${this.#descriptors} descriptors`,
      });
    }
    await this.#checkGuest();
    await this.#endDaemon();
  }

  async #checkGuest(): Promise<void> {
    const { bench } = this;
    const failures = bench.refused.length;
    bench.write('write', 4096, 4096);
    await bench.settled();
    expect(bench.refused.length, 'a write after the job failed').toBe(failures);
  }

  /** The target is what the job promises. */
  async #checkTarget(pivoted: boolean): Promise<void> {
    const { bench, schedule } = this;
    const { kind, sync } = schedule.job;
    const content = await bench.content('target');
    const right = Buffer.from(kind === 'backup' ? this.#sourceBefore : bench.model);
    for (const { offset, length } of pivoted ? bench.refused : []) {
      right.copy(content, offset, offset, offset + length);
    }
    for (let at = 0; at < SIZE; at += CLUSTER) {
      const end = Math.min(at + CLUSTER, SIZE);
      const marked = sync === 'full' || sync === 'top' || (sync === 'bitmap' && this.#marked(at));
      const written = kind === 'mirror' && this.#written.has(at);
      const part = content.subarray(at, end);
      if ((marked || written) && part.equals(right.subarray(at, end))) continue;
      if (!marked && part.equals(this.#targetBefore.subarray(at, end))) continue;
      if (sync === 'none' && written) continue; // not all of what was written in part comes over
      throw new Error(`the target is wrong in the cluster at ${at}, copied: ${marked || written}`);
    }
  }

  /** No difference without a mark, for a copy that was equal before. */
  async #checkMarks(): Promise<void> {
    const { bench, schedule } = this;
    if (schedule.job.bitmapMode === undefined) return;
    const marked = await bench.marked(SIZE);
    const [source, target] = [await bench.content('source'), await bench.content('target')];
    const lost: number[] = [];
    for (let at = 0; at < SIZE; at += CLUSTER) {
      const end = Math.min(at + CLUSTER, SIZE);
      if (!source.subarray(at, end).equals(target.subarray(at, end)) && !marked(at)) lost.push(at);
    }
    expect(lost, 'differences without a mark').toEqual([]);
  }

  /** The target can be reached and does not answer, and nobody has mended that. */
  get #isSilent(): boolean {
    const { steps } = this.schedule;
    const last = (wanted: (step: Step) => boolean): number => steps.findLastIndex(wanted);
    const silent = last((step) => step.act === 'break' && step.fault === 'wire silent');
    return silent > last((step) => step.act === 'heal') && this.#ending !== 'heal';
  }

  /** It ends with 0 and leaves nothing; what was acknowledged is in the source. */
  async #endDaemon(): Promise<void> {
    const { bench } = this;
    const { daemon, paths } = bench;
    if (this.#ending === 'quit') {
      bench.qmp.send('{"execute": "quit"}\n');
      await bench.qmp.nextReply('quit');
    } else process.kill(daemon.pid, 'SIGTERM');
    const exit = await Promise.race([
      daemon.exited,
      sleep(END_TIMEOUT_MS, undefined, { ref: false }),
    ]);
    // What a target that says nothing has not flushed is given up after a while, which the status tells.
    const gaveUp = this.#isSilent && daemon.log.includes('gave up closing nodes');
    expect(exit, daemon.log).toEqual({ code: gaveUp ? 1 : 0, signal: null });
    await bench.settled();
    expect(await readdir(daemon.dir), 'files that are left').toEqual([]);
    const sockets = [paths.nbd, paths.patient].filter((path) => existsSync(path));
    expect(sockets, 'sockets that are left').toEqual([]);
    if (this.#pivotAsked) return;
    expect(await bench.firstDifference(bench.model), 'the source').toBe(-1);
  }
}

function checkReply(verb: Verb, { error }: QmpReply): void {
  if (error !== undefined && !REFUSALS.test(error.desc)) {
    throw new Error(`${verb} was refused: ${error.class}: ${error.desc}`);
  }
}

function commandOf(verb: Verb, { seed }: Schedule): [string, object] {
  const device = { device: 'j' };
  const id = { id: 'j' };
  const either = (name: string): [string, object] =>
    seed % 2 === 0 ? [`block-job-${name}`, device] : [`job-${name}`, id];
  if (verb === 'slow') return ['block-job-set-speed', { ...device, speed: SLOW }];
  if (verb === 'fast') return ['block-job-set-speed', { ...device, speed: 0 }];
  if (verb === 'cancel') return ['block-job-cancel', device];
  if (verb === 'cancel-by-force') return ['block-job-cancel', { ...device, force: true }];
  if (verb === 'finalize' || verb === 'dismiss') return [`job-${verb}`, id];
  if (verb === 'write-blocking' || verb === 'background') {
    return ['block-job-change', { ...id, type: 'mirror', 'copy-mode': verb }];
  }
  return either(verb);
}

function jobArguments({ job, seed }: Schedule): object {
  const incremental =
    job.sync === 'bitmap' && job.bitmapMode === 'on-success' && seed % 3 === 0
      ? 'incremental'
      : job.sync;
  const common = {
    ...{ 'job-id': 'j', device: 'disk', target: 'target', sync: incremental, speed: job.speed },
    ...(job.bitmapMode === undefined ? {} : { bitmap: 'b', 'bitmap-mode': job.bitmapMode }),
    ...{ 'on-source-error': job.onSourceError, 'on-target-error': job.onTargetError },
    ...{ 'auto-finalize': job.autoFinalize, 'auto-dismiss': job.autoDismiss },
  };
  if (job.kind === 'backup') return { ...common, 'on-cbw-error': job.onCbwError };
  const copyMode = job.copyMode === undefined ? {} : { 'copy-mode': job.copyMode };
  const how = { granularity: job.granularity, 'buf-size': job.window * CLUSTER };
  return { ...common, ...how, ...copyMode };
}

describe('a job of a daemon under random writes, verbs and faults', () => {
  it.each(seedsToRun(64))('keeps its promises, seed %i', { timeout: 120_000 }, async (seed) => {
    const schedule = makeSchedule(seed, OPTIONS);
    let run: DaemonRun | undefined;
    try {
      run = await DaemonRun.begin(testScope(), schedule);
      await run.play();
    } catch (error) {
      const heard = run?.heard.map((entry) => Object.values(entry).join(' ')).join(', ');
      const text = `${describeSchedule(schedule)}\n${run?.told}\nheard: ${heard}`;
      throw new Error(text, { cause: error });
    }
  });
});
