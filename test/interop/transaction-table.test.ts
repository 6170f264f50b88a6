// SPDX-License-Identifier: MIT
/**
 * Every action of a transaction: alone, twice, and after each other one; the same followed by an abort.
 * What it says and what it leaves is compared with qemu-storage-daemon. After an abort all is as before.
 */
import { copyFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { waitUntil } from '../support/daemon.js';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { runPeer } from '../support/peers.js';
import { createImage, expectSound, MIB, qemuIo } from '../support/qcow2.js';
import type { QmpClient } from '../support/qmp-client.js';
import type { Scope } from '../support/temp.js';

const SIZE = 1 * MIB;
const TIMEOUT_MS = 120_000;

/** One transaction with nodes of its own; `n` is part of all their names. */
interface Case {
  readonly n: string;
  readonly dir: string;
}

type MakeAction = (one: Case, position: number) => object;

const bitmap = (n: string, name: string): object => ({ node: `d${n}`, name });

/** What each action does to the node `d`; two of a kind differ in what they make only. */
const ACTIONS: Readonly<Record<string, MakeAction>> = {
  'block-dirty-bitmap-add': ({ n }) => bitmap(n, 'new'),
  'block-dirty-bitmap-remove': ({ n }) => bitmap(n, 'old'),
  'block-dirty-bitmap-clear': ({ n }) => bitmap(n, 'old'),
  'block-dirty-bitmap-enable': ({ n }) => bitmap(n, 'off'),
  'block-dirty-bitmap-disable': ({ n }) => bitmap(n, 'old'),
  'block-dirty-bitmap-merge': ({ n }) => ({ node: `d${n}`, target: 'off', bitmaps: ['old'] }),
  'blockdev-backup': ({ n }, at) => ({
    ...{ 'job-id': `j${at}-${n}`, device: `d${n}`, target: `t${at}-${n}`, sync: 'full' },
  }),
  'blockdev-snapshot': ({ n }, at) => ({ node: `d${n}`, overlay: `o${at}-${n}` }),
  'blockdev-snapshot-internal-sync': ({ n }, at) => ({ device: `d${n}`, name: `i${at}` }),
  'blockdev-snapshot-sync': ({ n, dir }, at) => ({
    'node-name': `d${n}`,
    'snapshot-file': join(dir, `s${at}-${n}`),
    'snapshot-node-name': `s${at}-${n}`,
  }),
  'drive-backup': ({ n, dir }, at) => ({
    ...{ 'job-id': `k${at}-${n}`, device: `d${n}`, target: join(dir, `b${at}-${n}`) },
    ...{ format: 'raw', sync: 'full' },
  }),
};
const NAMES = Object.keys(ACTIONS);

/** The disk of every case, and an overlay, are copies of these. */
async function makeImages(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  const disk = join(dir, 'disk');
  await createImage(disk, SIZE, 'cluster_size=4k');
  for (const name of ['old', 'off']) {
    await runPeer('qemu-img', ['bitmap', '--add', '-g', '64k', disk, name]);
  }
  await runPeer('qemu-img', ['bitmap', '--disable', disk, 'off']);
  await qemuIo(disk, ['write -P 0x2a 128k 300k']);
  await createImage(join(dir, 'overlay'), SIZE, 'cluster_size=4k');
  const server = ['--nbd-server', `addr.type=unix,addr.path=${join(dir, 'nbd.sock')}`];
  return { dir, args: server };
}

/** The disk with a user above it, and the targets and overlays that the actions name. */
async function addNodes({ qmp }: Talk, { n, dir }: Case, types: readonly string[]): Promise<void> {
  const path = (name: string): string => join(dir, `${name}-${n}`);
  const add = (name: string, driver: string, more: object = {}): Promise<unknown> =>
    qmp.execute('blockdev-add', {
      ...{ driver, 'node-name': name, ...more },
      file: { driver: 'file', 'node-name': `${name}f`, filename: path(name.split('-')[0] ?? '') },
    });
  await copyFile(join(dir, 'disk'), path(`d${n}`));
  await add(`d${n}`, 'qcow2');
  await qmp.execute('block-export-add', {
    ...{ type: 'nbd', id: `e${n}`, 'node-name': `d${n}`, name: `e${n}`, writable: true },
  });
  for (const [at, type] of types.entries()) {
    if (type === 'blockdev-snapshot') {
      await copyFile(join(dir, 'overlay'), path(`o${at}`));
      await add(`o${at}-${n}`, 'qcow2', { backing: null });
    } else if (type === 'blockdev-backup') {
      await writeFile(path(`t${at}`), Buffer.alloc(SIZE));
      await add(`t${at}-${n}`, 'raw');
    }
  }
}

interface NodeInfo {
  readonly 'node-name': string;
  readonly backing_file_depth: number;
  readonly ro: boolean;
  readonly 'dirty-bitmaps'?: { readonly name?: string }[];
  readonly image: { readonly snapshots?: { readonly name: string; readonly id: string }[] };
}

/** All nodes of a case, with what a transaction may change. */
async function stateOf(qmp: QmpClient, { n }: Case): Promise<unknown[]> {
  const nodes = await qmp.execute<NodeInfo[]>('query-named-block-nodes');
  const own = nodes.filter(({ 'node-name': name }) => new RegExp(`^\\D(\\d-)?${n}f?$`).test(name));
  const told = own.map((node) => {
    const bitmaps = (node['dirty-bitmaps'] ?? []).filter(({ name }) => name !== undefined);
    const names = (node.image.snapshots ?? []).map(({ name, id }) => `${id} ${name}`);
    const { 'node-name': name, backing_file_depth: depth, ro } = node;
    return {
      name,
      depth,
      ro,
      bitmaps: bitmaps.map((one) => JSON.stringify(one, sortedKeys(one))).sort(),
      names,
    };
  });
  return told.sort((a, b) => (a.name < b.name ? -1 : 1));
}

const sortedKeys = (value: object): string[] => Object.keys(value).sort();

async function jobsEnded(qmp: QmpClient): Promise<void> {
  const none = async (): Promise<boolean> =>
    (await qmp.execute<unknown[]>('query-jobs')).length === 0;
  await waitUntil(none, { what: () => 'jobs to end' });
}

/** Runs the transactions, each with its own nodes. @returns what they said and left, by their actions */
async function runCases(
  talk: Talk,
  cases: readonly (readonly string[])[],
): Promise<Record<string, unknown>> {
  const results: Record<string, unknown> = {};
  for (const [index, types] of cases.entries()) {
    const one = { n: `${100 + index}`, dir: talk.dir };
    await addNodes(talk, one, types);
    const before = await stateOf(talk.qmp, one);
    const actions = types.map((type, at) => ({ type, data: ACTIONS[type]?.(one, at) ?? {} }));
    const { error } = await talk.qmp.reply('transaction', { actions });
    await jobsEnded(talk.qmp);
    const after = await stateOf(talk.qmp, one);
    if (error !== undefined) expect({ types, after }).toEqual({ types, after: before });
    results[types.join(' + ')] = { says: error?.desc ?? 'done', after };
  }
  return results;
}

/** The daemon lets go of the images, which are sound then and hold what they held. */
async function checkImages({ qmp, dir }: Talk, count: number): Promise<void> {
  await qmp.execute('quit');
  await qmp.closedByPeer();
  for (let index = 0; index < count; index++) {
    const n = `${100 + index}`;
    const disk = join(dir, `d${n}-${n}`);
    await expectSound(disk);
    await runPeer('qemu-img', ['compare', '-q', disk, join(dir, 'disk')]);
  }
}

describe('transactions', () => {
  it.each(NAMES)(
    'does as QEMU, and undoes: %s, alone and before another',
    async (first) => {
      const alone = [[first], ...NAMES.map((second) => [first, second])];
      const cases = alone.flatMap((types) => [types, [...types, 'abort']]);
      const ours: Talk[] = [];
      const results = await sayToBoth(makeImages, async (talk) => {
        const said = await runCases(talk, cases);
        // We are the first that it is said to.
        if (ours.length === 0) await checkImages(talk, cases.length);
        ours.push(talk);
        return said;
      });
      expect(results[`${first} + abort`]).toMatchObject({
        says: 'Transaction aborted using Abort action',
      });
      expect(results[first]).toMatchObject({ says: 'done' });
    },
    TIMEOUT_MS,
  );

  it('fails for abort alone, and before what would succeed', async () => {
    const cases = [['abort'], ...NAMES.map((name) => ['abort', name])];
    const results = await sayToBoth(makeImages, (talk) => runCases(talk, cases));
    for (const result of Object.values(results)) {
      expect(result).toMatchObject({ says: 'Transaction aborted using Abort action' });
    }
  });
});
