// SPDX-License-Identifier: MIT
/**
 * Random jobs under random writers, verbs and faults, in this process. `DISKFERRY_SEED=n` runs one again,
 * `DISKFERRY_SCHEDULES=n` more of them, `DISKFERRY_FIRST_SEED=n` others.
 */
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { BlockError, errnoName } from '../../src/base/errors.js';
import { drained } from '../../src/block/drain.js';
import { BackupJob } from '../../src/job/backup.js';
import type { BlockJob } from '../../src/job/block-job.js';
import { JobTransaction } from '../../src/job/job-transaction.js';
import { MirrorJob } from '../../src/job/mirror.js';
import { FAULTS, type Fault, FaultBench } from '../support/fault-bench.js';
import { checkErrors, checkOrder, checkVerb, type Heard } from '../support/job-oracle.js';
import {
  describeSchedule,
  makeSchedule,
  type Schedule,
  type Step,
  seedsToRun,
  type Verb,
} from '../support/job-schedule.js';

const CLUSTER = 64 * 1024;
const SIZE = 12 * CLUSTER + 1024;
const SLOW = 2_000_000;
const OPTIONS = { size: SIZE, alignment: 512, faults: FAULTS, stepsMax: 30, slowSpeed: SLOW };
/** Turns of the event loop in which a write has to end that nothing may hold up. */
const WRITE_TURNS = 400;
/** A job that can't be brought to an end in this time hangs, milliseconds. */
const END_TIMEOUT_MS = 60_000;

class Run {
  readonly heard: Heard[] = [];
  readonly #pending: Promise<unknown>[] = [];
  /** What the target held when the job began, and when its end had taken effect. */
  readonly #targetBefore: Buffer;
  #targetAfter: Buffer | undefined;
  readonly #sourceBefore: Buffer;
  readonly #marksBefore: Set<number>;
  /** Clusters that are written since the job began, whole granules of it. */
  readonly #written = new Set<number>();
  #pivotAsked = false;
  /** Writes go, or may go, to both. */
  #blocking = false;

  private constructor(
    readonly schedule: Schedule,
    readonly bench: FaultBench,
    readonly job: BlockJob,
    before: { target: Buffer; source: Buffer; marks: Set<number> },
  ) {
    this.#targetBefore = before.target;
    this.#sourceBefore = before.source;
    this.#marksBefore = before.marks;
  }

  /** The job is made, but not started. @param transaction jobs that end together with it */
  static async begin(schedule: Schedule, transaction?: JobTransaction): Promise<Run> {
    const { job: choice } = schedule;
    const bench = await FaultBench.make(SIZE, { equal: choice.sync === 'bitmap' });
    if (choice.sync !== 'bitmap') bench.bitmap.setDirty(0, SIZE);
    for (const step of schedule.before) {
      if ('offset' in step) await bench.write(step.act, step.offset, step.length);
    }
    const before = {
      target: Buffer.from(bench.copy.data),
      source: Buffer.from(bench.disk.data),
      marks: bench.marks(CLUSTER),
    };
    const early: Heard[] = [];
    let hear = (entry: Heard): void => {
      early.push(entry);
    };
    listen(bench, (entry) => hear(entry));
    const job = await makeJob(bench, schedule, transaction);
    const run = new Run(schedule, bench, job, before);
    run.heard.push(...early);
    hear = (entry) => run.#hear(entry);
    return run;
  }

  /** Whose failure breaks this job off as well. */
  partner: Run | undefined;

