// SPDX-License-Identifier: MIT
/**
 * Random pairs of backups that one transaction starts, grouped or each for itself, into files that are
 * full or fail. `DISKFERRY_SEED=n` runs one again, `DISKFERRY_SCHEDULES=n` more, `DISKFERRY_FIRST_SEED=n` others.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { type Daemon, startDaemon } from '../support/daemon.js';
import { dirtyMarks } from '../support/dirty-marks.js';
import { patternBytes } from '../support/images.js';
import { seedsToRun } from '../support/job-schedule.js';
import { runPeer } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { SeededRandom } from '../support/seeded-random.js';
import { type Scope, testScope } from '../support/temp.js';

const CLUSTER = 64 * 1024;
const CLUSTERS = 20;
const SIZE = CLUSTERS * CLUSTER + 1024;
const ENOSPC = 28;
const EIO = 5;
const SLOW = 2_000_000;
const END_TIMEOUT_MS = 60_000;
/** Resumptions of a job whose target goes on failing, before it is called off. */
const RESUMES_MAX = 3;

type Fault = 'none' | 'full' | 'full once' | 'fails once';

interface Choice {
  readonly sync: 'full' | 'incremental' | 'bitmap';
  readonly bitmapMode: 'on-success' | 'always' | 'never';
  readonly format: 'raw' | 'qcow2';
  readonly compress: boolean;
  readonly fault: Fault;
  readonly onTargetError: 'report' | 'stop' | 'enospc';
  readonly autoFinalize: boolean;
  readonly speed: number;
}

interface JobInfo {
  readonly id: string;
  readonly status: string;
  readonly error?: string;
}

function chooseJob(random: SeededRandom): Choice {
  const sync = random.pick(['full', 'incremental', 'bitmap'] as const);
  const format = random.pick(['raw', 'qcow2'] as const);
  const modes = sync === 'bitmap' ? (['on-success', 'always', 'never'] as const) : undefined;
  return {
    sync,
    bitmapMode: modes === undefined ? 'on-success' : random.pick(modes),
    format,
    compress: format === 'qcow2' && random.chance(0.6),
    fault: random.pick(['none', 'none', 'full', 'full once', 'fails once'] as const),
    onTargetError: random.pick(['report', 'stop', 'enospc'] as const),
    autoFinalize: random.chance(0.7),
    speed: random.chance(0.4) ? SLOW : 0,
  };
}

/** A disk, its client, its bitmap, and the backup of it. */
class Pair {
  readonly model: Buffer;
  #before: Buffer = Buffer.alloc(0);
  #marked: (offset: number) => boolean = () => false;
  readonly #written = new Set<number>();
  resumes = 0;
  calledOff = false;

  private constructor(
    readonly name: 'a' | 'b',
    readonly choice: Choice,
    readonly qmp: QmpClient,
    readonly client: NbdClient,
    readonly paths: { readonly nbd: string; readonly source: string; readonly target: string },
  ) {
    this.model = patternBytes(SIZE, name === 'a' ? 4 : 5);
  }

  static async make(
    name: 'a' | 'b',
    choice: Choice,
    { qmp, dir, nbd, scope }: { qmp: QmpClient; dir: string; nbd: string; scope: Scope },
  ): Promise<Pair> {
    const paths = { nbd, source: join(dir, name), target: join(dir, `${name}.backup`) };
    await writeFile(paths.source, patternBytes(SIZE, name === 'a' ? 4 : 5));
    const file = { driver: 'file', filename: paths.source };
    await qmp.execute('blockdev-add', { driver: 'raw', 'node-name': name, file });
    await qmp.execute('block-dirty-bitmap-add', { node: name, name: 'x' });
    const exported = { type: 'nbd', id: name, 'node-name': name, name, writable: true };
    await qmp.execute('block-export-add', exported);
    const address = { type: 'unix', path: nbd } as const;
    const client = await NbdClient.connect({ address, exportName: name });
    scope.defer(() => client.close());
    const pair = new Pair(name, choice, qmp, client, paths);
    await pair.#addTarget();
    return pair;
  }

