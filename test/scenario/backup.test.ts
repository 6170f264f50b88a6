// SPDX-License-Identifier: MIT
/** Backups of a disk in use, into other people's servers, by the QMP dialogues of managers. */
import { copyFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { waitUntil } from '../support/daemon.js';
import { allocatedBytes, firstDifference, KIB, MIB, patternBytes } from '../support/images.js';
import { runPeer, runPeerJson, spawnTracked } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type ServedImage, serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 32 * MIB;

interface Disk {
  readonly source: ServedImage;
  readonly qmp: QmpClient;
  readonly dir: string;
  readonly guest: NbdClient;
}

/** A disk behind an export with a client on it, partly full of bytes. */
async function makeDisk(scope: Scope): Promise<Disk> {
  const source = await serveImage(scope, {
    size: SIZE,
    data: [{ offset: 0, length: 20 * MIB }],
    seed: 5,
  });
  const guest = await NbdClient.connect({
    address: { type: 'unix', path: source.socketPath },
    exportName: 'disk',
  });
  scope.defer(() => guest.close());
  return { source, guest, qmp: await source.daemon.qmp(scope), dir: await scope.tempDir() };
}

/** A server of one image file, and the node for it in the daemon. */
async function serveTarget(
  { qmp, dir }: Disk,
  peer: 'qemu-nbd' | 'nbdkit' | 'qemu-storage-daemon',
  image: string,
): Promise<ReturnType<typeof spawnTracked>> {
  const socket = join(dir, `${peer}.sock`);
  const args = {
    'qemu-nbd': ['-f', 'raw', '-k', socket, '-x', 'disk', '-t', image],
    nbdkit: ['-f', '-U', socket, '-e', 'disk', 'file', image],
    'qemu-storage-daemon': [
      ...['--blockdev', `file,node-name=disk,filename=${image},discard=unmap`],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--export', 'nbd,id=e,node-name=disk,name=disk,writable=on'],
    ],
  }[peer];
  const server = spawnTracked(peer, args);
  // Some of them are stopped by then, and deaf to anything less.
  onTestFinished(() => void server.kill('SIGKILL'));
  const node = {
    driver: 'nbd',
    'node-name': 'target',
    server: { type: 'unix', path: socket },
    export: 'disk',
    discard: 'unmap',
  };
  await waitUntil(async () => (await qmp.reply('blockdev-add', node)).error === undefined, {
    what: () => `${peer} to listen`,
  });
  return server;
}

async function sparseFile(path: string): Promise<string> {
  await runPeer('truncate', ['-s', String(SIZE), path]);
  return path;
}

/** Serves what is behind a copy-before-write filter. @returns its address */
async function exportSnapshot({ qmp, source }: Disk, file: string): Promise<string> {
  const node = { driver: 'snapshot-access', 'node-name': 'snap', file };
  await qmp.execute('blockdev-add', node);
  await qmp.execute('block-export-add', { type: 'nbd', id: 'snap', 'node-name': 'snap' });
  return `nbd+unix:///snap?socket=${source.socketPath}`;
}

const BACKUP = {
  'job-id': 'job',
  device: 'disk',
  target: 'target',
  sync: 'full',
  'auto-finalize': true,
  'auto-dismiss': false,
};

/** The events of the job so far, in short. */
function story(qmp: QmpClient): string {
  return qmp.events
    .filter(({ data }) => data?.id === 'job' || data?.device === 'job')
    .map(({ event, data }) => String(data?.status ?? event))
    .join(' ');
}

async function concluded(qmp: QmpClient): Promise<string | undefined> {
  await qmp.event('JOB_STATUS_CHANGE', ({ id, status }) => id === 'job' && status === 'concluded');
  const [job] = await qmp.execute<{ error?: string }[]>('query-jobs');
  await qmp.execute('job-dismiss', { id: 'job' });
  return job?.error;
}

interface Writer {
  /** Waits until it has written so many blocks since its start. */
  hasWritten(blocks: number): Promise<void>;
  stop(): Promise<void>;
}

/** Writes blocks all over the disk until it is told to stop, and keeps track of it in `model`. */
function startWriter(guest: NbdClient, model: Buffer): Writer {
  let stopping = false;
  let written = 0;
  const writing = (async () => {
    for (; !stopping; written++) {
      const offset = ((written * 7919) % (SIZE / 4096)) * 4096;
      const block = patternBytes(4096, written + 1);
      await guest.write(offset, block);
      block.copy(model, offset);
    }
    await guest.flush();
  })();
  writing.catch(() => {}); // told where it is waited for
  return {
    hasWritten: (blocks) => waitUntil(() => written >= blocks, { what: () => `${blocks} blocks` }),
    stop() {
      stopping = true;
      return writing;
    },
  };
}

describe('blockdev-backup', () => {
  it.each(['qemu-nbd', 'nbdkit', 'qemu-storage-daemon'] as const)(
    'brings the disk as it was at its start to %s, under a writer that never pauses',
    async (peer) => {
      const scope = testScope();
      const disk = await makeDisk(scope);
      const { qmp, guest, source, dir } = disk;
      const copy = await sparseFile(join(dir, 'copy.img'));
      const server = await serveTarget(disk, peer, copy);
      const atStart = await readFile(source.path);
      const model = Buffer.from(atStart);
      await qmp.execute('blockdev-backup', { ...BACKUP, speed: MIB });
      const writer = startWriter(guest, model);
      await writer.hasWritten(100);
      await qmp.execute('block-job-set-speed', { device: 'job', speed: 16 * MIB });
      expect(await concluded(qmp)).toBeUndefined();
      await writer.stop();
      expect(story(qmp)).toBe(
        'created running paused running waiting pending BLOCK_JOB_COMPLETED concluded null',
      );
      await qmp.execute('blockdev-del', { 'node-name': 'target' });
      server.kill('SIGTERM');
      expect((await readFile(copy)).equals(atStart)).toBe(true);
      expect((await readFile(source.path)).equals(model)).toBe(true);
    },
  );

  it('makes a chain of increments, of which each generation can be restored', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, guest, source, dir } = disk;
    const generations: Buffer[] = [];
    const images: string[] = [];
    for (let generation = 0; generation < 4; generation++) {
      const image = join(dir, `${generation}.img`);
      const before = images.at(-1);
      // An increment goes onto a copy of the generation before it.
      if (before === undefined) await sparseFile(image);
      else await copyFile(before, image);
      images.push(image);
      const server = await serveTarget(disk, 'qemu-nbd', image);
      const idle = startWriter(guest, Buffer.alloc(SIZE));
      await idle.hasWritten(200);
      await idle.stop();
      generations.push(await readFile(source.path));
      const backup = { ...BACKUP, speed: 64 * MIB };
      if (generation === 0) {
        await qmp.execute('transaction', {
          actions: [
            { type: 'block-dirty-bitmap-add', data: { node: 'disk', name: 'b' } },
            { type: 'blockdev-backup', data: backup },
          ],
        });
      } else {
        await qmp.execute('blockdev-backup', { ...backup, sync: 'incremental', bitmap: 'b' });
      }
      const busy = startWriter(guest, Buffer.alloc(SIZE));
      expect(await concluded(qmp)).toBeUndefined();
      await busy.stop();
      await qmp.execute('blockdev-del', { 'node-name': 'target' });
      server.kill('SIGTERM');
      await new Promise((resolve) => server.once('close', resolve));
    }
    for (const [generation, image] of images.entries()) {
      const restored = await readFile(image);
      expect(restored.equals(generations[generation] ?? Buffer.alloc(0))).toBe(true);
    }
  });

  it('hands its bitmap back when the target dies, and the next run brings what is missing', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, guest, source, dir } = disk;
    const copy = join(dir, 'copy.img');
    await copyFile(source.path, copy);
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'b' });
    await guest.write(MIB, patternBytes(8 * MIB, 77));
    const server = await serveTarget(disk, 'nbdkit', copy);
    const backup = { ...BACKUP, sync: 'incremental', bitmap: 'b' };
    await qmp.execute('blockdev-backup', { ...backup, speed: 2 * MIB });
    await guest.write(30 * MIB, patternBytes(MIB, 78));
    server.kill('SIGKILL');
    expect(await concluded(qmp)).toContain('lost the NBD server');
    expect(story(qmp)).toMatch(/ BLOCK_JOB_ERROR aborting BLOCK_JOB_COMPLETED concluded null$/);
    await guest.write(20 * MIB, patternBytes(MIB, 79));
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    const again = await serveTarget(disk, 'qemu-nbd', copy);
    await qmp.execute('blockdev-backup', backup);
    expect(await concluded(qmp)).toBeUndefined();
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    again.kill('SIGTERM');
    expect(await firstDifference(source.path, copy)).toBeUndefined();
  });

  it('is cancelled at once, also by a daemon that ends', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, source, dir } = disk;
    const image = await sparseFile(join(dir, 'copy.img'));
    await serveTarget(disk, 'qemu-nbd', image);
    await qmp.execute('blockdev-backup', { ...BACKUP, speed: MIB });
    await qmp.execute('block-job-cancel', { device: 'job' });
    expect(await concluded(qmp)).toBe('Operation canceled');
    expect(story(qmp)).toMatch(/running aborting BLOCK_JOB_CANCELLED concluded null$/);
    await qmp.execute('blockdev-backup', { ...BACKUP, speed: MIB });
    await qmp.execute('quit');
    await qmp.closedByPeer();
    expect((await source.daemon.exited).code).toBe(0);
  });

  it('is a point in time to be read by others, above an export in use', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, guest, source, dir } = disk;
    const scratch = await sparseFile(join(dir, 'scratch.img'));
    const file = { driver: 'file', filename: scratch, 'node-name': 'target', discard: 'unmap' };
    await qmp.execute('blockdev-add', file);
    const atStart = await readFile(source.path);
    const none = { ...BACKUP, sync: 'none', 'filter-node-name': 'cbw' };
    await qmp.execute('blockdev-backup', none);
    const uri = await exportSnapshot(disk, 'cbw');
    const writer = startWriter(guest, Buffer.alloc(SIZE));
    const copy = join(dir, 'copy.img');
    await runPeer('nbdcopy', [uri, copy]);
    const map = await runPeerJson<{ offset: number; length: number; type: number }[]>('nbdinfo', [
      '--map',
      '--json',
      uri,
    ]);
    expect(map.reduce((sum, { length }) => sum + length, 0)).toBe(SIZE);
    await writer.stop();
    expect((await readFile(copy)).equals(atStart)).toBe(true);
    await qmp.execute('block-export-del', { id: 'snap', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    await qmp.execute('blockdev-del', { 'node-name': 'snap' });
    await qmp.execute('block-job-cancel', { device: 'job', force: true });
    expect(await concluded(qmp)).toBe('Operation canceled');
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    await guest.write(0, Buffer.alloc(4 * KIB, 1));
  });

  it('is refused in the words of QEMU', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, dir } = disk;
    const file = await sparseFile(join(dir, 'copy.img'));
    await qmp.execute('blockdev-add', { driver: 'file', filename: file, 'node-name': 'target' });
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'b' });
    const said = async (args: object): Promise<string> =>
      (await qmp.refused('blockdev-backup', { ...BACKUP, ...args })).desc;
    const b = { bitmap: 'b' };
    for (const [args, text] of [
      [{ sync: 'incremental' }, "must provide a valid bitmap name for 'incremental' sync mode"],
      [{ sync: 'bitmap', ...b }, 'Bitmap sync mode must be given when providing a bitmap'],
      [
        { sync: 'incremental', ...b, 'bitmap-mode': 'never' },
        "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
      ],
      [
        { sync: 'none', ...b, 'bitmap-mode': 'always' },
        "sync mode 'none' does not produce meaningful bitmap outputs",
      ],
      [
        { ...b, 'bitmap-mode': 'never' },
        "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'",
      ],
      [{ 'bitmap-mode': 'always' }, 'Cannot specify bitmap sync mode without a bitmap'],
      [{ bitmap: 'x', 'bitmap-mode': 'always' }, "Bitmap 'x' could not be found"],
      [{ compress: true }, 'Compression is not supported for this drive '],
      [{ 'x-perf': { 'max-workers': 0 } }, 'max-workers must be between 1 and 2147483647'],
      [
        { 'x-perf': { 'max-chunk': 4096 } },
        'Required max-chunk (4096) is less than backup cluster size (65536)',
      ],
      [{ speed: -1 }, "Parameter 'speed' expects a non-negative value"],
      [{ target: 'disk' }, 'Source and target cannot be the same'],
      [{ device: 'no' }, "Cannot find device='no' nor node-name='no'"],
    ] as const) {
      expect(await said(args)).toBe(text);
    }
    await qmp.execute('blockdev-backup', { ...BACKUP, sync: 'none' });
    expect(await said({ 'job-id': 'other' })).toBe(
      "Node 'target' is busy: block device is in use by block job: backup",
    );
    await qmp.execute('block-job-cancel', { device: 'job' });
    await concluded(qmp);
  });
});

