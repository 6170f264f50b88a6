// SPDX-License-Identifier: MIT
/** `blockdev-create` said to the real storage daemon and to us: same replies, same events, same files. */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { allocatedBytes, MIB } from '../support/images.js';
import { runPeerJson } from '../support/peers.js';
import {
  converse,
  type DialogueStep,
  type QmpPeer,
  startMonitor,
} from '../support/qemu-monitor.js';
import { testScope } from '../support/temp.js';

/** What we tell of jobs beyond QEMU. */
const OURS = ['remaining', 'rate', 'time-left'];

function withoutOurs(value: unknown): unknown {
  return JSON.parse(
    JSON.stringify(value, (key, member: unknown) => (OURS.includes(key) ? undefined : member)),
  );
}

function create(options: object, id = 'job'): DialogueStep[] {
  return [
    {
      execute: 'blockdev-create',
      arguments: { 'job-id': id, options },
      until: { id, status: 'concluded' },
    },
    { execute: 'query-jobs' },
    { execute: 'query-block-jobs' },
    { execute: 'job-dismiss', arguments: { id }, until: { id, status: 'null' } },
    { execute: 'query-jobs' },
  ];
}

async function dialogue(peer: QmpPeer, dir: string): Promise<unknown> {
  const qmp = await startMonitor(testScope(), peer);
  const path = (name: string): string => join(dir, name);
  const file = (name: string, size: number, more: object = {}): object => {
    return { driver: 'file', filename: path(name), size, ...more };
  };
  return converse(qmp, [
    ...create(file('plain', 3 * MIB)),
    ...create(file('odd', 1001)),
    ...create(file('empty', 0)),
    ...create(file('plain', MIB, { preallocation: 'falloc' })),
    ...create(file('full', MIB, { preallocation: 'full' })),
    ...create(file('no/such/folder', MIB)),
    ...create(file('metadata', MIB, { preallocation: 'metadata' })),
    ...create({ driver: 'file', filename: dir, size: MIB }),
    ...create({ driver: 'file', filename: '', size: MIB }),
    {
      execute: 'blockdev-create',
      arguments: { 'job-id': '9', options: file('never', MIB) },
    },
    { execute: 'blockdev-create', arguments: { 'job-id': 'job', options: { driver: 'null-co' } } },
    {
      execute: 'blockdev-create',
      arguments: { 'job-id': 'job', options: { driver: 'file', filename: path('never') } },
    },
    {
      execute: 'blockdev-create',
      arguments: { 'job-id': 'job', options: file('twice', MIB) },
      until: { id: 'job', status: 'concluded' },
    },
    { execute: 'blockdev-create', arguments: { 'job-id': 'job', options: file('never', MIB) } },
    { execute: 'job-cancel', arguments: { id: 'job' } },
  ]);
}

it('has the dialogue of qemu-storage-daemon', async () => {
  const dir = await testScope().tempDir();
  const theirs = await dialogue('qemu-storage-daemon', dir);
  const ours = await dialogue('diskferryd', dir);
  expect(withoutOurs(ours)).toEqual(theirs);
  for (const [name, size] of Object.entries({ plain: MIB, odd: 1001, empty: 0, full: MIB })) {
    expect((await stat(join(dir, name))).size, name).toBe(size);
  }
  expect((await stat(join(dir, 'metadata'))).size).toBe(0);
  await expect(stat(join(dir, 'never'))).rejects.toThrow('ENOENT');
  expect(await allocatedBytes(join(dir, 'full'))).toBe(MIB);
  expect(await allocatedBytes(join(dir, 'plain'))).toBe(MIB);
  const map = ['map', '--output=json', '-f', 'raw', join(dir, 'full')];
  expect(await runPeerJson('qemu-img', map)).toMatchObject([{ length: MIB, data: true }]);
});
