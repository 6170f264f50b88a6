// SPDX-License-Identifier: MIT
/**
 * `diskferry migrate --bitmaps` that is struck at random. Wherever a bitmap is found afterwards, what
 * an incremental backup by it restores is compared byte for byte with the disk there: a bitmap that
 * lacks one mark would be found out, unless nothing was written there.
 *
 * DISKFERRY_FIRST_SEED and DISKFERRY_SCHEDULES choose other seeds, or more of them.
 */
import { once } from 'node:events';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  BitmapMigration,
  bitmapsOf,
  differsAt,
  inventory,
  missingMark,
  type Side,
} from '../support/bitmap-migration.js';
import { CutRelay } from '../support/cut-relay.js';
import { startDiskferry } from '../support/diskferry.js';
import { MonitorTap } from '../support/monitor-tap.js';
import { collect } from '../support/peers.js';
import { SeededRandom } from '../support/seeded-random.js';
import { type Scope, testScope } from '../support/temp.js';

const FAULTS = [
  'command killed',
  'command killed',
  'command interrupted',
  'target killed',
  'source killed',
  'monitor of the target cut',
  'monitor of the source cut',
  'wire to the target cut',
] as const;
/** Commands of a whole migration, except the looks at its job; the last ones tidy up. */
const COMMANDS = 62;
const FLAGS = [
  { name: 'daily', recording: true, persistent: true, granularity: 65536 },
  { name: 'fine', recording: true, persistent: false, granularity: 4096 },
  { name: 'old', recording: false, persistent: true, granularity: 65536 },
];

const FIRST = Number(process.env.DISKFERRY_FIRST_SEED ?? 1);
const COUNT = Number(process.env.DISKFERRY_SCHEDULES ?? 24);
const SEEDS = Array.from({ length: COUNT }, (_, index) => FIRST + index);

class Struck {
  commands: string[] = [];
  /** Exit status of the command. */
  code: number | null = null;
  readonly fault: (typeof FAULTS)[number];
  /** Strikes when that many commands have been sent. */
  readonly at: number;

  constructor(
    readonly bench: BitmapMigration,
    random: SeededRandom,
  ) {
    this.fault = random.pick(FAULTS);
    this.at = 1 + random.int(COMMANDS);
  }

  async run(scope: Scope): Promise<void> {
    const { source, target } = this.bench;
    let strike = (): void => undefined;
    const passing = (command: string): void => {
      if (command === 'query-jobs') return;
      this.commands.push(command);
      if (this.commands.length === this.at) strike();
    };
    const tapOf = (side: Side): Promise<MonitorTap> =>
      MonitorTap.start(scope, {
        path: join(side.dir, 'tap'),
        monitorPath: side.daemon.qmpPath,
        passing,
      });
    const [from, to] = [await tapOf(source), await tapOf(target)];
    const wire = await CutRelay.start(scope, join(target.dir, 'wire'), target.socketPath);
    const child = startDiskferry([
      ...['migrate', '--from', from.path, '--node', 'disk', '--bitmaps', '--to-monitor', to.path],
      ...['--to', `nbd+unix:///disk?socket=${wire.path}`],
    ]);
    const said = collect(child.stderr);
    child.stdout?.resume();
    strike = (): void => {
      if (this.fault === 'command killed') child.kill('SIGKILL');
      else if (this.fault === 'command interrupted') child.kill('SIGINT');
      else if (this.fault === 'target killed') void target.daemon.kill();
      else if (this.fault === 'source killed') void source.daemon.kill();
      else if (this.fault === 'monitor of the target cut') to.cut();
      else if (this.fault === 'monitor of the source cut') from.cut();
      else wire.cut();
    };
    [this.code] = (await once(child, 'close')) as [number | null];
    this.said = said.text();
  }

  said = '';

  get description(): string {
    const last = this.commands[this.at - 1] ?? 'the end';
    return `seed ${this.bench.seed}: ${this.fault} at ${this.at} (${last}); ${this.code}: ${this.said}`;
  }
}