describe('copy-before-write', () => {
  it('comes and goes below an export in use by blockdev-reopen', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, guest, source, dir } = disk;
    const scratch = await sparseFile(join(dir, 'scratch.img'));
    await qmp.execute('blockdev-add', {
      driver: 'copy-before-write',
      'node-name': 'cbw',
      file: 'file',
      target: { driver: 'file', filename: scratch },
      discard: 'unmap',
      'on-cbw-error': 'break-snapshot',
      'cbw-timeout': 5,
    });
    const disked = { driver: 'raw', 'node-name': 'disk', discard: 'unmap' };
    const model = await readFile(source.path);
    const writer = startWriter(guest, model);
    await qmp.execute('blockdev-reopen', { options: [{ ...disked, file: 'cbw' }] });
    const uri = await exportSnapshot(disk, 'cbw');
    const [one, two] = [join(dir, 'one.img'), join(dir, 'two.img')];
    await runPeer('nbdcopy', [uri, one]);
    await runPeer('nbdcopy', [uri, two]);
    expect(await firstDifference(one, two)).toBeUndefined();
    await qmp.execute('block-export-del', { id: 'snap', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    await qmp.execute('blockdev-del', { 'node-name': 'snap' });
    await qmp.execute('blockdev-reopen', { options: [{ ...disked, file: 'file' }] });
    await qmp.execute('blockdev-del', { 'node-name': 'cbw' });
    await writer.stop();
    expect((await readFile(source.path)).equals(model)).toBe(true);
  });
});

