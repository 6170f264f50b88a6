// SPDX-License-Identifier: MIT
/** What is refused has not touched the file that it names: as it is with QEMU, and beyond. */
import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { startDaemon } from '../support/daemon.js';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { createImage, KIB, qemuIo } from '../support/qcow2.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 1024 * KIB;
const PRECIOUS = Buffer.alloc(300 * KIB, 'the only copy ');

/** a <- b, with data in `a`; c and t by themselves; a bitmap `mine` on `a`. */
async function makeImages(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  const args: string[] = [];
  for (const name of ['a', 'b', 'c', 't']) {
    await createImage(
      join(dir, name),
      SIZE,
      name === 'b' ? 'backing_file=a,backing_fmt=qcow2' : '',
    );
    const file = { driver: 'file', filename: join(dir, name) };
    const backing = name === 'b' ? 'a' : null;
    args.push(
      ...['--blockdev', JSON.stringify({ driver: 'qcow2', 'node-name': name, file, backing })],
    );
  }
  await qemuIo(join(dir, 'a'), ['write -P 7 0 512k']);
  await writeFile(join(dir, 'precious'), PRECIOUS);
  return { dir, args };
}

type Action = { type: string; data: object };
type ToPrecious = (path: string) => Action[];

const snapshot = (path: string, more: object = {}): Action => ({
  type: 'blockdev-snapshot-sync',
  data: { 'node-name': 'c', 'snapshot-file': path, 'snapshot-node-name': 'o', ...more },
});
const abort: Action = { type: 'abort', data: {} };
const bitmap = (what: string, node: string, name: string, more: object = {}): Action => ({
  type: `block-dirty-bitmap-${what}`,
  data: { node, name, ...more },
});
const backup = (more: object = {}): Action => ({
  type: 'blockdev-backup',
  data: { 'job-id': 'j', device: 'b', target: 't', sync: 'full', ...more },
});

/** QEMU, too, makes nothing: what fails comes first. */
const REFUSED: Record<string, ToPrecious> = {
  'an abort': (path) => [abort, snapshot(path)],
  'a bitmap that is not there': (path) => [bitmap('remove', 'c', 'nope'), snapshot(path)],
  'a bitmap that is there already': (path) => [
    bitmap('add', 'c', 'one'),
    bitmap('add', 'c', 'one'),
    snapshot(path),
  ],
  'a bitmap that was removed': (path) => [
    bitmap('add', 'c', 'one'),
    bitmap('remove', 'c', 'one'),
    bitmap('clear', 'c', 'one'),
    snapshot(path),
  ],
  'a merge from nowhere': (path) => [
    bitmap('add', 'c', 'one'),
    {
      type: 'block-dirty-bitmap-merge',
      data: { node: 'c', target: 'one', bitmaps: ['two'] },
    },
    snapshot(path),
  ],
  'a node that nobody has': (path) => [bitmap('add', 'z', 'one'), snapshot(path)],
  'a backup of nothing': (path) => [backup({ device: 'z' }), snapshot(path)],
  'a backup into itself': (path) => [backup({ target: 'b' }), snapshot(path)],
  'a backup by no bitmap': (path) => [
    backup({ sync: 'incremental', bitmap: 'nope' }),
    snapshot(path),
  ],
  'two jobs of one name': (path) => [backup(), backup({ device: 'a' }), snapshot(path)],
  'a snapshot below another image': (path) => [snapshot(path, { 'node-name': 'a' })],
  'a snapshot with the name of a node': (path) => [snapshot(path, { 'snapshot-node-name': 't' })],
  'a snapshot without a name': (path) => [
    { ...snapshot(path), data: { 'node-name': 'c', 'snapshot-file': path } },
  ],
  'a snapshot of nothing': (path) => [snapshot(path, { 'node-name': 'z' })],
  'a snapshot that can have nothing below': (path) => [snapshot(path, { format: 'raw' })],
  'a snapshot into its own image': (path) => [snapshot(join(dirname(path), 'c'))],
  'an overlay in use': (path) => [
    { type: 'blockdev-snapshot', data: { node: 'c', overlay: 'b' } },
    snapshot(path, { 'node-name': 't' }),
  ],
  'an internal snapshot without a name': (path) => [
    { type: 'blockdev-snapshot-internal-sync', data: { device: 'b', name: '' } },
    snapshot(path),
  ],
};

/** What was said to each command, and whether the file was touched by it. */
async function refusals(
  { qmp, dir }: Talk,
  commands: Record<string, (path: string) => [command: string, args: object]>,
): Promise<Record<string, { said: string; untouched: boolean }>> {
  const path = join(dir, 'precious');
  const told: Record<string, { said: string; untouched: boolean }> = {};
  for (const [name, command] of Object.entries(commands)) {
    const { desc } = await qmp.refused(...command(path));
    const untouched = (await readFile(path)).equals(PRECIOUS);
    told[name] = { said: desc.replaceAll(dir, ''), untouched };
    if (!untouched) await writeFile(path, PRECIOUS);
  }
  expect(Object.keys(told).filter((name) => told[name]?.untouched !== true)).toEqual([]);
  const nodes = await qmp.execute<{ 'dirty-bitmaps'?: unknown[] }[]>('query-named-block-nodes');
  expect(nodes.flatMap((node) => node['dirty-bitmaps'] ?? [])).toEqual([]);
  expect(await qmp.execute('query-jobs')).toEqual([]);
  return told;
}