/** The command is gone but its job may be there: ends it the way that keeps the bitmaps. */
async function endJob(bench: BitmapMigration): Promise<void> {
  const { qmp } = bench.source;
  const jobs = await qmp.execute<{ id: string; status: string }[]>('query-jobs');
  const [job] = jobs;
  if (job === undefined) return;
  const { id } = job;
  const there = bench.target.daemon.exit === undefined ? await bitmapsOf(bench.target) : [];
  const carried = there.some(({ name }) => name === 'daily');
  if (carried) await qmp.reply('block-job-complete', { device: id });
  else await qmp.reply('block-job-cancel', { device: id, force: true });
  await bench.concluded(qmp, id).catch(() => undefined);
}

const isAlive = ({ daemon }: Side): boolean => daemon.exit === undefined;

/** The node that the users of the disk's export at the source are on. */
async function usersAt({ qmp }: Side): Promise<string> {
  const exports = await qmp.execute<{ id: string; 'node-name': string }[]>('query-block-exports');
  return exports.find(({ id }) => id === 'disk')?.['node-name'] ?? '';
}

/** Has the bitmaps, and they tell all that was written since the full backup. */
async function checkBitmaps(bench: BitmapMigration, side: Side, context: string): Promise<void> {
  const shown = (await bitmapsOf(side)).filter(({ name }) => FLAGS.some((f) => f.name === name));
  expect(shown, context).toMatchObject(FLAGS);
  const restored = await bench.restore(side);
  expect(differsAt(restored, await bench.content(side)), context).toBeUndefined();
}

async function checkAll(struck: Struck): Promise<void> {
  const { bench, description } = struck;
  const { source, target } = bench;
  const moved = isAlive(source) && (await usersAt(source)) !== 'disk';
  if (isAlive(source)) await checkBitmaps(bench, source, `source; ${description}`);
  const atTarget = isAlive(target) ? (await bitmapsOf(target)).map(({ name }) => name) : [];
  const carried = atTarget.includes('daily');
  // What has its name is whole, whether anybody uses the disk there or not.
  if (carried) await checkBitmaps(bench, target, `target; ${description}`);
  if (moved && isAlive(target)) expect(carried, description).toBe(true);
  if (struck.code === 0) expect(moved || !isAlive(source), description).toBe(true);
  if (bench.writeError === undefined && (moved ? isAlive(target) : isAlive(source))) {
    const content = await bench.content(moved ? target : source);
    expect(differsAt(content, bench.model), description).toBeUndefined();
    const marked = await bench.marked(moved ? target : source);
    expect(missingMark(marked, bench.touched), description).toBeUndefined();
  }
  if (!moved && isAlive(source)) expect(bench.writeError, description).toBeUndefined();
  if (/command killed|monitor/.test(struck.fault)) return;
  // The command was there to the end, and could tidy up.
  const left = [
    ...atTarget,
    ...(isAlive(source) ? await bitmapsOf(source) : []).map((b) => b.name),
  ];
  expect(
    left.filter((name) => name.startsWith('migrate-')),
    description,
  ).toEqual([]);
  if (isAlive(source) && !moved) expect(atTarget, description).toEqual([]);
  const clean = { nodes: ['disk', 'file'], exports: ['disk'] };
  if (isAlive(target)) expect(await inventory(target), description).toEqual(clean);
  if (isAlive(source) && !moved) expect(await inventory(source), description).toEqual(clean);
}

describe('a migration with bitmaps that is struck', () => {
  it.each(SEEDS)('leaves no bitmap that lacks a mark, seed %i', async (seed) => {
    const scope = testScope();
    const bench = await BitmapMigration.start(scope, { seed });
    await bench.startWriting();
    const struck = new Struck(bench, new SeededRandom(seed));
    await struck.run(scope);
    await bench.wroteMore(20);
    if (isAlive(bench.source)) await endJob(bench);
    await bench.stopWriting();
    if (process.env.DISKFERRY_VERBOSE) console.log(struck.description, struck.commands.length);
    await checkAll(struck);
  });
});