describe('fleecing', () => {
  it('gives back the room of the fleecing image as its backup proceeds', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, guest, source, dir } = disk;
    const fleece = await sparseFile(join(dir, 'fleece.img'));
    const copy = await sparseFile(join(dir, 'copy.img'));
    const server = await serveTarget(disk, 'qemu-nbd', copy);
    const file = { driver: 'file', filename: fleece, discard: 'unmap' };
    await qmp.execute('blockdev-add', { ...file, 'node-name': 'fleece' });
    await qmp.execute('blockdev-add', {
      ...{ driver: 'copy-before-write', 'node-name': 'cbw', file: 'file', target: 'fleece' },
    });
    // Above the disk of an export that is in use.
    await qmp.execute('blockdev-reopen', {
      options: [{ driver: 'raw', 'node-name': 'disk', file: 'cbw', discard: 'unmap' }],
    });
    await qmp.execute('blockdev-add', {
      ...{ driver: 'snapshot-access', 'node-name': 'snap', file: 'cbw' },
    });
    const atStart = await readFile(source.path);
    await guest.write(0, patternBytes(8 * MIB, 5));
    expect(await allocatedBytes(fleece)).toBe(8 * MIB);
    await qmp.execute('blockdev-backup', { ...BACKUP, device: 'snap', 'discard-source': true });
    expect(await concluded(qmp)).toBeUndefined();
    expect(await allocatedBytes(fleece)).toBe(0);
    await guest.write(0, patternBytes(SIZE, 6));
    expect(await allocatedBytes(fleece)).toBe(0);
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    server.kill('SIGTERM');
    expect((await readFile(copy)).equals(atStart)).toBe(true);
  });
});
