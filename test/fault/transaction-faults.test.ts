// SPDX-License-Identifier: MIT
/**
 * Transactions during which a write to the image fails, the first one, the second one, and so on: in the action
 * itself, in the one after it, or while all is undone. Either all has been done, or all is as before.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { BlockNode } from '../../src/block/node.js';
import { openNode } from '../../src/block/open-node.js';
import { ChainBench } from '../support/chain-bench.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { VolatileFile } from '../support/power-loss.js';
import { createImage, KIB, MIB, qemuContent, qemuIo } from '../support/qcow2.js';
import { SeededRandom } from '../support/seeded-random.js';
import { Scope } from '../support/temp.js';

const SIZE = 1 * MIB;
/** No transaction writes as often. */
const WRITES_MAX = 60;

const INTERNAL = 'blockdev-snapshot-internal-sync';

const bitmap = (name: string): object => ({ node: 'd', name });

/** What each action does to the node `d`. */
const ACTIONS: Readonly<Record<string, (dir: string) => object>> = {
  'block-dirty-bitmap-add': () => ({ ...bitmap('new'), persistent: true }),
  'block-dirty-bitmap-remove': () => bitmap('old'),
  'block-dirty-bitmap-clear': () => bitmap('old'),
  'block-dirty-bitmap-enable': () => bitmap('off'),
  'block-dirty-bitmap-disable': () => bitmap('old'),
  'block-dirty-bitmap-merge': () => ({ node: 'd', target: 'off', bitmaps: ['old'] }),
  'blockdev-backup': () => ({ 'job-id': 'j', device: 'd', target: 't', sync: 'full' }),
  'blockdev-snapshot': () => ({ node: 'd', overlay: 'o' }),
  [INTERNAL]: () => ({ device: 'd', name: 'i' }),
  'blockdev-snapshot-sync': (dir) => ({
    ...{ 'node-name': 'd', 'snapshot-file': join(dir, 's'), 'snapshot-node-name': 's' },
  }),
  'drive-backup': (dir) => ({
    ...{ 'job-id': 'k', device: 'd', target: join(dir, 'b'), format: 'raw', sync: 'full' },
  }),
};
/** What comes after it. */
const NEXT: Readonly<Record<string, readonly object[]>> = {
  nothing: [],
  'a bitmap': [
    { type: 'block-dirty-bitmap-add', data: { ...bitmap('next'), persistent: true } },
    { type: 'block-dirty-bitmap-clear', data: bitmap('third') },
  ],
  abort: [{ type: 'abort', data: {} }],
};

const scope = new Scope();
let image: Buffer;
let content: Buffer;

beforeAll(async () => {
  const dir = await scope.tempDir();
  const path = join(dir, 'disk');
  await createImage(path, SIZE, 'cluster_size=4k');
  for (const name of ['old', 'off', 'third']) {
    await runPeer('qemu-img', ['bitmap', '--add', '-g', '64k', path, name]);
  }
  await runPeer('qemu-img', ['bitmap', '--disable', path, 'off']);
  await qemuIo(path, ['write -P 0x2a 128k 300k']);
  image = await readFile(path);
  content = await qemuContent(path, join(dir, 'raw'));
});
afterAll(() => scope.close());

interface Bench {
  readonly own: Scope;
  readonly bench: ChainBench;
  readonly file: VolatileFile;
  readonly node: BlockNode;
}

async function begin(): Promise<Bench> {
  const own = new Scope();
  const bench = await ChainBench.make(own, new SeededRandom(1));
  const { graph } = bench.daemon;
  const file = new VolatileFile(image, 8 * MIB);
  graph.drivers.register(file.definition());
  const node = await openNode(
    graph,
    { driver: 'qcow2', 'node-name': 'd', file: { driver: 'volatile' } },
    { monitorOwned: true },
  );
  await bench.createImage('o', { size: SIZE, clusterSize: 4 * KIB });
  await bench.execute('blockdev-add', bench.layer('o', 'qcow2', null));
  await bench.execute('blockdev-add', { driver: 'null-co', 'node-name': 't', size: SIZE });
  return { own, bench, file, node };
}

/** All that a transaction may change. */
async function stateOf({ bench, node }: Bench) {
  const { graph, jobs } = bench.daemon;
  const bitmaps = [...node.bitmaps.values()].map((one) => {
    const { name, count, enabled, recording, persistent } = one;
    return { name, count, enabled, recording, persistent };
  });
  const parents = [...node.parents].map(({ parent, role }) => `${role} of ${parent.describe}`);
  return {
    bitmaps: bitmaps.sort((a, b) => ((a.name ?? '') < (b.name ?? '') ? -1 : 1)),
    nodes: graph.nodes.map(({ name }) => name).filter((name) => !name.startsWith('#')),
    parents: parents.length,
    snapshots: await node.driver.snapshots?.list(),
    jobs: jobs.blockJobs.map(({ id }) => id),
  };
}

/** What is in the image when it is closed: sound, but for leaks, and the same. */
async function expectWhole({ own, file }: Bench): Promise<void> {
  const dir = await own.tempDir();
  const path = join(dir, 'left');
  await writeFile(path, file.content);
  const { code, stdout, stderr } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', path]);
  expect([0, 3], stdout + stderr).toContain(code);
  expect((await qemuContent(path, join(dir, 'raw'))).equals(content)).toBe(true);
}

/**
 * An internal snapshot is in the image before the abort comes; where the write that would take it out fails it
 * stays, as with QEMU.
 */
function mayStay(actions: readonly object[]): boolean {
  const types = actions.map((action) => ('type' in action ? action.type : undefined));
  return types.includes(INTERNAL) && types.includes('abort');
}

/** @returns whether the write was made, and failed */
async function failWrite(nth: number, actions: readonly object[]): Promise<boolean> {
  const all = await begin();
  const { own, bench, file } = all;
  try {
    const before = await stateOf(all);
    file.spared = nth;
    file.failing = 1;
    const failed = await bench.execute('transaction', { actions }).then(
      () => false,
      () => true,
    );
    const hit = file.failing === 0;
    file.failing = 0;
    if (failed && mayStay(actions)) {
      const { snapshots, ...after } = await stateOf(all);
      expect(after, `write ${nth}`).toEqual({ ...before, snapshots: undefined });
      expect(snapshots?.length ?? 0).toBeLessThanOrEqual(1);
    } else if (failed) expect(await stateOf(all), `write ${nth}`).toEqual(before);
    else expect(await stateOf(all), `write ${nth}`).not.toEqual(before);
    await bench.daemon.shutDown();
    await expectWhole(all);
    return hit;
  } finally {
    await own.close();
  }
}

describe('a transaction during which a write fails', () => {
  const cases = Object.keys(ACTIONS).flatMap((type) =>
    Object.keys(NEXT).map((next) => [type, next] as const),
  );

  it.each(cases)(
    'is done as a whole or not at all: %s, then %s',
    async (type, next) => {
      const dir = await scope.tempDir();
      const actions = [{ type, data: ACTIONS[type]?.(dir) ?? {} }, ...(NEXT[next] ?? [])];
      let nth = 0;
      while (await failWrite(nth, actions)) {
        nth++;
        expect(nth).toBeLessThan(WRITES_MAX);
      }
    },
    240_000,
  );
});
