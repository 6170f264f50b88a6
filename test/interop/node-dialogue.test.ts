// SPDX-License-Identifier: MIT
/** What is said of nodes and objects that nobody has used yet is what qemu-storage-daemon says. */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { makeImage } from '../support/images.js';
import { converse, type QmpPeer, startMonitor } from '../support/qemu-monitor.js';
import { testScope } from '../support/temp.js';

const MIB = 1024 * 1024;
const PEERS: readonly QmpPeer[] = ['diskferryd', 'qemu-storage-daemon'];

it('query-blockstats, for files with what they tell of discards', async () => {
  const scope = testScope();
  const path = join(await scope.tempDir(), 'disk.img');
  await makeImage(path, { size: MIB });
  const said = [];
  for (const peer of PEERS) {
    const qmp = await startMonitor(scope, peer);
    const file = { driver: 'file', 'node-name': 'file', filename: path, 'read-only': true };
    await qmp.execute('blockdev-add', file);
    await qmp.execute('blockdev-add', { driver: 'raw', 'node-name': 'raw', file: 'file' });
    const all = await qmp.execute<unknown[]>('query-blockstats', { 'query-nodes': true });
    expect(JSON.stringify(all)).toContain('"discard-nb-ok":0');
    said.push(JSON.parse(JSON.stringify(all).replaceAll(/"account_(invalid|failed)":\w+,/g, '')));
  }
  expect(said[0]).toEqual(said[1]);
});

it('qom-set of limits that are wrong, which are named with their place', async () => {
  const scope = testScope();
  const wrong = [
    5,
    { 'iops-totl': 5 },
    { 'iops-total': 'x' },
    { 'iops-total': -1 },
    { 'iops-total': 5, bps: 1 },
    { 'iops-total': 1, 'iops-read': 1 },
  ];
  const said = [];
  for (const peer of PEERS) {
    const qmp = await startMonitor(scope, peer);
    await qmp.execute('object-add', { 'qom-type': 'throttle-group', id: 'g' });
    const group = { path: '/objects/g', property: 'limits' };
    const set = (value: unknown) => ({ execute: 'qom-set', arguments: { ...group, value } });
    said.push((await converse(qmp, wrong.map(set))).replies);
  }
  expect(JSON.stringify(said[0])).toContain("'limits.iops-totl' is unexpected");
  expect(said[0]).toEqual(said[1]);
});
