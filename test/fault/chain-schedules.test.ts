// SPDX-License-Identifier: MIT
/**
 * Chains that grow and shrink at random under a client that writes on, with jobs, snapshots,
 * transactions, verbs and dirty bitmaps, against a model. `DISKFERRY_SEED=n` runs one again,
 * `DISKFERRY_SCHEDULES=n` more of them, `DISKFERRY_FIRST_SEED=n` others.
 */
import { writeFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { ChainBench } from '../support/chain-bench.js';
import { firstDifference } from '../support/chain-guest.js';
import { ChainSteps } from '../support/chain-steps.js';
import { seedsToRun } from '../support/job-schedule.js';
import { tryPeer } from '../support/peers.js';
import { pattern, qemuContent } from '../support/qcow2.js';
import { SeededRandom } from '../support/seeded-random.js';
import { Scope } from '../support/temp.js';

const STEPS_MAX = 60;
const JOBS = ['stream', 'commit', 'mirror', 'backup'] as const;
const BITMAP_STEPS = [
  'add',
  'remove',
  'clear',
  'disable',
  'enable',
  'merge',
  'move',
  'failed move',
] as const;
/** QEMU's tools look at every so many. */
const PEERS_EVERY = 4;

async function begin(scope: Scope, seed: number): Promise<ChainBench> {
  const random = new SeededRandom(seed);
  const bench = await ChainBench.make(scope, random);
  const size = 512 * (600 + random.int(3000));
  const raw = random.chance(0.3);
  const content = raw ? pattern(size, seed) : Buffer.alloc(size);
  if (raw) await writeFile(bench.path('base'), content);
  else {
    const clusterSize = random.pick([512, 4096, 65536]);
    await bench.createImage('base', { size, clusterSize });
  }
  await bench.execute('blockdev-add', bench.layer('base', raw ? 'raw' : 'qcow2', null));
  await bench.connect('base', content);
  return bench;
}

async function look(bench: ChainBench): Promise<void> {
  const { faults, guest } = bench;
  const chain = bench.layers.map(({ driver }) => driver.filename);
  const { model } = guest;
  const { files, content } = await bench.reopen();
  if (files.join() !== chain.join()) faults.push(`the images say ${files}, not ${chain}`);
  const difference = firstDifference(content, model);
  if (difference !== undefined) faults.push(`opened anew it holds ${difference}`);
}

/** What QEMU's tools say of the images, which are closed. */
async function ask(bench: ChainBench, files: readonly string[], model: Buffer): Promise<void> {
  const { faults } = bench;
  for (const [at, file] of files.entries()) {
    const { stdout: info } = await tryPeer('qemu-img', ['info', file]);
    if (!info.includes('file format: qcow2')) continue;
    const { code, stdout, stderr } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', file]);
    if (code !== 0) faults.push(`qemu-img check ${file}: ${code} ${stdout}${stderr}`);
    if (at > 0) continue;
    const difference = firstDifference(await qemuContent(file, bench.path('out')), model);
    if (difference !== undefined) faults.push(`to qemu-img it holds ${difference}`);
  }
}

async function run(seed: number): Promise<ChainSteps> {
  const scope = new Scope();
  const bench = await begin(scope, seed);
  const { random, faults, trace } = bench;
  const steps = new ChainSteps(bench);
  const story = (): string => [`DISKFERRY_SEED=${seed}`, ...trace, ...faults].join('\n');
  try {
    bench.guest.burst(4);
    for (let left = 10 + random.int(STEPS_MAX); left > 0 && faults.length === 0; left--) {
      await steps.step();
    }
    await bench.endJobs();
    await bench.check();
    const files = bench.layers.map(({ driver }) => driver.filename);
    const { model } = bench.guest;
    await look(bench);
    if (seed % PEERS_EVERY === 0) await ask(bench, files, model);
  } catch (error) {
    throw new Error(story(), { cause: error });
  } finally {
    await scope.close();
  }
  if (faults.length > 0) throw new Error(story());
  return steps;
}

describe('chains in random schedules', () => {
  it('read as the model says, in the end and after each step', { timeout: 3_600_000 }, async () => {
    const done = new Map<string, number>();
    for (const seed of seedsToRun(100)) {
      const { completed, refusals, bitmaps } = await run(seed);
      for (const [kind, count] of bitmaps.done) done.set(kind, (done.get(kind) ?? 0) + count);
      for (const [type, count] of completed) done.set(type, (done.get(type) ?? 0) + count);
      if (process.env.DISKFERRY_REFUSALS) console.log(refusals);
    }
    for (const kind of [...JOBS, ...BITMAP_STEPS]) {
      expect(done.get(kind), kind).toBeGreaterThan(0);
    }
  });
});