  #hear(entry: Heard): void {
    this.heard.push(entry);
    if (entry.what === 'state' && entry.state === 'waiting') this.bench.record();
    if (entry.what === 'end') this.#targetAfter = Buffer.from(this.bench.copy.data);
  }

  async play(): Promise<void> {
    for (const step of this.schedule.steps) {
      await this.#step(step);
      await turn();
    }
    await this.#finish();
  }

  async #step(step: Step): Promise<void> {
    const { bench, job } = this;
    if (step.act === 'say') this.#say(step.verb);
    else if (step.act === 'wait') for (let n = step.count; n > 0; n--) await turn();
    else if (step.act === 'heal') bench.heal();
    else if (step.act === 'await') await this.#await(step.state);
    else if (step.act === 'quit') {
      this.heard.push({ what: 'said', verb: 'quit' });
      this.#pending.push(bench.registry.cancelAll());
    } else if (step.act === 'break') {
      if (step.fault === 'drain') {
        this.#pending.push(drained([bench.source, bench.target], () => turn()));
      } else bench.break(step.fault as Fault);
    } else {
      const written = bench.write(step.act, step.offset, step.length);
      this.#noteWritten(step.offset, step.length);
      if (job.type === 'mirror') await this.#undisturbed(written);
    }
  }

  #noteWritten(offset: number, length: number): void {
    const granule = Math.max(CLUSTER, this.schedule.job.granularity);
    const end = Math.ceil((offset + length) / granule) * granule;
    for (let at = offset - (offset % granule); at < end; at += CLUSTER) this.#written.add(at);
  }

  /** A mirror's writer never waits for the target, before the very end of the job. */
  async #undisturbed(written: Promise<void>): Promise<void> {
    const { schedule, job } = this;
    const atEnd = ['waiting', 'pending', 'aborting', 'concluded', 'null'];
    if (this.#blocking || schedule.job.copyMode !== 'background') return;
    const broken = schedule.steps.some(
      (step) => step.act === 'break' && ['source stalled', 'drain'].includes(step.fault),
    );
    if (broken) return;
    let settled = false;
    void written.then(() => {
      settled = true;
    });
    for (let turns = 0; !settled && turns < WRITE_TURNS; turns++) await turn();
    if (settled || atEnd.includes(job.state)) return;
    throw new Error(`a write was held up by a job in state '${job.state}'`);
  }

  #say(verb: Verb): void {
    const { job } = this;
    const { state } = job;
    this.heard.push({ what: 'said', verb });
    try {
      if (verb === 'pause') job.pause();
      else if (verb === 'resume') job.resume();
      else if (verb === 'slow') job.setSpeed(SLOW);
      else if (verb === 'fast') job.setSpeed(0);
      else if (verb === 'cancel') job.cancel({ force: false });
      else if (verb === 'cancel-by-force') job.cancel({ force: true });
      else if (verb === 'complete') job.complete();
      else if (verb === 'finalize') this.#pending.push(job.finalize());
      else if (verb === 'dismiss') job.dismiss();
      else if (job instanceof MirrorJob) this.#changeCopyMode(job, verb, state);
      else return;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      checkVerb(verb, state, error.message);
      return;
    }
    if (verb === 'write-blocking' || verb === 'background') return;
    checkVerb(verb, state, undefined);
    if (verb === 'complete') this.#pivotAsked = true;
  }

  #changeCopyMode(job: MirrorJob, mode: 'write-blocking' | 'background', state: string): void {
    this.#blocking = true;
    const changed = job.changeCopyMode(mode).then(
      () => checkVerb(mode, state, undefined),
      (error: unknown) => {
        if (!(error instanceof BlockError)) throw error;
        if (error.message !== 'the job is about to end') checkVerb(mode, state, error.message);
      },
    );
    this.#pending.push(changed);
  }

  async #await(state: 'ready' | 'pending' | 'over'): Promise<void> {
    const wanted = state === 'over' ? ['concluded', 'null'] : [state, 'concluded', 'null'];
    for (let n = 0; n < 30 && !wanted.includes(this.job.state); n++) await sleep(1);
  }

  get #over(): boolean {
    return this.job.state === 'concluded' || this.job.state === 'null';
  }

  /** Brings the job to its end with all well again. */
  async #finish(): Promise<void> {
    const { bench, job } = this;
    bench.heal();
    const endless = job.type === 'backup' && this.schedule.job.sync === 'none';
    const complete = this.schedule.seed % 2 === 0;
    for (const deadline = performance.now() + END_TIMEOUT_MS; !this.#over; await sleep(1)) {
      if (performance.now() > deadline) throw new Error(`the job hangs in state '${job.state}'`);
      if (job.userPaused) this.#say('resume');
      if (job.speed !== 0 && job.state !== 'waiting' && job.state !== 'pending') this.#trySpeed();
      if (job.state === 'ready' && !job.cancelRequested)
        this.#say(complete ? 'complete' : 'cancel');
      if (job.state === 'pending' && !job.autoFinalize) this.#tryFinalize();
      if (endless && job.state === 'running') this.#say('cancel');
    }
    await job.concluded;
    if (job.state === 'concluded') this.#say('dismiss');
    await within('verbs', Promise.all(this.#pending));
    await within('writes', bench.settled());
  }

  #trySpeed(): void {
    if (this.job.state !== 'aborting') this.#say('fast');
  }

  #tryFinalize(): void {
    const since = this.heard.findLastIndex(({ what }) => what === 'state');
    const asked = this.heard.slice(since).some((entry) => said(entry, 'finalize'));
    if (!asked) this.#say('finalize');
  }

  async check(): Promise<void> {
    const { job, heard, schedule } = this;
    checkOrder(heard);
    const brokenOff = job.cancelled && this.partner?.job.error !== undefined;
    checkErrors(heard, schedule.job, { brokenOff });
    const reported = heard.some((entry) => entry.what === 'error' && entry.action === 'report');
    if (this.partner !== undefined) this.#checkTogether(this.partner);
    if (job.error === undefined) {
      expect(reported, 'success after an error that was reported').toBe(false);
      this.#checkSuccess();
    } else if (!job.cancelled) {
      const faults = schedule.steps.some(({ act }) => act === 'break');
      expect(faults, `failed without a fault: ${job.error.message}`).toBe(true);
    } else {
      expect(job.error.message).toBe('Operation canceled');
      const ended = heard.some((entry) => said(entry, 'cancel', 'cancel-by-force', 'quit'));
      const together = this.partner?.job.error !== undefined;
      expect(ended || together, 'cancelled by nobody').toBe(true);
    }
    const pivoted = this.#pivotAsked && job.error === undefined;
    this.#checkGraph(pivoted);
    this.#checkWriter(pivoted);
    this.#checkMarks(pivoted);
    await this.#checkAfterwards();
  }

  #checkTogether({ job }: Run): void {
    const failed = [this.job, job].map(({ error }) => error !== undefined);
    expect(failed[0], 'one job failed and the other did not').toBe(failed[1]);
  }

  #checkSuccess(): void {
    const { bench, job, schedule } = this;
    const after = this.#targetAfter;
    if (after === undefined) throw new Error('no end was heard of');
    expect(job.progressCurrent, 'progress at the end').toBe(job.progressTotal);
    if (job.type === 'backup') {
      this.#compare(after, this.#sourceBefore, (at) => this.#isCopied(at));
    } else if (this.#pivotAsked) {
      this.#compare(bench.copy.data, bench.model, (at) => this.#isCopied(at));
    } else if (schedule.job.sync !== 'none') {
      expect(bench.wasSource(after), 'the target was the source at one moment').toBe(true);
    }
  }

  /** Whether the job's promise is about the cluster. */
  #isCopied(at: number): boolean {
    const { kind, sync } = this.schedule.job;
    if (sync === 'full' || sync === 'top') return true;
    const marked = sync === 'bitmap' && this.#marksBefore.has(at);
    return marked || (kind === 'mirror' && this.#written.has(at));
  }

  /** Clusters that are copied hold what they should, and others what they held. */
  #compare(content: Buffer, right: Buffer, isCopied: (at: number) => boolean): void {
    for (let at = 0; at < SIZE; at += CLUSTER) {
      const end = Math.min(at + CLUSTER, SIZE);
      const part = content.subarray(at, end);
      if (isCopied(at) && part.equals(right.subarray(at, end))) continue;
      if (part.equals(this.#targetBefore.subarray(at, end)) && !isCopied(at)) continue;
      const { sync } = this.schedule.job;
      // Not all of a cluster that was written in part comes over.
      if (sync === 'none' && isCopied(at)) continue;
      throw new Error(`the target is wrong in the cluster at ${at}, copied: ${isCopied(at)}`);
    }
  }

  #checkGraph(pivoted: boolean): void {
    const { bench } = this;
    const { source, target, top, guest } = bench;
    expect(bench.graph.nodes.length, 'nodes').toBe(3);
    expect(bench.registry.jobs.length, 'jobs').toBe(0);
    expect(guest.root.node, "the writer's node").toBe(top);
    const below = pivoted ? target : source;
    expect(top.children.get('file')?.node, 'node below the top').toBe(below);
    expect([top, source, target].map(({ trackers }) => trackers.length)).toEqual([0, 1, 0]);
    expect([bench.bitmap.busy, bench.bitmap.recording]).toEqual([false, true]);
  }

  #checkWriter(pivoted: boolean): void {
    const { bench, schedule } = this;
    const mayFail =
      pivoted || (schedule.job.kind === 'backup' && schedule.job.onCbwError !== 'break-snapshot');
    if (!mayFail) expect(bench.refused, 'writes that failed').toEqual([]);
    if (!pivoted) this.#checkEqual(bench.disk.data, bench.model, 'the source');
  }

  #checkEqual(content: Buffer, right: Buffer, what: string): void {
    if (content.equals(right)) return;
    const at = content.findIndex((byte, index) => byte !== right[index]);
    throw new Error(`${what} is wrong from ${at} on`);
  }

  #checkMarks(pivoted: boolean): void {
    const { bench, job, schedule } = this;
    const { bitmapMode } = schedule.job;
    if (!pivoted && schedule.job.kind === 'mirror') {
      expect(bench.unmarked(), 'differences without a mark').toEqual([]);
    }
    if (schedule.job.kind === 'backup' && bitmapMode !== undefined) {
      expect(bench.unmarked(), 'differences without a mark').toEqual([]);
    }
    const keeps =
      bitmapMode === undefined ||
      bitmapMode === 'never' ||
      (bitmapMode === 'on-success' && job.error !== undefined);
    if (!keeps) return;
    const marks = bench.marks(CLUSTER);
    const gone = [...this.#marksBefore].filter((at) => !marks.has(at));
    expect(gone, 'marks that are gone').toEqual([]);
  }

  /** All goes on as if nothing had been. */
  async #checkAfterwards(): Promise<void> {
    const { bench } = this;
    const before = bench.refused.length;
    await within('a write', bench.write('write', 0, 4096));
    expect(bench.refused.length, 'a write after the job failed').toBe(before);
    const content = await bench.readByGuest();
    this.#checkEqual(content, this.#expectedOfGuest(), 'what the writer reads');
  }

  #expectedOfGuest(): Buffer {
    const { sync } = this.schedule.job;
    const pivoted = this.#pivotAsked && this.job.error === undefined;
    // A pivot to a copy that was not asked to be whole.
    return pivoted && sync === 'none' ? this.bench.copy.data : this.bench.model;
  }
}

