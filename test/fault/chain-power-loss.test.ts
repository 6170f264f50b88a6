// SPDX-License-Identifier: MIT
/**
 * Chains on files that lose power while they grow or shrink: what was written since the last flush of a file is
 * there in part. `DISKFERRY_SEED=n` runs one again, `DISKFERRY_SCHEDULES=n` more of them,
 * `DISKFERRY_FIRST_SEED=n` others.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { BlockBackend } from '../../src/block/backend.js';
import type { DriverOptions } from '../../src/block/block-driver.js';
import { openNode } from '../../src/block/open-node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../src/block/permissions.js';
import type { Job } from '../../src/job/job.js';
import { ChainBench } from '../support/chain-bench.js';
import { chainContent } from '../support/chain-content.js';
import { DurableWriter } from '../support/durable-writer.js';
import { seedsToRun } from '../support/job-schedule.js';
import { tryPeer } from '../support/peers.js';
import { VolatileFile } from '../support/power-loss.js';
import { createImage, KIB, qemuIo } from '../support/qcow2.js';
import { Random } from '../support/qcow2-model.js';
import { SeededRandom } from '../support/seeded-random.js';
import { Scope, testScope } from '../support/temp.js';

const SIZE = 700 * KIB;
/** A file may grow so far. */
const CAPACITY = 2048 * KIB;
const LAYERS = ['a', 'b', 'c', 'd'] as const;
/** An image that becomes an overlay. */
const OVERLAY = 'e';
const LOSSES_MAX = 8;

async function makeTemplate(dir: string): Promise<Map<string, Buffer>> {
  const images = new Map<string, Buffer>();
  for (const [at, name] of [...LAYERS, OVERLAY].entries()) {
    const below = [...LAYERS][at - 1];
    const backing = below === undefined ? '' : `,backing_file=${below},backing_fmt=qcow2`;
    await createImage(join(dir, name), SIZE, `cluster_size=4k${backing}`);
    if (name !== OVERLAY) {
      await qemuIo(join(dir, name), [
        `write -P ${at + 1} ${at * 100}k 200k`,
        `write -z ${at * 100 + 50}k 50k`,
      ]);
    }
    images.set(name, await readFile(join(dir, name)));
  }
  return images;
}

class Life {
  readonly losses: Random;
  /** Images that may be the topmost one now. */
  tops: string[] = ['d'];

  constructor(
    readonly bench: ChainBench,
    readonly writer: DurableWriter,
    readonly random: SeededRandom,
    readonly files: ReadonlyMap<string, VolatileFile>,
  ) {
    this.losses = new Random(random.int(1 << 30) + 1);
  }

  job(id: string): Job {
    return this.bench.daemon.jobs.get(id);
  }

  execute(command: string, args: object): Promise<unknown> {
    return this.bench.execute(command, args);
  }

  /** The power is lost at this moment, in another world: what is there then? */
  async lose(kind: 'kill' | 'power'): Promise<void> {
    const { bench, writer } = this;
    const tops = [...this.tops];
    const judge = writer.moment();
    const left = [...this.files].map(([name, file]) => {
      const bytes = kind === 'kill' ? Buffer.from(file.content) : file.loss(this.losses);
      return { name, bytes: bytes.subarray(0, file.size) };
    });
    for (const { name, bytes } of left) await writeFile(bench.path(name), bytes);
    const wrong: string[] = [];
    for (const top of tops) {
      const seen = await chainContent(bench.dir, top).catch((error: unknown) => String(error));
      const missing = typeof seen === 'string' ? seen : judge(seen);
      if (missing === undefined) return;
      wrong.push(`${top}: ${missing}`);
    }
    throw new Error(`after a loss (${kind}) ${wrong.join('; ')}`);
  }

  /** QEMU finds nothing corrupt in what the last loss left. 3: leaked clusters. */
  async ask(): Promise<void> {
    for (const name of this.files.keys()) {
      const path = this.bench.path(name);
      const { code, stdout, stderr } = await tryPeer('qemu-img', ['check', '-U', path]);
      expect([0, 3], `${name}: ${stdout}${stderr}`).toContain(code);
    }
  }
}

type Work = (life: Life) => Promise<void>;

const job = async (life: Life, command: string, args: object): Promise<void> => {
  const options = { 'job-id': 'j', speed: life.random.pick([0, 0, 3_000_000]), ...args };
  await life.execute(command, options);
  const { concluded } = life.job('j');
  await concluded;
};

