// SPDX-License-Identifier: MIT
/**
 * `drive-mirror` and `drive-backup` said to a real qemu-system and to us: same replies, same events, same
 * images afterwards.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { MIB, makeImage } from '../support/images.js';
import { runPeer } from '../support/peers.js';
import {
  converse,
  type DialogueStep,
  type QmpPeer,
  startMonitor,
} from '../support/qemu-monitor.js';
import { testScope } from '../support/temp.js';

const SIZE = 4 * MIB;

interface Dialogue {
  readonly replies: unknown[];
  readonly events: unknown[];
}

async function dialogue(
  peer: QmpPeer,
  dir: string,
  steps: (path: (name: string) => string) => DialogueStep[],
): Promise<Dialogue> {
  const path = (name: string): string => join(dir, name);
  await makeImage(path(`${peer}.src`), {
    size: SIZE,
    data: [{ offset: 0, length: SIZE }],
    seed: 9,
  });
  await writeFile(path('small'), Buffer.alloc(MIB));
  const qmp = await startMonitor(testScope(), peer);
  return converse(qmp, [
    {
      execute: 'blockdev-add',
      arguments: {
        driver: 'raw',
        'node-name': 'src',
        file: { driver: 'file', filename: path(`${peer}.src`) },
      },
    },
    ...steps(path),
  ]);
}

/** Has the dialogue with both, each with files of its own, and compares all that was said. */
async function compare(steps: (path: (name: string) => string) => DialogueStep[]): Promise<string> {
  const dir = await testScope().tempDir();
  const theirs = await dialogue('qemu-system-x86_64', dir, steps);
  const ours = await dialogue('diskferryd', dir, steps);
  expect(ours).toEqual(theirs);
  return dir;
}

const refusedMirror = (args: object): DialogueStep => ({
  execute: 'drive-mirror',
  arguments: { 'job-id': 'job', device: 'src', sync: 'full', ...args },
});
const refusedBackup = (args: object): DialogueStep => ({
  execute: 'drive-backup',
  arguments: { 'job-id': 'job', device: 'src', sync: 'full', ...args },
});

const cancelled = { id: 'job', status: 'null' } as const;

it('refuses what qemu refuses, in its words', async () => {
  await compare((path) => [
    refusedMirror({ device: 'nobody', target: path('x') }),
    refusedMirror({ target: path('no/folder') }),
    refusedMirror({ target: path('x'), replaces: 'src' }),
    refusedMirror({ target: path('x'), format: 'bogus' }),
    refusedMirror({ target: path('x'), format: 'throttle' }),
    refusedMirror({ target: path('x'), format: 'bogus', mode: 'existing' }),
    refusedMirror({ target: path('x'), sync: 'none' }),
    refusedMirror({ target: path('absent'), format: 'raw', mode: 'existing' }),
    refusedMirror({ target: 'foo:bar' }),
    refusedMirror({ target: 'json:{"driver":"file"}' }),
    refusedMirror({ target: 'nbd:unix:/no/socket', format: 'raw' }),
    refusedMirror({ target: 'nbd:unix:/no/socket', format: 'raw', mode: 'existing' }),
    refusedMirror({ target: '', format: 'raw', mode: 'existing' }),
    refusedMirror({ target: path('small'), format: 'raw', mode: 'existing', 'node-name': 'src' }),
    refusedMirror({ target: path('small'), format: 'raw', mode: 'existing', 'node-name': '9' }),
    refusedMirror({ target: path('small'), format: 'raw', mode: 'existing', granularity: 77 }),
    refusedMirror({ target: path('small'), format: 'raw', mode: 'sideways' }),
    refusedBackup({ device: 'nobody', target: path('x') }),
    refusedBackup({ target: path('no/folder') }),
    refusedBackup({ target: path('x'), sync: 'none' }),
    refusedBackup({ target: path('small'), format: 'raw', mode: 'existing', compress: true }),
    refusedBackup({ target: path('x'), sync: 'incremental' }),
    refusedBackup({ target: path('x'), bitmap: 'nobody' }),
    { execute: 'query-jobs' },
    { execute: 'query-block-jobs' },
  ]);
});

