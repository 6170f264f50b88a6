// SPDX-License-Identifier: MIT
/**
 * Copies of a layer into an image whose clusters are larger than what is copied, and which does not have
 * its backing file attached: nothing else would fill up a cluster that is written in part.
 */
import { join } from 'node:path';
import { describe, it } from 'vitest';
import { startDaemon } from '../support/daemon.js';
import { runPeer } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { testScope } from '../support/temp.js';

interface Layers {
  readonly qmp: QmpClient;
  readonly dir: string;
  readonly socket: string;
}

/** A base full of bytes, an overlay with one cluster, an empty copy of it with clusters of `cluster`. */
async function makeLayers(cluster: string, more: readonly string[] = []): Promise<Layers> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const at = (name: string): string => join(dir, name);
  const socket = at('nbd.sock');
  await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', at('base'), '16M']);
  await runPeer('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 1 0 16M', at('base')]);
  for (const [name, options] of [
    ['top', 'cluster_size=64k'],
    ['copy', `cluster_size=${cluster}`],
  ] as const) {
    const backing = ['-b', at('base'), '-F', 'qcow2'];
    await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', options, ...backing, at(name)]);
  }
  await runPeer('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 2 4M 64k', at('top')]);
  const file = (name: string): string => `file.driver=file,file.filename=${at(name)}`;
  const daemon = await startDaemon(scope, [
    ...['--blockdev', `driver=qcow2,node-name=top,${file('top')}`],
    ...[
      '--blockdev',
      `{"driver":"qcow2","node-name":"copy","backing":null,
      "file":{"driver":"file","filename":"${at('copy')}"}}`,
    ],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'nbd,id=e,node-name=top,name=disk,writable=on', ...more],
  ]);
  return { qmp: await daemon.qmp(scope), dir, socket };
}

async function write({ socket }: Layers, ...requests: readonly string[]): Promise<void> {
  const commands = requests.flatMap((request) => ['-c', request]);
  await runPeer('qemu-io', ['-f', 'raw', ...commands, `nbd+unix:///disk?socket=${socket}`]);
}

/** Ends the daemon's use of both images and compares them, each over its backing file. */
async function expectEqual({ qmp, dir }: Layers): Promise<void> {
  await qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
  await qmp.event('BLOCK_EXPORT_DELETED');
  for (const name of ['copy', 'top']) await qmp.execute('blockdev-del', { 'node-name': name });
  const images = ['top', 'copy'].map((name) => join(dir, name));
  await runPeer('qemu-img', ['compare', '-f', 'qcow2', '-F', 'qcow2', ...images]);
  await runPeer('qemu-img', ['check', '-q', join(dir, 'copy')]);
}

const WRITES = [
  'write -P 3 9M 4k',
  'write -z 1M 4k',
  'write -P 4 12615680 192k',
  'write -P 5 4M 1k',
];

describe('an image with its backing file left away is a full copy of the layer', () => {
  for (const [cluster, mode] of [
    ['2M', 'background'],
    ['2M', 'write-blocking'],
    ['64k', 'write-blocking'],
    ['4k', 'write-blocking'],
  ] as const) {
    it(`after a mirror in mode ${mode} into clusters of ${cluster}`, async () => {
      const layers = await makeLayers(cluster);
      const { qmp } = layers;
      const job = { 'job-id': 'job', device: 'top', target: 'copy', sync: 'top' };
      await qmp.execute('blockdev-mirror', { ...job, 'copy-mode': mode });
      await qmp.event('BLOCK_JOB_READY');
      await write(layers, ...WRITES);
      await qmp.execute('block-job-cancel', { device: 'job' });
      await qmp.event('BLOCK_JOB_COMPLETED');
      await expectEqual(layers);
    });
  }

  it('after a backup of the layer into clusters of 2M, with writes meanwhile', async () => {
    const layers = await makeLayers('2M');
    const { qmp } = layers;
    const job = { 'job-id': 'job', device: 'top', target: 'copy', sync: 'top' };
    await qmp.execute('blockdev-backup', job);
    await qmp.event('BLOCK_JOB_COMPLETED');
    await expectEqual(layers);
  });

  it('after an incremental backup into clusters of 2M', async () => {
    const layers = await makeLayers('2M');
    const { qmp } = layers;
    await qmp.execute('block-dirty-bitmap-add', { node: 'top', name: 'b' });
    await write(layers, ...WRITES, 'write -P 2 4M 64k');
    const job = { 'job-id': 'job', device: 'top', target: 'copy', sync: 'incremental' };
    await qmp.execute('blockdev-backup', { ...job, bitmap: 'b' });
    await qmp.event('BLOCK_JOB_COMPLETED');
    await expectEqual(layers);
  });

  it('after a mirror by bitmap into clusters of 2M', async () => {
    const layers = await makeLayers('2M');
    const { qmp } = layers;
    await qmp.execute('block-dirty-bitmap-add', { node: 'top', name: 'b' });
    await write(layers, ...WRITES, 'write -P 2 4M 64k');
    const job = { 'job-id': 'job', device: 'top', target: 'copy', sync: 'incremental' };
    await qmp.execute('blockdev-mirror', { ...job, bitmap: 'b' });
    await qmp.event('BLOCK_JOB_READY');
    await write(layers, 'write -P 6 7M 4k');
    await qmp.execute('block-job-cancel', { device: 'job' });
    await qmp.event('BLOCK_JOB_COMPLETED');
    await expectEqual(layers);
  });
});
