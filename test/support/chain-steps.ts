// SPDX-License-Identifier: MIT
/** What can happen to a chain in one step of a random schedule. */
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { BlockError } from '../../src/base/errors.js';
import { chainDown } from '../../src/block/chain.js';
import type { BlockNode } from '../../src/block/node.js';
import type { ChainBench } from './chain-bench.js';
import { ChainBitmapSteps } from './chain-bitmap-steps.js';
import type { Moment } from './chain-guest.js';

/** A chain does not get deeper. */
const DEPTH_MAX = 8;
const CLUSTER_SIZES = [512, 4096, 65536, 65536] as const;
/** Bytes a second; 0: no limit. */
const SPEEDS = [0, 0, 100_000, 1_000_000, 4_000_000] as const;

/** Refusals that a step may meet with; anything else is a fault. */
const REFUSALS = new Set(['DF_IN_USE', 'DF_PERMISSION_CONFLICT']);
const REFUSAL_TEXTS = [
  /^Need a root block node$/,
  /^Bitmap '.*' is readonly and cannot be modified$/,
  /^Bitmaps are of different sizes .* and can't be merged$/,
  /^Block node '.*' is read-only$/,
  /^Node '.*' not found$/,
  /^Transaction aborted using Abort action$/,
  / does not support resize$/,
  /^Cannot find device='.*' nor node-name='(#|filter)/,
  /^Job '.*' in state '.*' cannot accept command verb '.*'$/,
  /^Job is already paused$/,
  /^Job '.*' is being finalized already$/,
  /^Can't resume a job that was not paused$/,
  /^The block job for device '.*' is currently paused$/,
  /^The active block job '.*' cannot be completed$/,
  /^(Job|Block job '.*') not found$/,
];

export class ChainSteps {
  /** How often what was refused, for a look at how much a schedule really does. */
  readonly refusals = new Map<string, number>();
  /** Jobs that ended well, by kind. */
  readonly completed = new Map<string, number>();

  readonly bitmaps: ChainBitmapSteps;

  constructor(readonly bench: ChainBench) {
    this.bitmaps = new ChainBitmapSteps(bench, (command, args) => this.#try(command, args));
    bench.daemon.jobs.listen({
      finished: (job) => {
        const { id, type, error, cancelled } = job;
        bench.bitmaps.note();
        if (type === 'create') return;
        bench.trace.push(`  ${id} ended ${cancelled ? 'cancelled' : (error ?? 'well')}`);
        const unwanted = error !== undefined && !(cancelled && /canceled/.test(error.message));
        if (unwanted) bench.faults.push(`${id}, a ${type}: ${String(error)}`);
        if (cancelled) return;
        if (id.startsWith('active') || type === 'mirror') bench.mayBeLonger = true;
        this.completed.set(type, (this.completed.get(type) ?? 0) + 1);
      },
    });
  }

  async step(): Promise<void> {
    const { random } = this.bench;
    this.bench.bitmaps.note();
    const dice = random.int(115);
    if (dice >= 100) await this.bitmaps.step();
    else if (dice < 22) this.bench.guest.burst(1 + random.int(8));
    else if (dice < 36) await this.#snapshot();
    else if (dice < 48) await this.#stream();
    else if (dice < 58) await this.#commit();
    else if (dice < 62) await this.#activeCommit();
    else if (dice < 65) await this.#copy();
    else if (dice < 67) await this.#resize();
    else if (dice < 70) await this.#renote();
    else if (dice < 72) await this.#failedTransaction();
    else if (dice < 75) await this.#drop();
    else if (dice < 88) await this.#verb();
    else if (dice < 92) await this.#check();
    else await this.#wait();
  }

  async #check(): Promise<void> {
    this.bench.trace.push('check');
    await this.bench.check();
  }