const WORKS: Record<string, Work> = {
  async snapshot(life) {
    life.tops = [OVERLAY, 'd'];
    await life.execute('blockdev-snapshot', { node: 'd', overlay: OVERLAY });
    life.tops = [OVERLAY];
  },
  async transaction(life) {
    const snapshot = { type: 'blockdev-snapshot', data: { node: 'd', overlay: OVERLAY } };
    const bitmap = { type: 'block-dirty-bitmap-add', data: { node: 'd', name: 'm' } };
    const fails = life.random.chance(0.5);
    life.tops = fails ? ['d'] : [OVERLAY, 'd'];
    const actions = [bitmap, snapshot, ...(fails ? [{ type: 'abort', data: {} }] : [])];
    const done = await life.execute('transaction', { actions }).then(
      () => true,
      () => false,
    );
    expect(done).toBe(!fails);
    if (done) life.tops = [OVERLAY];
  },
  async 'transaction of many'(life) {
    const bitmap = (node: string, name: string): object => ({
      type: 'block-dirty-bitmap-add',
      data: { node, name, persistent: true, granularity: 4096 },
    });
    const saved = { type: 'blockdev-snapshot-internal-sync', data: { device: 'd', name: 's' } };
    const snapshot = { type: 'blockdev-snapshot', data: { node: 'd', overlay: OVERLAY } };
    const merge = { node: OVERLAY, target: 'm', bitmaps: [{ node: 'd', name: 'm' }] };
    const actions = [
      ...[bitmap('d', 'm'), saved, snapshot, bitmap(OVERLAY, 'm')],
      { type: 'block-dirty-bitmap-merge', data: merge },
      { type: 'block-dirty-bitmap-remove', data: { node: 'd', name: 'm' } },
    ];
    const abort = { type: 'abort', data: {} };
    const last = life.random.int(actions.length + 1);
    const fails = last < actions.length;
    life.tops = fails && last < 3 ? ['d'] : [OVERLAY, 'd'];
    const said = fails ? [...actions.slice(0, last), abort] : actions;
    const done = await life.execute('transaction', { actions: said }).then(
      () => true,
      () => false,
    );
    expect(done).toBe(!fails);
    life.tops = done ? [OVERLAY] : ['d'];
  },
  async stream(life) {
    const ends: [object, ...object[]] = [{}, { 'base-node': 'a' }, { bottom: 'c' }];
    await job(life, 'block-stream', { device: 'd', ...life.random.pick(ends) });
  },
  async 'stream below'(life) {
    const ends: [object, ...object[]] = [{}, { 'base-node': 'a' }];
    await job(life, 'block-stream', { device: 'c', ...life.random.pick(ends) });
  },
  async commit(life) {
    const [top, base] = life.random.pick(['ca', 'ba', 'cb']);
    await job(life, 'block-commit', { device: 'd', 'top-node': top, 'base-node': base });
  },
  async 'active commit'(life) {
    const base = life.random.pick(['a', 'b', 'c']);
    const cancelled = life.random.chance(0.3);
    const stop = life.bench.daemon.jobs.listen({
      stateChanged: ({ state, id }) => {
        if (state !== 'ready') return;
        const verb = cancelled ? 'job-cancel' : 'job-complete';
        if (!cancelled) life.tops = [base, 'd'];
        void life.execute(verb, { id });
      },
    });
    await job(life, 'block-commit', { device: 'd', 'base-node': base });
    stop();
    if (!cancelled) life.tops = [base];
  },
};

async function begin(scope: Scope, images: Map<string, Buffer>, content: Buffer, seed: number) {
  const random = new SeededRandom(seed);
  const bench = await ChainBench.make(scope, random);
  const { graph } = bench.daemon;
  const files = new Map<string, VolatileFile>();
  for (const [name, bytes] of images) {
    files.set(name, new VolatileFile(bytes, CAPACITY, bench.path(name)));
  }
  graph.drivers.register({
    name: 'volatile',
    kind: 'protocol',
    children: [],
    open: ({ image }) => files.get(String(image)) ?? fail(`no image ${String(image)}`),
  });
  let backing: DriverOptions | null = null;
  for (const name of LAYERS) backing = layer(name, backing);
  const node = await openNode(graph, backing ?? {}, { monitorOwned: true });
  await openNode(graph, layer(OVERLAY, null), { monitorOwned: true });
  const guest = new BlockBackend('the guest');
  const wanted = { taken: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };
  await graph.attach(guest, node, wanted);
  scope.defer(() => graph.detach(guest));
  const life = new Life(bench, new DurableWriter(guest, content, random), random, files);
  return life;
}

function fail(text: string): never {
  throw new Error(text);
}

const layer = (image: string, backing: DriverOptions | null): DriverOptions => ({
  ...{ driver: 'qcow2', 'node-name': image, discard: 'unmap', backing },
  file: { driver: 'volatile', image, discard: 'unmap' },
});

async function run(images: Map<string, Buffer>, content: Buffer, seed: number): Promise<void> {
  const scope = new Scope();
  const names = Object.keys(WORKS);
  const name = names[seed % names.length] ?? '';
  try {
    const life = await begin(scope, images, content, seed);
    const { random, writer } = life;
    const writing = writer.run();
    await writer.reach(random.int(10));
    let over = false;
    const working = WORKS[name]?.(life).finally(() => {
      over = true;
    });
    for (let loss = 0; loss < LOSSES_MAX && !over; loss++) {
      for (let turns = random.int(12); turns > 0; turns--) await turn();
      await life.lose(random.pick(['kill', 'power', 'power']));
    }
    await working;
    await life.lose('power');
    await writer.reach(writer.steps + 5);
    await life.lose('power');
    writer.stop();
    await writing;
    await life.ask();
  } catch (error) {
    throw new Error(`DISKFERRY_SEED=${seed}, ${name}`, { cause: error });
  } finally {
    await scope.close();
  }
}

describe('a chain whose files lose power', () => {
  it('has all that was flushed, at any moment', { timeout: 3_600_000 }, async () => {
    const dir = await testScope().tempDir();
    const images = await makeTemplate(dir);
    const content = await chainContent(dir, 'd');
    for (const seed of seedsToRun(60)) await run(images, content, seed);
  });
});
