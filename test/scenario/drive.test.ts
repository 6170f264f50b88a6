// SPDX-License-Identifier: MIT
/** Jobs that are told by file name where to copy to: `drive-mirror` and `drive-backup`. */
import { existsSync } from 'node:fs';
import { readFile, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { startDaemon, waitUntil } from '../support/daemon.js';
import { allocatedBytes, MIB, makeImage, patternBytes } from '../support/images.js';
import { runPeer } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type ServedImage, serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 8 * MIB;

interface Disk {
  readonly served: ServedImage;
  readonly qmp: QmpClient;
  readonly guest: NbdClient;
  readonly path: (name: string) => string;
}

/** A disk behind an export with a client on it, partly full of bytes. */
async function makeDisk(scope: Scope): Promise<Disk> {
  const served = await serveImage(scope, {
    size: SIZE,
    data: [{ offset: MIB, length: 3 * MIB }],
    seed: 3,
  });
  const guest = await NbdClient.connect({
    address: { type: 'unix', path: served.socketPath },
    exportName: 'disk',
  });
  scope.defer(() => guest.close());
  const qmp = await served.daemon.qmp(scope);
  return { served, guest, qmp, path: (name) => join(served.dir, name) };
}

/** A daemon with an empty disk as `vm` on a UNIX socket. */
async function serveTarget(scope: Scope, path: string, size = SIZE): Promise<string> {
  await makeImage(path, { size });
  const socket = `${path}.sock`;
  await startDaemon(scope, [
    ...['--blockdev', `file,node-name=vm,filename=${path},discard=unmap`],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'nbd,id=e,node-name=vm,name=vm,writable=on'],
  ]);
  return socket;
}

const JOB = { 'job-id': 'job', device: 'disk', sync: 'full' };

async function state(qmp: QmpClient, status: string): Promise<void> {
  await qmp.event('JOB_STATUS_CHANGE', (data) => data.id === 'job' && data.status === status);
}

async function nodeNames(qmp: QmpClient): Promise<string[]> {
  const nodes = await qmp.execute<{ 'node-name': string }[]>('query-named-block-nodes');
  return nodes.map((node) => node['node-name']).sort();
}

const AT_REST = ['disk', 'file'];

async function completed(qmp: QmpClient): Promise<string | undefined> {
  const { data } = await qmp.event('BLOCK_JOB_COMPLETED');
  await state(qmp, 'null');
  return data?.error as string | undefined;
}

