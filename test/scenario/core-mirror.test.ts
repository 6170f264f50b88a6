// SPDX-License-Identifier: MIT
/** Live migration between daemons, and into other people's servers, by the QMP dialogue of managers. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { waitUntil } from '../support/daemon.js';
import { MIB } from '../support/images.js';
import { runPeer, spawnTracked } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type ServedImage, serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 32 * MIB;
/** What libvirt sends for "as fast as possible": more than a JavaScript number holds. */
const LIBVIRT_SPEED = '9223372036853727232';

async function sourceImage(scope: Scope): Promise<{ source: ServedImage; qmp: QmpClient }> {
  const source = await serveImage(scope, {
    size: SIZE,
    data: [{ offset: 0, length: 20 * MIB }],
    seed: 7,
  });
  return { source, qmp: await source.daemon.qmp(scope) };
}

function targetNode(socketPath: string, exportName: string): object {
  return {
    driver: 'nbd',
    'node-name': 'target',
    server: { type: 'unix', path: socketPath },
    export: exportName,
    discard: 'unmap',
  };
}

const MIRROR = {
  'job-id': 'job',
  device: 'disk',
  target: 'target',
  sync: 'full',
  'auto-finalize': true,
  'auto-dismiss': false,
};

/** States that the job has gone through so far. */
function states(qmp: QmpClient): unknown[] {
  return qmp.events
    .filter(({ event, data }) => event === 'JOB_STATUS_CHANGE' && data?.id === 'job')
    .map(({ data }) => data?.status);
}

async function concluded(qmp: QmpClient): Promise<void> {
  await qmp.event('JOB_STATUS_CHANGE', ({ id, status }) => id === 'job' && status === 'concluded');
}

describe('blockdev-mirror', () => {
  it('moves a disk to another daemon under a client, which loses nothing', async () => {
    const scope = testScope();
    const { source, qmp } = await sourceImage(scope);
    const target = await serveImage(scope, { size: SIZE });
    const model = await readFile(source.path);
    const client = await NbdClient.connect({
      address: { type: 'unix', path: source.socketPath },
      exportName: 'disk',
    });
    let stopping = false;
    const writing = (async () => {
      for (let i = 0; !stopping; i++) {
        const block = Buffer.alloc(4096, i & 0xff);
        const offset = ((i * 7919) % 64) * 4096;
        await client.write(offset, block);
        block.copy(model, offset);
      }
      await client.flush();
    })();
    await qmp.execute('blockdev-add', targetNode(target.socketPath, 'disk'));
    await qmp.execute('blockdev-mirror', MIRROR);
    await qmp.event('BLOCK_JOB_READY');
    await qmp.execute('block-job-complete', { device: 'job' });
    await concluded(qmp);
    const jobs = await qmp.execute<{ error?: string }[]>('query-jobs');
    expect(jobs[0]?.error).toBeUndefined();
    await qmp.execute('job-dismiss', { id: 'job' });
    stopping = true;
    await writing;
    await client.close();
    expect(states(qmp)).toEqual([
      'created',
      'running',
      'ready',
      'waiting',
      'pending',
      'concluded',
      'null',
    ]);
    await source.daemon.stop();
    await target.daemon.stop();
    expect((await readFile(target.path)).equals(model)).toBe(true);
  });

  it('echoes a speed beyond 2^53 exactly, in events and queries', async () => {
    const scope = testScope();
    const { qmp } = await sourceImage(scope);
    const target = await serveImage(scope, { size: SIZE });
    await qmp.execute('blockdev-add', targetNode(target.socketPath, 'disk'));
    const args = JSON.stringify({ ...MIRROR, speed: 0 }).replace(
      '"speed":0',
      `"speed":${LIBVIRT_SPEED}`,
    );
    qmp.send(`{"execute":"blockdev-mirror","arguments":${args}}\n`);
    await qmp.nextReply();
    await qmp.event('BLOCK_JOB_READY');
    await qmp.execute('query-block-jobs');
    const lines = qmp.lines.filter((line) => line.includes('"speed"'));
    expect(lines.length).toBe(2);
    for (const line of lines) expect(line).toContain(`"speed": ${LIBVIRT_SPEED}`);
  });

  it('ends cancelled before READY, and as a copy after it, with the events of QEMU', async () => {
    const scope = testScope();
    const { source, qmp } = await sourceImage(scope);
    const target = await serveImage(scope, { size: SIZE });
    await qmp.execute('blockdev-add', targetNode(target.socketPath, 'disk'));
    await qmp.execute('blockdev-mirror', { ...MIRROR, speed: 65536 });
    await qmp.execute('block-job-cancel', { device: 'job' });
    await qmp.event('BLOCK_JOB_CANCELLED');
    await concluded(qmp);
    await qmp.execute('job-dismiss', { id: 'job' });
    await qmp.execute('blockdev-mirror', MIRROR);
    await qmp.event('BLOCK_JOB_READY');
    await qmp.execute('block-job-cancel', { device: 'job' });
    await qmp.event('BLOCK_JOB_COMPLETED');
    await concluded(qmp);
    await qmp.execute('job-dismiss', { id: 'job' });
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    const model = await readFile(source.path);
    await target.daemon.stop();
    expect((await readFile(target.path)).equals(model)).toBe(true);
    await runPeer('qemu-io', ['-f', 'raw', '-c', 'write -P 9 0 4k', source.uri]);
  });

  it('copies into qemu-nbd and nbdkit as well', async () => {
    const scope = testScope();
    const { source, qmp } = await sourceImage(scope);
    const dir = await scope.tempDir();
    for (const peer of ['qemu-nbd', 'nbdkit'] as const) {
      const copy = join(dir, `${peer}.img`);
      const socket = join(dir, `${peer}.sock`);
      await runPeer('truncate', ['-s', String(SIZE), copy]);
      const args =
        peer === 'qemu-nbd'
          ? ['-f', 'raw', '-k', socket, '-x', 'disk', '-t', copy]
          : ['-f', '-U', socket, '-e', 'disk', 'file', copy];
      const server = spawnTracked(peer, args);
      await waitUntil(
        async () => {
          const added = await qmp.reply('blockdev-add', targetNode(socket, 'disk'));
          return added.error === undefined;
        },
        { what: () => `${peer} to listen` },
      );
      await qmp.execute('blockdev-mirror', MIRROR);
      await qmp.event('BLOCK_JOB_READY');
      await qmp.execute('block-job-cancel', { device: 'job' });
      await concluded(qmp);
      await qmp.execute('job-dismiss', { id: 'job' });
      await qmp.execute('blockdev-del', { 'node-name': 'target' });
      server.kill('SIGTERM');
      expect((await readFile(copy)).equals(await readFile(source.path))).toBe(true);
    }
  });

  it('fails, and leaves the source as it was, when the target dies', async () => {
    const scope = testScope();
    const { source, qmp } = await sourceImage(scope);
    const target = await serveImage(scope, { size: SIZE });
    await qmp.execute('blockdev-add', targetNode(target.socketPath, 'disk'));
    await qmp.execute('blockdev-mirror', { ...MIRROR, speed: MIB });
    await target.daemon.kill();
    await concluded(qmp);
    const jobs = await qmp.execute<{ error?: string }[]>('query-jobs');
    expect(jobs[0]?.error).toContain('lost the NBD server');
    await qmp.execute('job-dismiss', { id: 'job' });
    await runPeer('qemu-io', ['-f', 'raw', '-c', 'read -v 0 16', source.uri]);
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
  });
});
