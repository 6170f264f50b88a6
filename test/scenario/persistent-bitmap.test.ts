// SPDX-License-Identifier: MIT
/** Persistent bitmaps through the whole daemon: backups over restarts, transactions, a kill. */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { peerBitmaps, shownBitmaps } from '../support/bitmap-peer.js';
import { startDaemon } from '../support/daemon.js';
import { runPeer } from '../support/peers.js';
import { createImage, expectEqual, expectSound, KIB, MIB, qemuContent } from '../support/qcow2.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 8 * MIB;

async function serve(scope: Scope, path: string) {
  const socket = join(await scope.tempDir(), 'nbd');
  const daemon = await startDaemon(scope, ['--nbd-server', `addr.type=unix,addr.path=${socket}`]);
  const qmp = await daemon.qmp(scope);
  const file = { driver: 'file', filename: path };
  await qmp.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'disk', file });
  await qmp.execute('block-export-add', {
    ...{ type: 'nbd', id: 'e', 'node-name': 'disk', name: 'disk', writable: true },
  });
  const address = { type: 'unix', path: socket } as const;
  const client = await NbdClient.connect({ address, exportName: 'disk' });
  const stop = async (): Promise<void> => {
    await client.close();
    await qmp.execute('quit', {});
    await daemon.exited;
  };
  return { daemon, qmp, client, stop };
}

async function backUp(qmp: QmpClient, target: string, options: object): Promise<void> {
  const file = { driver: 'file', filename: target };
  await qmp.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'target', file });
  const job = { 'job-id': 'j', device: 'disk', target: 'target' };
  await qmp.execute('blockdev-backup', { ...job, 'auto-dismiss': false, ...options });
  await qmp.event('JOB_STATUS_CHANGE', (data) => data.id === 'j' && data.status === 'concluded');
  const jobs = (await qmp.execute('query-jobs', {})) as { error?: string }[];
  expect(jobs[0]?.error).toBeUndefined();
  await qmp.execute('job-dismiss', { id: 'j' });
  await qmp.execute('blockdev-del', { 'node-name': 'target' });
}

it('an incremental backup goes on with the bitmap of before the restart', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 'image');
  const [full, delta] = [join(dir, 'full'), join(dir, 'delta')];
  await createImage(path, SIZE);
  const first = await serve(scope, path);
  await first.client.write(0, Buffer.alloc(1 * MIB, 1));
  await createImage(full, SIZE);
  await first.qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'b', persistent: true });
  await backUp(first.qmp, full, { sync: 'full' });
  await first.client.write(3 * MIB, Buffer.alloc(64 * KIB, 2));
  await first.stop();
  await expectSound(path);
  expect(await peerBitmaps(scope, path)).toMatchObject([{ name: 'b', count: 64 * KIB }]);
  const second = await serve(scope, path);
  await second.client.write(5 * MIB, Buffer.alloc(64 * KIB, 3));
  expect(await shownBitmaps(second.qmp)).toMatchObject([
    { name: 'b', count: 128 * KIB, persistent: true, recording: true },
  ]);
  await createImage(delta, SIZE, `backing_file=${full},backing_fmt=qcow2`);
  await backUp(second.qmp, delta, { sync: 'incremental', bitmap: 'b' });
  expect(await shownBitmaps(second.qmp)).toMatchObject([{ name: 'b', count: 0 }]);
  await second.stop();
  await expectSound(path);
  expectEqual(
    await qemuContent(delta, join(dir, 'raw')),
    await qemuContent(path, join(dir, 'raw2')),
  );
  expect(await peerBitmaps(scope, path)).toMatchObject([
    { name: 'b', count: 0, persistent: true, recording: true },
  ]);
});

it('a backup empties the bitmap for good, even when the disk is not written meanwhile', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  const [path, delta] = [join(dir, 'image'), join(dir, 'delta')];
  await createImage(path, SIZE);
  await createImage(delta, SIZE);
  await runPeer('qemu-img', ['bitmap', '--add', path, 'b']);
  await runPeer('qemu-io', ['-f', 'qcow2', '-c', 'write 0 1M', path]);
  const { qmp, stop } = await serve(scope, path);
  await backUp(qmp, delta, { sync: 'incremental', bitmap: 'b' });
  await stop();
  await expectSound(path);
  expect(await peerBitmaps(scope, path)).toMatchObject([{ name: 'b', count: 0, recording: true }]);
});

it('a transaction that fails leaves persistent bitmaps as they were', async () => {
  const scope = testScope();
  const path = join(await scope.tempDir(), 'image');
  await createImage(path, SIZE);
  await runPeer('qemu-img', ['bitmap', '--add', path, 'a']);
  await runPeer('qemu-img', ['bitmap', '--add', path, 'b']);
  await runPeer('qemu-io', ['-f', 'qcow2', '-c', 'write 0 1M', path]);
  const { qmp, stop } = await serve(scope, path);
  const before = await shownBitmaps(qmp);
  const of = (name: string): object => ({ node: 'disk', name });
  const actions = [
    { type: 'block-dirty-bitmap-clear', data: of('a') },
    { type: 'block-dirty-bitmap-remove', data: of('b') },
    { type: 'block-dirty-bitmap-add', data: { ...of('c'), persistent: true } },
  ];
  const abort = { type: 'abort', data: {} };
  await qmp.refused('transaction', { actions: [...actions, abort] });
  expect(await shownBitmaps(qmp)).toEqual(before);
  await stop();
  await expectSound(path);
  expect(await peerBitmaps(scope, path)).toEqual(before);
  const second = await serve(scope, path);
  await second.qmp.execute('transaction', { actions });
  await second.stop();
  await expectSound(path);
  expect(await peerBitmaps(scope, path)).toMatchObject([
    { name: 'a', count: 0 },
    { name: 'c', count: 0 },
  ]);
});

it('a daemon that is killed leaves its bitmaps inconsistent, the image sound', async () => {
  const scope = testScope();
  const path = join(await scope.tempDir(), 'image');
  await createImage(path, SIZE);
  await runPeer('qemu-img', ['bitmap', '--add', path, 'a']);
  const { daemon, client } = await serve(scope, path);
  await client.write(0, Buffer.alloc(1 * MIB, 1));
  await client.flush();
  await daemon.kill();
  await daemon.exited;
  await client.close().catch(() => undefined);
  await expectSound(path);
  expect(await peerBitmaps(scope, path)).toMatchObject([{ name: 'a', inconsistent: true }]);
  const second = await serve(scope, path);
  expect(await shownBitmaps(second.qmp)).toMatchObject([{ name: 'a', inconsistent: true }]);
  const named = { node: 'disk', name: 'a' };
  expect((await second.qmp.refused('block-dirty-bitmap-clear', named)).desc).toBe(
    "Bitmap 'a' is inconsistent and cannot be used",
  );
  await second.qmp.execute('block-dirty-bitmap-remove', named);
  await second.stop();
  await expectSound(path);
  expect(await peerBitmaps(scope, path)).toEqual([]);
});
