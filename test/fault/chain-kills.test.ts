// SPDX-License-Identifier: MIT
/**
 * Daemons that are killed while a chain grows or shrinks below a client that writes and flushes.
 * `DISKFERRY_SEED=n` runs one kill again, `DISKFERRY_SCHEDULES=n` more of them, `DISKFERRY_FIRST_SEED=n` others.
 */
import { copyFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { chainContent } from '../support/chain-content.js';
import { type Daemon, startDaemon } from '../support/daemon.js';
import { DurableWriter } from '../support/durable-writer.js';
import { seedsToRun } from '../support/job-schedule.js';
import { tryPeer } from '../support/peers.js';
import { createImage, KIB, qemuIo } from '../support/qcow2.js';
import type { QmpClient } from '../support/qmp-client.js';
import { SeededRandom } from '../support/seeded-random.js';
import { Scope, testScope } from '../support/temp.js';

const SIZE = 2048 * KIB;
const LAYERS = ['a', 'b', 'c', 'd'] as const;
/** The client gets so many requests done before the daemon dies, at most. */
const REQUESTS_MAX = 60;
/** Kills at a time. */
const LANES = 3;

/** What a daemon is told; it answers with the images that may be the top one from now on. */
type Work = (life: Life) => Promise<void>;

interface Life {
  readonly dir: string;
  readonly daemon: Daemon;
  readonly qmp: QmpClient;
  readonly random: SeededRandom;
  /** Images that may be the topmost one. */
  tops: string[];
}

const snapshotOf = (node: string, overlay: string) => ({
  ...{ 'node-name': node, 'snapshot-file': `${overlay}`, 'snapshot-node-name': overlay },
});

const WORKS: Record<string, Work> = {
  async snapshots(life) {
    for (let at = 0; ; at++) {
      const [top = 'd'] = life.tops;
      const overlay = `s${at}`;
      life.tops = [overlay, top];
      await life.qmp.execute('blockdev-snapshot-sync', snapshotOf(top, overlay));
      life.tops = [overlay];
    }
  },
  async transactions(life) {
    for (let at = 0; ; at++) {
      const [top = 'd'] = life.tops;
      const names = [`s${at}`, `t${at}`] as const;
      const fails = at % 3 === 2;
      if (!fails) life.tops = [names[1], names[0], top];
      const actions = [
        { type: 'blockdev-snapshot-sync', data: snapshotOf(top, names[0]) },
        { type: 'block-dirty-bitmap-add', data: { node: top, name: `m${at}`, persistent: true } },
        { type: 'blockdev-snapshot-sync', data: snapshotOf(names[0], names[1]) },
        ...(fails ? [{ type: 'abort', data: {} }] : []),
      ];
      await life.qmp.reply('transaction', { actions });
      if (!fails) life.tops = [names[1]];
    }
  },
  async stream({ qmp, random }) {
    const bases: [object, ...object[]] = [{}, { 'base-node': 'a' }, { bottom: 'c' }];
    const base = random.pick(bases);
    await qmp.execute('block-stream', { 'job-id': 'j', device: 'd', ...base });
    await qmp.event('BLOCK_JOB_COMPLETED');
    await qmp.execute('block-dirty-bitmap-add', { node: 'd', name: 'm', persistent: true });
    await new Promise(() => undefined);
  },
  async 'stream below'({ qmp }) {
    await qmp.execute('block-stream', { 'job-id': 'j', device: 'c', 'base-node': 'a' });
    await qmp.event('BLOCK_JOB_COMPLETED');
    await qmp.execute('block-stream', { 'job-id': 'k', device: 'c' });
    await new Promise(() => undefined);
  },
  async commit({ qmp, random }) {
    const [top, base] = random.pick(['ca', 'ba', 'cb']);
    const ends = { 'top-node': top, 'base-node': base };
    await qmp.execute('block-commit', { 'job-id': 'j', device: 'd', ...ends });
    await qmp.event('BLOCK_JOB_COMPLETED');
    await new Promise(() => undefined);
  },
  async 'active commit'(life) {
    const { qmp, random } = life;
    const base = random.pick(['a', 'b', 'c']);
    await qmp.execute('block-commit', { 'job-id': 'j', device: 'd', 'base-node': base });
    await qmp.event('BLOCK_JOB_READY');
    life.tops = [base, 'd'];
    await qmp.execute('job-complete', { id: 'j' });
    await qmp.event('BLOCK_JOB_COMPLETED');
    life.tops = [base];
    await new Promise(() => undefined);
  },
};

async function makeTemplate(dir: string): Promise<Buffer> {
  for (const [at, name] of LAYERS.entries()) {
    const below = LAYERS[at - 1];
    const backing = below === undefined ? '' : `backing_file=${below},backing_fmt=qcow2`;
    await createImage(join(dir, name), SIZE, backing);
    await qemuIo(join(dir, name), [
      `write -P ${at + 1} ${at * 200}k 500k`,
      `write -z ${at * 200 + 50}k 100k`,
    ]);
  }
  return chainContent(dir, 'd');
}

async function begin(scope: Scope, dir: string): Promise<{ daemon: Daemon; client: NbdClient }> {
  let backing: object | null = null;
  for (const name of LAYERS) {
    const file = { driver: 'file', filename: name };
    backing = { driver: 'qcow2', 'node-name': name, discard: 'unmap', file, backing };
  }
  const socket = join(dir, 'nbd');
  const daemon = await startDaemon(
    scope,
    [
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--blockdev', JSON.stringify(backing)],
      ...['--export', 'type=nbd,id=e,node-name=d,name=disk,writable=on'],
    ],
    { cwd: dir, mayFail: true },
  );
  const client = await NbdClient.connect({
    address: { type: 'unix', path: socket },
    exportName: 'disk',
    connections: 1,
  });
  return { daemon, client };
}

/** Starts a daemon, gives it work, kills it, and looks at what is left. */
async function kill(template: string, content: Buffer, seed: number): Promise<void> {
  const scope = new Scope();
  try {
    const random = new SeededRandom(seed);
    const dir = await scope.tempDir();
    for (const name of LAYERS) await copyFile(join(template, name), join(dir, name));
    const { daemon, client } = await begin(scope, dir);
    const qmp = await daemon.qmp(scope);
    const writer = new DurableWriter(client, content, random);
    const life: Life = { dir, daemon, qmp, random, tops: ['d'] };
    const names = Object.keys(WORKS);
    const name = names[seed % names.length] ?? '';
    let failed: unknown;
    const working = WORKS[name]?.(life).catch((error: unknown) => {
      failed ??= daemon.exit === undefined ? error : undefined;
    });
    const writing = writer.run();
    await writer.reach(random.int(REQUESTS_MAX));
    for (let turns = random.int(20); turns > 0; turns--) await turn();
    const tops = [...life.tops];
    if (failed !== undefined) throw failed;
    await daemon.kill();
    await Promise.race([working, writing]);
    await client.close();
    await look({ template, dir, tops, writer });
  } catch (error) {
    throw new Error(`DISKFERRY_SEED=${seed}`, { cause: error });
  } finally {
    await scope.close();
  }
}

/** One of the images that may be the top one has all that was flushed; none is corrupt. */
async function look(life: Look): Promise<void> {
  const { dir, tops, writer } = life;
  const wrong: string[] = [];
  let good: string | undefined;
  for (const top of tops) {
    try {
      const missing = writer.missing(await chainContent(dir, top));
      if (missing === undefined) good ??= top;
      else wrong.push(`${top}: ${missing}`);
    } catch (error) {
      // An overlay that was not finished is nobody's top.
      wrong.push(`${top}: ${String(error)}`);
    }
  }
  expect(good, wrong.join('; ')).toBeDefined();
  for (const name of new Set([good ?? '', ...LAYERS])) {
    if (await isAsBefore(life, name)) continue;
    const { code, stdout, stderr } = await tryPeer('qemu-img', ['check', join(dir, name)]);
    // 3: leaked clusters, which is what a kill may leave.
    expect([0, 3], `${name}: ${stdout}${stderr}`).toContain(code);
  }
}

interface Look {
  readonly template: string;
  readonly dir: string;
  readonly tops: readonly string[];
  readonly writer: DurableWriter;
}

async function isAsBefore({ template, dir }: Look, name: string): Promise<boolean> {
  if (!(LAYERS as readonly string[]).includes(name)) return false;
  const [before, now] = [await readFile(join(template, name)), await readFile(join(dir, name))];
  return before.equals(now);
}

describe('a daemon that is killed', () => {
  it('leaves chains that have all that was flushed', { timeout: 3_600_000 }, async () => {
    const template = await testScope().tempDir();
    const content = await makeTemplate(template);
    const seeds = seedsToRun(204);
    const lane = async (): Promise<void> => {
      for (let seed = seeds.shift(); seed !== undefined; seed = seeds.shift()) {
        await kill(template, content, seed);
      }
    };
    await Promise.all(Array.from({ length: LANES }, lane));
  });
});