  async #addTarget(): Promise<void> {
    const { format, fault } = this.choice;
    const { target } = this.paths;
    if (format === 'raw') await writeFile(target, Buffer.alloc(SIZE));
    else await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', target, String(SIZE)]);
    const rule = { event: 'none', iotype: 'write', errno: fault === 'fails once' ? EIO : ENOSPC };
    const errors = fault === 'none' ? [] : [{ ...rule, once: fault !== 'full' }];
    const image = { driver: 'file', filename: target };
    const bug = { driver: 'blkdebug', image, 'inject-error': errors };
    const node = { driver: format, 'node-name': `${this.name}.t`, file: bug };
    await this.qmp.execute('blockdev-add', node);
  }

  async write(random: SeededRandom): Promise<void> {
    const at = random.int(Math.floor(SIZE / 512) - 1) * 512;
    const length = Math.min((1 + random.int(200)) * 512, SIZE - at);
    const value = 1 + random.int(255);
    try {
      await this.client.write(at, Buffer.alloc(length, value));
    } catch (error) {
      // What can't be saved may not be overwritten: the write fails, before it has changed anything.
      expect(this.choice.fault, `a write failed: ${String(error)}`).not.toBe('none');
      return;
    }
    this.model.fill(value, at, at + length);
    for (let in_ = at - (at % CLUSTER); in_ < at + length; in_ += CLUSTER) this.#written.add(in_);
  }

  /** The job is about to begin. */
  async remember(): Promise<void> {
    this.#marked = await this.marks();
    this.#before = Buffer.from(this.model);
    this.#written.clear();
  }

  marks(): Promise<(offset: number) => boolean> {
    const { qmp, paths, name } = this;
    return dirtyMarks({ qmp, socket: paths.nbd, node: name, bitmap: 'x', size: SIZE });
  }

  get action(): object {
    const { sync, bitmapMode, compress, onTargetError, autoFinalize, speed } = this.choice;
    const bitmap = { bitmap: 'x', 'bitmap-mode': bitmapMode };
    const data = {
      ...{ 'job-id': `job-${this.name}`, device: this.name, target: `${this.name}.t`, sync, speed },
      ...{ compress, 'on-target-error': onTargetError },
      ...{ 'auto-finalize': autoFinalize, 'auto-dismiss': false },
      ...(sync === 'full' ? {} : bitmap),
    };
    return { type: 'blockdev-backup', data };
  }

  async check(error: string | undefined): Promise<void> {
    const { qmp, name, paths, choice } = this;
    await this.client.flush();
    await qmp.execute('job-dismiss', { id: `job-${name}` });
    const marks = await this.marks();
    await qmp.execute('blockdev-del', { 'node-name': `${name}.t` });
    expect((await readFile(paths.source)).equals(this.model), `the source ${name}`).toBe(true);
    if (choice.format === 'qcow2') await runPeer('qemu-img', ['check', '-q', paths.target]);
    if (error === undefined) await this.#checkCopy();
    const given = choice.sync !== 'full' && error === undefined && choice.bitmapMode !== 'never';
    for (let at = 0; at < SIZE; at += CLUSTER) {
      const kept = this.#marked(at) && !given && !(choice.bitmapMode === 'always' && this.#began);
      const right = kept || this.#written.has(at);
      if (choice.bitmapMode === 'always' && error !== undefined && this.#marked(at)) continue;
      expect(marks(at), `mark of ${name} at ${at}`).toBe(right);
    }
  }

  get #began(): boolean {
    return this.choice.sync === 'bitmap';
  }

  async #checkCopy(): Promise<void> {
    const { target } = this.paths;
    const { format, sync } = this.choice;
    const flat = `${target}.flat`;
    await runPeer('qemu-img', ['convert', '-f', format, '-O', 'raw', target, flat]);
    const copy = await readFile(flat);
    for (let at = 0; at < SIZE; at += CLUSTER) {
      const end = Math.min(at + CLUSTER, SIZE);
      const copied = sync === 'full' || this.#marked(at);
      const right = copied ? this.#before.subarray(at, end) : Buffer.alloc(end - at);
      const equal = copy.subarray(at, end).equals(right);
      expect(equal, `the copy of ${this.name} at ${at}, copied: ${copied}`).toBe(true);
    }
  }
}

class TransactionRun {
  readonly told: string[] = [];
  #cancelled = false;

  constructor(
    readonly daemon: Daemon,
    readonly qmp: QmpClient,
    readonly pairs: readonly [Pair, Pair],
    readonly grouped: boolean,
    readonly random: SeededRandom,
  ) {}

  async play(): Promise<void> {
    const { pairs, random, qmp } = this;
    for (const pair of pairs) {
      for (let n = 1 + random.int(5); n > 0; n--) await pair.write(random);
      await pair.remember();
    }
    await qmp.execute('transaction', {
      actions: pairs.map(({ action }) => action),
      properties: { 'completion-mode': this.grouped ? 'grouped' : 'individual' },
    });
    for (let n = random.int(8); n > 0; n--) await this.#step();
    const jobs = await this.#finish();
    const errors = pairs.map(({ name }) => jobs.find(({ id }) => id === `job-${name}`)?.error);
    if (this.grouped) {
      expect(new Set(errors.map((error) => error === undefined)).size, 'ends together').toBe(1);
    }
    for (const [index, pair] of pairs.entries()) this.#checkReason(pair, errors[index], errors);
    for (const [index, pair] of pairs.entries()) await pair.check(errors[index]);
    await qmp.execute('quit');
    expect(await this.daemon.exited).toEqual({ code: 0, signal: null });
  }