const drive = (target: string, more: object = {}): object => ({
  ...{ 'job-id': 'j', device: 'c', sync: 'full', format: 'qcow2', target },
  ...more,
});

/** Beyond QEMU, or where its daemon has no such command. */
const OURS: Record<string, (path: string) => [command: string, args: object]> = {
  'a snapshot with a bad name': (path) => [
    'blockdev-snapshot-sync',
    snapshot(path, { 'snapshot-node-name': '9' }).data,
  ],
  'two snapshots of one node': (path) => [
    'transaction',
    {
      actions: [snapshot(path), snapshot(`${path}2`, { 'snapshot-node-name': 'p' })],
    },
  ],
  'an image that could have nothing below, second': (path) => [
    'transaction',
    { actions: [snapshot(path), snapshot(path, { 'node-name': 'b', format: 'raw' })] },
  ],
  'two images in one file': (path) => [
    'transaction',
    {
      actions: [snapshot(path), snapshot(path, { 'node-name': 'b', 'snapshot-node-name': 'p' })],
    },
  ],
  'a backup after an abort': (path) => [
    'transaction',
    { actions: [abort, { type: 'drive-backup', data: drive(path) }] },
  ],
  'a backup by a bitmap that a first one has': (path) => {
    const by = { sync: 'incremental', bitmap: 'one' };
    const first = backup({ device: 'c', ...by });
    const second = { type: 'drive-backup', data: drive(path, { ...by, 'job-id': 'k' }) };
    return ['transaction', { actions: [bitmap('add', 'c', 'one'), first, second] }];
  },
  'a backup with a bad job id': (path) => ['drive-backup', drive(path, { 'job-id': '9' })],
  'a backup with a speed below 0': (path) => ['drive-backup', drive(path, { speed: -1 })],
  'a backup by no bitmap': (path) => [
    'drive-backup',
    drive(path, { sync: 'incremental', bitmap: 'nope' }),
  ],
  'a backup to another format': (path) => ['drive-backup', drive(path, { format: 'null-co' })],
  'a mirror with a bad job id': (path) => ['drive-mirror', drive(path, { 'job-id': '9' })],
  'a mirror with a speed below 0': (path) => ['drive-mirror', drive(path, { speed: -1 })],
  'a mirror by no bitmap': (path) => [
    'drive-mirror',
    drive(path, { sync: 'incremental', bitmap: 'nope' }),
  ],
  'a mirror with the name of a node': (path) => ['drive-mirror', drive(path, { 'node-name': 't' })],
  'a mirror in the place of another disk': (path) => [
    'drive-mirror',
    drive(path, { 'node-name': 'n', replaces: 't' }),
  ],
};

async function ours(): Promise<Talk> {
  const scope = testScope();
  const { dir, args } = await makeImages(scope);
  const daemon = await startDaemon(scope, args);
  return { qmp: await daemon.qmp(scope), dir };
}

describe('a file that is named by what is refused is left alone', () => {
  it('as QEMU leaves it alone, and in its words', async () => {
    const commands = Object.entries(REFUSED).map(([name, actions]) => [
      name,
      (path: string) => ['transaction', { actions: actions(path) }],
    ]);
    await sayToBoth(makeImages, (talk) => refusals(talk, Object.fromEntries(commands)));
  });

  it('by a single command, or a transaction', async () => {
    await refusals(await ours(), OURS);
  });

  it('by a mirror or a snapshot of a node that a job has', async () => {
    const talk = await ours();
    const { qmp, dir } = talk;
    await qmp.execute('blockdev-mirror', {
      ...{ 'job-id': 'first', device: 'c', target: 't', sync: 'full' },
    });
    await qmp.event('BLOCK_JOB_READY');
    await qmp.refused('drive-mirror', drive(join(dir, 'precious')) as object);
    await qmp.refused('blockdev-snapshot-sync', snapshot(join(dir, 'precious')).data);
    expect((await readFile(join(dir, 'precious'))).equals(PRECIOUS)).toBe(true);
  });

  it('but overlays of overlays of one transaction are made', async () => {
    const { qmp, dir } = await ours();
    const path = join(dir, 'precious');
    await qmp.execute('transaction', {
      actions: [
        bitmap('add', 'c', 'one'),
        bitmap('disable', 'c', 'one'),
        snapshot(path),
        snapshot(`${path}2`, { 'node-name': 'o', 'snapshot-node-name': 'p' }),
        bitmap('add', 'o', 'two'),
        { type: 'drive-backup', data: drive(`${path}3`, { device: 'b' }) },
      ],
    });
    await qmp.event('BLOCK_JOB_COMPLETED');
    expect((await readFile(path)).equals(PRECIOUS)).toBe(false);
  });
});