describe('drive-mirror', () => {
  it('moves a client to an NBD server that is named by URI, and writes on there', async () => {
    const scope = testScope();
    const { qmp, guest, served, path } = await makeDisk(scope);
    const socket = await serveTarget(scope, path('vm.img'));
    const target = `nbd+unix:///vm?socket=${socket}`;
    await qmp.execute('drive-mirror', { ...JOB, target, format: 'raw', mode: 'existing' });
    await state(qmp, 'ready');
    await qmp.execute('block-job-complete', { device: 'job' });
    expect(await completed(qmp)).toBeUndefined();
    const before = await readFile(served.path);
    const block = patternBytes(4096, 77);
    await guest.write(5 * MIB, block);
    await guest.flush();
    const expected = Buffer.from(before);
    block.copy(expected, 5 * MIB);
    expect((await readFile(path('vm.img'))).equals(expected)).toBe(true);
    expect((await readFile(served.path)).equals(before)).toBe(true);
    // The node of the target has no other owner than the export that is on it now.
    expect(await nodeNames(qmp)).toHaveLength(4);
    await qmp.execute('block-export-del', { id: 'disk', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    await waitUntil(async () => (await nodeNames(qmp)).length === 2, {
      what: () => 'closed nodes',
    });
    expect(await nodeNames(qmp)).toEqual(AT_REST);
  });

  it("takes QEMU's older name of an export, and a server's image as the new one", async () => {
    const scope = testScope();
    const { qmp, served, path } = await makeDisk(scope);
    const socket = await serveTarget(scope, path('vm.img'));
    const target = `nbd:unix:${socket}:exportname=vm`;
    await qmp.execute('drive-mirror', { ...JOB, target, format: 'raw' });
    await state(qmp, 'ready');
    await qmp.execute('block-job-cancel', { device: 'job' });
    expect(await completed(qmp)).toBeUndefined();
    expect((await readFile(path('vm.img'))).equals(await readFile(served.path))).toBe(true);
    expect(await nodeNames(qmp)).toEqual(AT_REST);
  });

  it.each(['background', 'write-blocking'])(
    'moves a client in mode %s to an overlay of what it writes',
    async (mode) => {
      const { qmp, guest, served, path } = await makeDisk(testScope());
      const model = await readFile(served.path);
      let seed = 100;
      const write = async (offset: number, length: number): Promise<void> => {
        const data = patternBytes(length, seed++);
        await guest.write(offset, data);
        data.copy(model, offset);
      };
      const [target, none] = [path('new.qcow2'), { ...JOB, sync: 'none', 'copy-mode': mode }];
      await qmp.execute('drive-mirror', { ...none, target, format: 'qcow2' });
      await state(qmp, 'ready');
      const writes = Array.from({ length: 40 }, (_, i) => write(((i * 37) % 64) * 131072, 4096));
      await Promise.all([...writes, write(MIB + 500, 3000), write(7 * MIB - 100, 70_000)]);
      await qmp.execute('block-job-complete', { device: 'job' });
      expect(await completed(qmp)).toBeUndefined();
      const left = await readFile(served.path);
      await write(2 * MIB + 4096, 100);
      await write(6 * MIB, MIB);
      await guest.flush();
      const all = Buffer.alloc(SIZE);
      await guest.read(0, all);
      expect(all.equals(model)).toBe(true);
      expect((await readFile(served.path)).equals(left)).toBe(true);
      await guest.close();
      await qmp.execute('block-export-del', { id: 'disk', mode: 'hard' });
      await qmp.event('BLOCK_EXPORT_DELETED');
      await runPeer('qemu-img', ['convert', '-U', '-O', 'raw', target, path('flat.img')]);
      expect((await readFile(path('flat.img'))).equals(model)).toBe(true);
    },
  );

  it('makes a sparse image where the source has holes', async () => {
    const { qmp, served, path } = await makeDisk(testScope());
    await qmp.execute('drive-mirror', { ...JOB, target: path('new.img') });
    await state(qmp, 'ready');
    await qmp.execute('block-job-cancel', { device: 'job' });
    expect(await completed(qmp)).toBeUndefined();
    expect((await readFile(path('new.img'))).equals(await readFile(served.path))).toBe(true);
    expect(await allocatedBytes(path('new.img'))).toBe(3 * MIB);
  });

  it('replaces what an image held before', async () => {
    const { qmp, served, path } = await makeDisk(testScope());
    await makeImage(path('old.img'), { size: 2 * SIZE, data: [{ offset: 0, length: 2 * SIZE }] });
    await qmp.execute('drive-mirror', { ...JOB, target: path('old.img'), format: 'raw' });
    await state(qmp, 'ready');
    await qmp.execute('block-job-cancel', { device: 'job' });
    expect(await completed(qmp)).toBeUndefined();
    expect((await readFile(path('old.img'))).equals(await readFile(served.path))).toBe(true);
  });

  it.each([
    [{ unmap: true }, 3 * MIB],
    [{ unmap: false }, SIZE],
    [{}, 3 * MIB],
  ])('with %j an existing image has %i bytes of storage afterwards', async (options, bytes) => {
    const { qmp, served, path } = await makeDisk(testScope());
    await makeImage(path('old.img'), { size: SIZE, data: [{ offset: 0, length: SIZE }] });
    const target = { target: path('old.img'), format: 'raw', mode: 'existing' };
    await qmp.execute('drive-mirror', { ...JOB, ...target, ...options });
    await state(qmp, 'ready');
    await qmp.execute('block-job-cancel', { device: 'job' });
    expect(await completed(qmp)).toBeUndefined();
    expect((await readFile(path('old.img'))).equals(await readFile(served.path))).toBe(true);
    expect(await allocatedBytes(path('old.img'))).toBe(bytes);
  });

  it('takes the options of the node as json:, checked as those of blockdev-add', async () => {
    const { qmp, path } = await makeDisk(testScope());
    await makeImage(path('there.img'), { size: SIZE });
    const json = (options: object): object => ({
      ...JOB,
      target: `json:${JSON.stringify(options)}`,
      mode: 'existing',
      'node-name': 'there',
    });
    const file = { driver: 'file', filename: path('there.img') };
    const { desc } = await qmp.refused('drive-mirror', json({ driver: 'raw', file, bogus: 1 }));
    expect(desc).toBe("Parameter 'bogus' is unexpected");
    await qmp.execute('drive-mirror', json({ driver: 'raw', file }));
    await state(qmp, 'ready');
    expect(await nodeNames(qmp)).toContain('there');
    await qmp.execute('job-cancel', { id: 'job' });
    await state(qmp, 'null');
    expect(await nodeNames(qmp)).toEqual(AT_REST);
  });

  it('puts the image in the place of a node that is named', async () => {
    const { qmp, path, guest } = await makeDisk(testScope());
    await qmp.execute('drive-mirror', {
      ...JOB,
      target: path('new.img'),
      'node-name': 'new',
      replaces: 'disk',
    });
    await state(qmp, 'ready');
    await qmp.execute('job-complete', { id: 'job' });
    expect(await completed(qmp)).toBeUndefined();
    await guest.write(0, Buffer.from('after'));
    await guest.flush();
    expect((await readFile(path('new.img'))).subarray(0, 5).toString()).toBe('after');
  });

  it('does not empty its own source, even while nobody uses that', async () => {
    const scope = testScope();
    const { served, qmp, path } = await makeDisk(scope);
    const before = await readFile(served.path);
    await symlink(served.path, path('link'));
    await qmp.execute('block-export-del', { id: 'disk', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    for (const target of [served.path, path('link')]) {
      const { desc } = await qmp.refused('drive-mirror', { ...JOB, target });
      expect(desc).toMatch(/^Failed to get "resize" lock/);
      const backup = await qmp.refused('drive-backup', { ...JOB, target });
      expect(backup.desc).toMatch(/^Failed to get "resize" lock/);
    }
    expect((await readFile(served.path)).equals(before)).toBe(true);
    expect(await nodeNames(qmp)).toEqual(AT_REST);
  });

  it('makes and opens nothing when the arguments are wrong', async () => {
    const { qmp, path } = await makeDisk(testScope());
    const target = path('never.img');
    for (const wrong of [
      { granularity: 1000 },
      { speed: -1 },
      { 'buf-size': -1 },
      { 'job-id': '9' },
      { replaces: 'file' },
      { replaces: 'nobody', 'node-name': 'new' },
      { sync: 'bitmap' },
      { sync: 'incremental', bitmap: 'nobody' },
      { format: 'nbd' },
      { mode: 'existing' },
      { target: `nbds://localhost/${target}`, format: 'raw' },
      { target: `ws://localhost/${target}`, format: 'raw' },
      { target: 'nbd://localhost/a/b?bogus=1', format: 'raw' },
    ]) {
      await qmp.refused('drive-mirror', { ...JOB, target, ...wrong });
    }
    for (const wrong of [
      { speed: -1 },
      { sync: 'bitmap' },
      { compress: true, format: 'raw' },
      { 'job-id': '' },
    ]) {
      await qmp.refused('drive-backup', { ...JOB, target, ...wrong });
    }
    expect(existsSync(target)).toBe(false);
    expect(await nodeNames(qmp)).toEqual(AT_REST);
    expect(await qmp.execute('query-jobs')).toEqual([]);
  });

  it('closes the image when the job can not be made of it', async () => {
    const { qmp, path } = await makeDisk(testScope());
    await makeImage(path('small.img'), { size: MIB });
    const existing = { ...JOB, target: path('small.img'), format: 'raw', mode: 'existing' };
    const image = { driver: 'file', 'node-name': 'small', filename: path('small.img') };
    await qmp.execute('blockdev-add', image);
    const byName = { 'job-id': 'j', device: 'disk', target: 'small', sync: 'full' };
    const said = [
      await qmp.refused('blockdev-mirror', byName),
      await qmp.refused('blockdev-backup', byName),
    ];
    await qmp.execute('blockdev-del', { 'node-name': 'small' });
    said.push(await qmp.refused('drive-mirror', existing));
    said.push(await qmp.refused('drive-backup', existing));
    for (const { desc } of said) {
      expect(desc).toMatch(
        /^Source and target image have different sizes: node 'disk' has \d+ bytes, node '[^']+' 1048576$/,
      );
    }
    expect(await nodeNames(qmp)).toEqual(AT_REST);
  });
});

describe('drive-backup', () => {
  it('brings the moment of its start into a new image, which it closes', async () => {
    const { qmp, served, path, guest } = await makeDisk(testScope());
    const before = await readFile(served.path);
    await qmp.execute('drive-backup', { ...JOB, target: path('copy.img'), speed: 65536 });
    await guest.write(MIB, patternBytes(2 * MIB, 99));
    await qmp.execute('block-job-set-speed', { device: 'job', speed: 0 });
    expect(await completed(qmp)).toBeUndefined();
    expect((await readFile(path('copy.img'))).equals(before)).toBe(true);
    expect(await nodeNames(qmp)).toEqual(AT_REST);
  });

  it('brings what a bitmap marks into an image that is there', async () => {
    const { qmp, served, path, guest } = await makeDisk(testScope());
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'since' });
    await runPeer('cp', [served.path, path('copy.img')]);
    await guest.write(6 * MIB, patternBytes(100_000, 12));
    await guest.flush();
    const after = await readFile(served.path);
    await qmp.execute('drive-backup', {
      ...{ ...JOB, sync: 'incremental', bitmap: 'since' },
      ...{ target: path('copy.img'), format: 'raw', mode: 'existing' },
    });
    expect(await completed(qmp)).toBeUndefined();
    expect((await readFile(path('copy.img'))).equals(after)).toBe(true);
  });

  it('of several disks in one transaction is undone with the others', async () => {
    const { qmp, path } = await makeDisk(testScope());
    const backup = (id: string, more: object = {}): object => ({
      type: 'drive-backup',
      data: { 'job-id': id, device: 'disk', sync: 'full', target: path(`${id}.img`), ...more },
    });
    const wrong = backup('b', { target: path('no/folder') });
    const { desc } = await qmp.refused('transaction', { actions: [backup('a'), wrong] });
    expect(desc).toMatch(/^Could not create '.*no\/folder': No such file or directory$/);
    const same = backup('a', { target: path('c.img') });
    expect((await qmp.refused('transaction', { actions: [backup('a'), same] })).desc).toBe(
      "Job ID 'a' already in use",
    );
    expect(await qmp.execute('query-jobs')).toEqual([]);
    expect(await nodeNames(qmp)).toEqual(AT_REST);
  });
});