  /** Each failure has a reason: its own, or another job's of its group. */
  #checkReason(pair: Pair, error: string | undefined, errors: readonly unknown[]): void {
    const { fault } = pair.choice;
    if (error === undefined) {
      expect(pair.calledOff, 'success after it was called off').toBe(false);
      expect(fault, 'success on a full disk').not.toBe('full');
    } else if (error === 'Operation canceled') {
      const other = this.grouped && errors.every((each) => each !== undefined);
      expect(pair.calledOff || other, `${pair.name} cancelled by nobody`).toBe(true);
    } else {
      expect(fault, `failed without a fault: ${error}`).not.toBe('none');
      expect(error).toMatch(fault === 'fails once' ? /EIO/ : /ENOSPC/);
    }
  }

  async #step(): Promise<void> {
    const { random } = this;
    const pair = random.pick(this.pairs);
    const dice = random.int(10);
    if (dice < 5) return pair.write(random);
    if (dice < 7) return sleep(random.int(10));
    if (dice < 9) {
      await this.#say(dice < 8 ? 'job-pause' : 'job-resume', pair);
      return;
    }
    if (this.#cancelled) return;
    this.#cancelled = true;
    await this.#cancel(pair);
  }

  async #cancel(pair: Pair): Promise<void> {
    pair.calledOff = (await this.#say('job-cancel', pair)) || pair.calledOff;
  }

  /** Says a verb, which may be refused in the state that the job is in. */
  async #say(verb: string, { name }: Pair): Promise<boolean> {
    const { error } = await this.qmp.reply(verb, { id: `job-${name}` });
    this.told.push(`${verb} ${name}${error === undefined ? '' : ` (${error.desc})`}`);
    if (error === undefined) return true;
    expect(error.desc).toMatch(/cannot accept command verb|already paused|not paused|finalized/);
    return false;
  }

  /** Brings both to their ends. */
  async #finish(): Promise<readonly JobInfo[]> {
    const asked = new Set<string>();
    for (const deadline = performance.now() + END_TIMEOUT_MS; ; await sleep(5)) {
      const jobs = await this.qmp.execute<JobInfo[]>('query-jobs');
      if (jobs.every(({ status }) => status === 'concluded')) return jobs;
      if (performance.now() > deadline) throw new Error(`a job hangs: ${JSON.stringify(jobs)}`);
      for (const pair of this.pairs) {
        const job = jobs.find(({ id }) => id === `job-${pair.name}`);
        if (job?.status === 'paused') await this.#resume(pair);
        if (job?.status !== 'pending' || asked.has(job.id) || pair.choice.autoFinalize) continue;
        asked.add(job.id);
        await this.#say('job-finalize', pair);
      }
    }
  }

  async #resume(pair: Pair): Promise<void> {
    if (++pair.resumes > RESUMES_MAX) await this.#cancel(pair);
    else await this.#say('job-resume', pair);
  }
}

async function begin(scope: Scope, seed: number): Promise<TransactionRun> {
  const random = new SeededRandom(seed * 6101 + 3);
  const dir = await scope.tempDir();
  const nbd = join(dir, 'nbd.sock');
  const daemon = await startDaemon(scope, ['--nbd-server', `addr.type=unix,addr.path=${nbd}`]);
  const qmp = await daemon.qmp(scope);
  const how = { qmp, dir, nbd, scope };
  const pairs = [
    await Pair.make('a', chooseJob(random), how),
    await Pair.make('b', chooseJob(random), how),
  ] as const;
  return new TransactionRun(daemon, qmp, pairs, random.chance(0.6), random);
}

describe('two backups of a transaction into files that fail', () => {
  it.each(seedsToRun(50))('keep their promises, seed %i', async (seed) => {
    const run = await begin(testScope(), seed);
    try {
      await run.play();
    } catch (error) {
      const choices = run.pairs.map(({ name, choice }) => `${name}: ${JSON.stringify(choice)}`);
      const text = [`DISKFERRY_SEED=${seed}, grouped: ${run.grouped}`, ...choices, ...run.told];
      throw new Error(text.join('\n'), { cause: error });
    }
  });
});
