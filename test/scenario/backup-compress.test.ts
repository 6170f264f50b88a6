// SPDX-License-Identifier: MIT
/** Backups into compressed images, of a disk in use. */
import { readFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { MIB, patternBytes } from '../support/images.js';
import { runPeer } from '../support/peers.js';
import { createImage, expectEqual, expectSound, qemuContent } from '../support/qcow2.js';
import type { QmpClient } from '../support/qmp-client.js';
import { serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 12 * MIB + 512;
const BACKUP = { 'job-id': 'job', device: 'disk', target: 'target', sync: 'full', compress: true };

/** A disk of words, holes and noise behind an export, with a client on it. */
async function makeDisk(scope: Scope) {
  const served = await serveImage(scope, { size: SIZE });
  const address = { type: 'unix', path: served.socketPath } as const;
  const guest = await NbdClient.connect({ address, exportName: 'disk' });
  scope.defer(() => guest.close());
  await guest.write(0, Buffer.alloc(5 * MIB, 'words that come again and again '));
  await guest.write(6 * MIB + 4096, patternBytes(1 * MIB, 1));
  await guest.write(SIZE - 100_000, Buffer.alloc(100_000, 'to the very end '));
  await guest.flush();
  const qmp = await served.daemon.qmp(scope);
  return { served, guest, qmp, path: (name: string) => `${served.dir}/${name}` };
}

async function addTarget(qmp: QmpClient, filename: string): Promise<void> {
  const file = { driver: 'file', filename };
  await qmp.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'target', file });
}

async function completed(qmp: QmpClient): Promise<unknown> {
  const { data } = await qmp.event('BLOCK_JOB_COMPLETED');
  await qmp.event('JOB_STATUS_CHANGE', ({ id, status }) => id === 'job' && status === 'null');
  return data?.error;
}

async function expectCompressed(path: string): Promise<void> {
  const { stdout } = await runPeer('qemu-img', ['check', '-f', 'qcow2', path]);
  expect(stdout).toMatch(/[1-9][\d.]*% compressed clusters/);
}

describe('a backup with compress', () => {
  it.each([
    ['zlib', '64k'],
    ['zstd', '64k'],
    ['zlib', '2M'],
    ['zstd', '4k'],
  ])(
    'holds the disk as it was at its start, under a writer: %s, clusters of %s',
    async (type, clusterSize) => {
      const { served, guest, qmp, path } = await makeDisk(testScope());
      const copy = path('copy.qcow2');
      await createImage(copy, SIZE, `compression_type=${type},cluster_size=${clusterSize}`);
      await addTarget(qmp, copy);
      const before = await readFile(served.path);
      await qmp.execute('blockdev-backup', { ...BACKUP, speed: 65536 });
      for (let nth = 0; nth < 24; nth++) {
        await guest.write(((nth * 7) % 24) * 512 * 1024 + 777, patternBytes(9000, nth));
      }
      await guest.trim(4 * MIB, 4 * MIB);
      await qmp.execute('block-job-set-speed', { device: 'job', speed: 0 });
      expect(await completed(qmp)).toBeUndefined();
      await qmp.execute('blockdev-del', { 'node-name': 'target' });
      await expectSound(copy);
      await expectCompressed(copy);
      expectEqual(await qemuContent(copy, path('raw')), before);
    },
  );

  it('takes what a bitmap marks into the backup before, whose clusters it replaces', async () => {
    const { served, guest, qmp, path } = await makeDisk(testScope());
    const copy = path('copy.qcow2');
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'since' });
    await createImage(copy, SIZE);
    await addTarget(qmp, copy);
    await qmp.execute('blockdev-backup', BACKUP);
    expect(await completed(qmp)).toBeUndefined();
    await guest.write(1 * MIB + 50_000, Buffer.alloc(200_000, 'new words '));
    await guest.flush();
    const more = { ...BACKUP, sync: 'incremental', bitmap: 'since' };
    await qmp.execute('blockdev-backup', more);
    expect(await completed(qmp)).toBeUndefined();
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    await expectSound(copy);
    expectEqual(await qemuContent(copy, path('raw')), await readFile(served.path));
  });

  it('makes its image itself, and goes through a filter', async () => {
    const { served, qmp, path } = await makeDisk(testScope());
    const before = await readFile(served.path);
    const drive = { ...BACKUP, target: path('drive.qcow2'), format: 'qcow2' };
    await qmp.execute('drive-backup', drive);
    expect(await completed(qmp)).toBeUndefined();
    await expectSound(drive.target);
    await expectCompressed(drive.target);
    expectEqual(await qemuContent(drive.target, path('raw')), before);

    await createImage(path('below.qcow2'), SIZE);
    await qmp.execute('blockdev-add', {
      ...{ driver: 'compress', 'node-name': 'target' },
      file: { driver: 'qcow2', file: { driver: 'file', filename: path('below.qcow2') } },
    });
    await qmp.execute('blockdev-backup', { ...BACKUP, compress: false });
    expect(await completed(qmp)).toBeUndefined();
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    await expectSound(path('below.qcow2'));
    await expectCompressed(path('below.qcow2'));
    expectEqual(await qemuContent(path('below.qcow2'), path('raw')), before);
  });
});