it('refuses wrong combinations as qemu does', async () => {
  const existing = { format: 'raw', mode: 'existing' };
  await compare((path) => [
    refusedMirror({ target: path('small'), ...existing, 'node-name': 'n', replaces: 'nobody' }),
    refusedMirror({ target: path('small'), ...existing, granularity: 3000 }),
    refusedMirror({ target: path('small'), ...existing, granularity: 256 }),
    refusedMirror({ target: path('small'), ...existing, 'buf-size': -1 }),
    refusedMirror({ target: path('small'), ...existing, 'job-id': '9' }),
    refusedMirror({ target: path('small'), ...existing, 'copy-mode': 'sometimes' }),
    refusedMirror({ target: path('x'), format: 'qcow2', replaces: 'src' }),
    refusedMirror({}),
    refusedBackup({ target: path('small'), ...existing, bitmap: 'b', sync: 'full' }),
    refusedBackup({ target: path('small'), ...existing, 'bitmap-mode': 'always' }),
    refusedBackup({ target: path('small'), ...existing, sync: 'bitmap' }),
    refusedBackup({ target: path('small'), ...existing, sync: 'bitmap', bitmap: 'b' }),
    refusedBackup({
      ...{ target: path('small'), ...existing, sync: 'bitmap', bitmap: 'b' },
      'bitmap-mode': 'never',
    }),
    refusedBackup({ target: path('small'), ...existing, 'x-perf': { 'max-workers': 0 } }),
    refusedBackup({ target: path('small'), ...existing, 'x-perf': { 'max-chunk': -1 } }),
    refusedBackup({ target: path('diskferryd.none'), ...existing }),
    { execute: 'query-jobs' },
  ]);
});

it('mirrors only what is written from then on, into an overlay that then takes over', async () => {
  const dir = await compare((path) => [
    {
      ...refusedMirror({
        ...{ target: path('made'), sync: 'none', format: 'qcow2', 'node-name': 'new' },
      }),
      until: { id: 'job', status: 'ready' },
    },
    { execute: 'job-complete', arguments: { id: 'job' }, until: cancelled },
    { execute: 'blockdev-del', arguments: { 'node-name': 'src' } },
  ]);
  const info = ['info', '-U', '--output=json', join(dir, 'made')];
  const { stdout } = await runPeer('qemu-img', info);
  expect(JSON.parse(stdout)).toMatchObject({ 'backing-filename': join(dir, 'diskferryd.src') });
});

it('mirrors into an image that it makes, to the same events', async () => {
  const dir = await compare((path) => [
    { ...refusedMirror({ target: path('made') }), until: { id: 'job', status: 'ready' } },
    { execute: 'block-job-cancel', arguments: { device: 'job' }, until: cancelled },
  ]);
  await runPeer('qemu-img', [
    'compare',
    '-f',
    'raw',
    join(dir, 'made'),
    join(dir, 'diskferryd.src'),
  ]);
});

it('pivots to the image, whose node stays as long as it is used', async () => {
  await compare((path) => [
    {
      ...refusedMirror({ target: path('made'), 'node-name': 'new' }),
      until: { id: 'job', status: 'ready' },
    },
    { execute: 'job-complete', arguments: { id: 'job' }, until: cancelled },
    { execute: 'blockdev-del', arguments: { 'node-name': 'new' } },
    { execute: 'blockdev-del', arguments: { 'node-name': 'src' } },
  ]);
});

it('backs up into an image that it makes, to the same events', async () => {
  const dir = await compare((path) => [
    {
      ...refusedBackup({ target: path('made'), 'auto-dismiss': false }),
      until: { id: 'job', status: 'concluded' },
    },
    { execute: 'job-dismiss', arguments: { id: 'job' }, until: cancelled },
    {
      ...refusedBackup({ target: path('made'), format: 'raw', mode: 'existing' }),
      until: cancelled,
    },
  ]);
  await runPeer('qemu-img', [
    'compare',
    '-f',
    'raw',
    join(dir, 'made'),
    join(dir, 'diskferryd.src'),
  ]);
});

it('makes backups in a transaction, together or not at all', async () => {
  const dir = await compare((path) => {
    const backup = (name: string): object => ({
      type: 'drive-backup',
      data: { 'job-id': name, device: 'src', target: path(name), sync: 'full' },
    });
    const properties = { 'completion-mode': 'grouped' };
    return [
      {
        execute: 'transaction',
        arguments: { actions: [backup('a'), { type: 'abort', data: {} }], properties },
      },
      { execute: 'query-jobs' },
      {
        execute: 'transaction',
        arguments: { actions: [backup('b')], properties },
        until: { id: 'b', status: 'null' },
      },
    ];
  });
  await runPeer('qemu-img', ['compare', '-f', 'raw', join(dir, 'b'), join(dir, 'diskferryd.src')]);
});