function said(entry: Heard, ...verbs: readonly string[]): boolean {
  return entry.what === 'said' && verbs.includes(entry.verb);
}

function listen(bench: FaultBench, hear: (entry: Heard) => void): void {
  bench.registry.listen({
    stateChanged: ({ state }) => hear({ what: 'state', state }),
    finished: () => hear({ what: 'end' }),
    ioError: (job, operation, action, error) => {
      const noSpace = errnoName(error) === 'ENOSPC';
      if (action === 'stop') {
        expect(job.userPaused, 'stopped').toBe(true);
        expect(['nospace', 'failed']).toContain(job.ioStatus);
      }
      hear({ what: 'error', operation, action, noSpace });
    },
  });
}

function makeJob(
  bench: FaultBench,
  { job }: Schedule,
  transaction: JobTransaction | undefined,
): Promise<BlockJob> {
  const { graph, source, target, registry } = bench;
  const sync = job.sync;
  const common = {
    ...{ id: 'j', source, target, sync, speed: job.speed },
    ...{ onSourceError: job.onSourceError, onTargetError: job.onTargetError },
    ...{ autoFinalize: job.autoFinalize, autoDismiss: job.autoDismiss },
    bitmap: job.bitmapMode === undefined ? undefined : bench.bitmap,
    ...(transaction === undefined ? {} : { transaction }),
  } as const;
  if (job.kind === 'backup') {
    const how = { clusterLength: CLUSTER, requestsMax: job.window, chunkLengthMax: 0 } as const;
    const bitmapMode = job.bitmapMode ?? 'on-success';
    const { onCbwError } = job;
    return registry.create('j', () =>
      BackupJob.create(graph, { ...common, ...how, bitmapMode, onCbwError }, registry),
    );
  }
  const how = {
    ...{ granularity: job.granularity, windowLength: job.window * CLUSTER, unmap: true },
    ...(job.replaces ? { source: bench.top, replaces: source } : {}),
  };
  return registry.create('j', () =>
    MirrorJob.create(
      graph,
      { ...common, ...how, bitmapMode: job.bitmapMode, copyMode: job.copyMode },
      registry,
    ),
  );
}