  async #wait(): Promise<void> {
    const { random } = this.bench;
    if (random.chance(0.3)) return sleep(random.int(8));
    for (let turns = random.int(30); turns > 0; turns--) await turn();
  }

  /** Runs a command while the client writes. @returns whether it was done */
  async #try(command: string, args: object): Promise<boolean> {
    const { bench } = this;
    const { random } = bench;
    bench.trace.push(`${command} ${JSON.stringify(args)}`);
    if (random.chance(0.5)) bench.guest.burst(1 + random.int(3));
    const running = bench.execute(command, args).then(
      () => true,
      (error: unknown) => this.#refused(command, error),
    );
    for (let turns = random.int(4); turns > 0; turns--) {
      if (random.chance(0.5)) bench.guest.burst(1);
      await turn();
    }
    return running;
  }

  #refused(command: string, error: unknown): false {
    const { trace, faults } = this.bench;
    const text = error instanceof Error ? error.message : String(error);
    trace.push(`  refused: ${text}`);
    const what = `${command}: ${text}`;
    this.refusals.set(what, (this.refusals.get(what) ?? 0) + 1);
    const expected = error instanceof BlockError && REFUSALS.has(error.code);
    if (!expected && !REFUSAL_TEXTS.some((one) => one.test(text))) faults.push(what);
    return false;
  }

  /** One of the layers that have others below them; undefined in a chain of one. */
  #pickUpper(from = 0): BlockNode | undefined {
    const { random, bench } = this.#with();
    const uppers = bench.layers.slice(from, -1);
    return uppers[random.int(uppers.length)];
  }

  #pickBelow(node: BlockNode): BlockNode | undefined {
    const { random } = this.#with();
    const below = chainDown(node).filter(({ kind }) => kind !== 'filter');
    below.shift();
    return below[random.int(below.length)];
  }

  #with() {
    return { bench: this.bench, random: this.bench.random };
  }

  #jobOptions(prefix: string): object {
    const { random, bench } = this.#with();
    return {
      'job-id': bench.next(prefix),
      speed: random.pick(SPEEDS),
      'auto-finalize': random.chance(0.7),
      ...(random.chance(0.1) ? { 'filter-node-name': bench.next('filter') } : {}),
    };
  }

  async #snapshot(): Promise<void> {
    const { random, bench } = this.#with();
    if (bench.mayBeLonger) await bench.check();
    const [top] = bench.layers;
    if (top === undefined || bench.layers.length >= DEPTH_MAX) return;
    const name = bench.next('n');
    const given = random.chance(0.5);
    let size = bench.guest.model.byteLength;
    if (given) {
      const change = random.int(10);
      if (change < 2) size += 512 * random.int(1000);
      // An overlay may be shorter than what a job still has to read, which then fails, as in QEMU.
      if (change === 2 && bench.jobs.length === 0) {
        size = Math.max(bench.guest.size, size - 512 * random.int(500));
      }
      await bench.createImage(name, {
        size,
        clusterSize: random.pick(CLUSTER_SIZES),
        backing: random.chance(0.5) ? top.name : bench.path(top.name),
        backingFormat: top.driver.name,
      });
      await bench.execute('blockdev-add', bench.layer(name, 'qcow2', null));
    }
    const { close } = bench.guest.moment();
    const done = given
      ? await this.#try('blockdev-snapshot', { node: top.name, overlay: name })
      : await this.#try('blockdev-snapshot-sync', {
          'node-name': top.name,
          'snapshot-file': bench.path(name),
          'snapshot-node-name': name,
        });
    const moment = close();
    if (done) {
      // A mirror may have moved the client away meanwhile.
      if (bench.layers[0]?.name !== name) return;
      if (!bench.mayBeLonger) bench.contents.set(top.name, moment);
      if (given || !bench.mayBeLonger) bench.guest.resize(size);
    } else if (given) {
      await bench.execute('blockdev-del', { 'node-name': name });
    }
  }

  async #stream(): Promise<void> {
    const { random, bench } = this.#with();
    const top = this.#pickUpper();
    if (top === undefined) return;
    const base = random.chance(0.3) ? undefined : this.#pickBelow(top);
    const how = random.int(3);
    const end =
      base === undefined
        ? {}
        : how === 0
          ? { 'base-node': base.name }
          : how === 1
            ? { base: bench.path(base.name) }
            : { bottom: base.name };
    await this.#try('block-stream', {
      ...this.#jobOptions('stream'),
      device: top.name,
      ...end,
    });
  }

  async #commit(): Promise<void> {
    const { random, bench } = this.#with();
    const top = this.#pickUpper(1);
    const base = top === undefined ? undefined : this.#pickBelow(top);
    const [device] = bench.layers;
    if (top === undefined || base === undefined || device === undefined) return;
    const named = random.chance(0.7)
      ? { 'top-node': top.name, 'base-node': base.name }
      : { top: bench.path(top.name), base: bench.path(base.name) };
    const options = { ...this.#jobOptions('commit'), device: device.name, ...named };
    bench.bitmaps.forgetBounds(base.name);
    if (await this.#try('block-commit', options)) bench.forget(base, top);
  }

  async #activeCommit(): Promise<void> {
    const { bench } = this.#with();
    const [top] = bench.layers;
    const base = top === undefined ? undefined : this.#pickBelow(top);
    if (top === undefined || base === undefined) return;
    const options = { ...this.#jobOptions('active'), device: top.name, 'base-node': base.name };
    bench.bitmaps.forgetBounds(base.name);
    if (await this.#try('block-commit', options)) bench.forget(base, top);
  }

  /** A mirror or a backup into an image of its own. */
  async #copy(): Promise<void> {
    const { random, bench } = this.#with();
    if (bench.mayBeLonger) await bench.check();
    const [top] = bench.layers;
    if (top === undefined) return;
    const isMirror = random.chance(0.5);
    const source = isMirror ? top : random.pick([top, this.#pickUpper() ?? top]);
    const name = bench.next('t');
    await bench.createImage(name, { size: source.size, clusterSize: 65536 });
    await bench.execute('blockdev-add', bench.layer(name, 'qcow2', null));
    const { close } = bench.guest.moment();
    const done = await this.#try(isMirror ? 'blockdev-mirror' : 'blockdev-backup', {
      ...this.#jobOptions(isMirror ? 'mirror' : 'backup'),
      ...{ device: source.name, target: name, sync: 'full' },
    });
    const now = close();
    const moment = source === top ? now : bench.contents.get(source.name);
    if (!done) await bench.execute('blockdev-del', { 'node-name': name });
    else if (!isMirror && moment !== undefined) this.#awaitBackup(name, moment);
  }

  /** What the target holds when the job that has begun last has ended well. */
  #awaitBackup(target: string, moment: Moment): void {
    const { bench } = this.#with();
    const job = bench.jobs.at(-1);
    if (job === undefined) return;
    void job.concluded.then(() => {
      if (job.error === undefined && !job.cancelled) bench.contents.set(target, moment.copy());
    });
  }

  async #resize(): Promise<void> {
    const { random, bench } = this.#with();
    if (bench.mayBeLonger) await bench.check();
    const [top] = bench.layers;
    if (top === undefined) return;
    const now = bench.guest.model.byteLength;
    const shrink = random.chance(0.3);
    const change = 512 * random.int(2000);
    const size = shrink ? Math.max(bench.guest.size, now - change) : now + change;
    const args = { 'node-name': bench.exported.name, size };
    if (!(await this.#try('block_resize', args))) return;
    bench.guest.resize(size);
    bench.bitmaps.resize(top.name, size);
  }

  /** The same file by another name. */
  async #renote(): Promise<void> {
    const { random, bench } = this.#with();
    const image = this.#pickUpper();
    const below = image === undefined ? undefined : bench.layers[bench.layers.indexOf(image) + 1];
    const [device] = bench.layers;
    if (image === undefined || below === undefined || device === undefined) return;
    await this.#try('change-backing-file', {
      ...{ device: device.name, 'image-node-name': image.name },
      'backing-file': random.chance(0.5) ? below.name : bench.path(below.name),
    });
  }

  async #failedTransaction(): Promise<void> {
    const { bench } = this.#with();
    const [top] = bench.layers;
    if (top === undefined) return;
    const names = [bench.next('x'), bench.next('x')];
    const snapshot = (from: string, to: string): object => ({
      type: 'blockdev-snapshot-sync',
      data: { 'node-name': from, 'snapshot-file': bench.path(to), 'snapshot-node-name': to },
    });
    const [one = '', two = ''] = names;
    const actions = [snapshot(top.name, one), snapshot(one, two), { type: 'abort', data: {} }];
    const args = { actions };
    bench.trace.push(`transaction ${JSON.stringify(args)}`);
    bench.guest.burst(2);
    const failed = await bench.execute('transaction', args).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (failed === undefined) bench.faults.push('a transaction with abort was carried out');
    for (const name of names) {
      if (bench.daemon.graph.find(name) !== undefined) bench.faults.push(`${name} is left`);
    }
  }

  /** Deletes a node that the chain does not need any more. */
  async #drop(): Promise<void> {
    const { random, bench } = this.#with();
    const used = new Set(chainDown(bench.exported));
    const idle = bench.daemon.graph.nodes.filter(
      (node) => node.monitorOwned && !used.has(node) && node.kind === 'format',
    );
    const node = idle[random.int(idle.length)];
    if (node !== undefined) await this.#try('blockdev-del', { 'node-name': node.name });
  }

  async #verb(): Promise<void> {
    const { random, bench } = this.#with();
    const job = bench.jobs[random.int(bench.jobs.length)];
    if (job === undefined) return;
    const { id } = job;
    const dice = random.int(12);
    if (dice < 2) await this.#try('job-pause', { id });
    else if (dice < 5) await this.#try('job-resume', { id });
    else if (dice < 6) await this.#try('job-cancel', { id });
    else if (dice < 7) await this.#try('block-job-cancel', { device: id });
    else if (dice < 9) await this.#try('job-complete', { id });
    else if (dice < 10) await this.#try('job-finalize', { id });
    else await this.#try('block-job-set-speed', { device: id, speed: random.pick(SPEEDS) });
  }
}