/** @throws Error when the promise takes so long that it hangs */
async function within<T>(what: string, pending: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} hang`)), END_TIMEOUT_MS);
  });
  try {
    return await Promise.race([pending, late]);
  } finally {
    clearTimeout(timer);
  }
}

describe('a job under random writes, verbs and faults', () => {
  it.each(seedsToRun(200))('keeps its promises, seed %i', async (seed) => {
    const schedule = makeSchedule(seed, OPTIONS);
    let run: Run | undefined;
    try {
      run = await Run.begin(schedule);
      run.job.start();
      await run.play();
      await run.check();
    } catch (error) {
      throw new Error(`${describeSchedule(schedule)}\n${told(run)}`, { cause: error });
    }
  });

  it.each(seedsToRun(100))('ends with the other of its transaction, seeds %i', async (seed) => {
    const schedules = [seed * 2 + 500_000, seed * 2 + 500_001].map(backupSchedule);
    const transaction = new JobTransaction();
    const runs: Run[] = [];
    try {
      for (const schedule of schedules) runs.push(await Run.begin(schedule, transaction));
      const [first, second] = runs;
      if (first !== undefined) first.partner = second;
      if (second !== undefined) second.partner = first;
      for (const { job } of runs) job.start();
      const ended = await Promise.allSettled(runs.map((run) => run.play()));
      for (const end of ended) if (end.status === 'rejected') throw end.reason;
      for (const run of runs) await run.check();
    } catch (error) {
      const both = schedules.map(
        (schedule, i) => `${describeSchedule(schedule)}\n${told(runs[i])}`,
      );
      throw new Error(`DISKFERRY_SEED=${seed}\n${both.join('\n')}`, { cause: error });
    }
  });
});

const told = (run: Run | undefined): string =>
  `heard: ${run?.heard.map((entry) => Object.values(entry).join(' ')).join(', ')}`;

/** Of the kind of job that a transaction starts, and of an end that comes by itself. */
function backupSchedule(seed: number): Schedule {
  for (let at = seed; ; at += 1_000_000) {
    const schedule = makeSchedule(at, OPTIONS);
    const { kind, sync } = schedule.job;
    if (kind === 'backup' && sync !== 'none') return schedule;
  }
}
