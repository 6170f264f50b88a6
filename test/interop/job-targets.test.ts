// SPDX-License-Identifier: MIT
/** Mirror and backup between the daemon and the NBD servers and jobs of other projects. */
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { waitUntil } from '../support/daemon.js';
import { allocatedBytes, KIB, MIB, patternBytes } from '../support/images.js';
import { untilMonitor } from '../support/listening.js';
import { runPeer, spawnTracked } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

/** Ends within a cluster of 64 KiB, and within a page. */
const SIZE = 12 * MIB + 1536;
const DATA = [
  { offset: 1536, length: 3 * MIB },
  { offset: 9 * MIB, length: SIZE - 9 * MIB },
];

/** A disk of ours, and an image of other bytes, which show whatever a job leaves out. */
async function makeDisk(scope: Scope) {
  const source = await serveImage(scope, { size: SIZE, data: DATA, seed: 11 });
  const dir = await scope.tempDir();
  const image = join(dir, 'copy.img');
  await writeFile(image, Buffer.alloc(SIZE, 0xa5));
  return { source, qmp: await source.daemon.qmp(scope), dir, image };
}

/** What is written while a job runs; `written` does the same to a model. */
const WRITES = ['write -P 7 4M 70k', 'write -z 1M 64k', 'write -z -u 9M 1M'];

function written(model: Buffer): Buffer {
  const after = Buffer.from(model).fill(7, 4 * MIB, 4 * MIB + 70 * KIB);
  return after.fill(0, MIB, MIB + 64 * KIB).fill(0, 9 * MIB, 10 * MIB);
}

/** Writes, as a guest would do, by qemu-io and through an export. */
async function guestWrites(uri: string, ...commands: readonly string[]): Promise<void> {
  const steps = [...commands, 'flush'].flatMap((command) => ['-c', command]);
  const { stdout } = await runPeer('qemu-io', ['-d', 'unmap', '-f', 'raw', ...steps, uri]);
  expect(stdout).not.toMatch(/failed/);
}

/** Starts a server; `stop` ends it, as the end of the scope does in any case. */
function startServer(scope: Scope, program: string, args: readonly string[]) {
  const child = spawnTracked(program, args, { stdio: 'ignore' });
  const ended = new Promise((resolve) => child.once('close', resolve));
  const stop = async (signal: NodeJS.Signals = 'SIGTERM') => child.kill(signal) && (await ended);
  scope.defer(() => stop('SIGKILL'));
  return { child, stop };
}

const PEERS = ['qemu-nbd', 'qemu-storage-daemon', 'nbdkit file', 'nbdkit memory', 'nbd-server'];

/** Serves one image, under the name `disk`, by a server that is somebody else's. */
async function serveBy(
  scope: Scope,
  peer: string,
  { image, socket, format = 'raw' }: { image: string; socket: string; format?: string },
) {
  const nbdkit = ['-f', '-U', socket, '-e', 'disk'];
  const commands: Record<string, string[]> = {
    'qemu-nbd': ['-f', format, '-k', socket, '-x', 'disk', '-t', image],
    'qemu-storage-daemon': [
      ...['--blockdev', `file,node-name=disk,filename=${image},discard=unmap`],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--export', 'nbd,id=e,node-name=disk,name=disk,writable=on'],
    ],
    'nbdkit file': [...nbdkit, 'file', image],
    'nbdkit memory': [...nbdkit, 'memory', String(SIZE)],
    'nbd-server': ['-d', '-C', `${socket}.config`, '-p', `${socket}.pid`],
  };
  const config = `[generic]\nunixsock=${socket}\n[disk]\nexportname=${image}\n`;
  await writeFile(`${socket}.config`, `${config}flush=true\nfua=true\ntrim=true\n`);
  return startServer(scope, peer.replace(/ .*/, ''), commands[peer] ?? []);
}

/** Adds a node `target` for a server, once that listens. */
async function addTarget(qmp: QmpClient, socket: string): Promise<void> {
  const server = { type: 'unix', path: socket };
  const node = { driver: 'nbd', 'node-name': 'target', server, export: 'disk', discard: 'unmap' };
  const added = async () => (await qmp.reply('blockdev-add', node)).error === undefined;
  await waitUntil(added, { what: () => `a server on ${socket}` });
}

const SLOW = 256 * KIB;
const JOB = {
  'job-id': 'job',
  device: 'disk',
  target: 'target',
  sync: 'full',
  'auto-dismiss': false,
};

/** Lets the job run on at full speed. */
async function unthrottle(qmp: QmpClient): Promise<void> {
  await qmp.execute('block-job-set-speed', { device: 'job', speed: 0 });
}

/** Waits for the end of the job, which has to be a success. */
async function succeeded(qmp: QmpClient): Promise<void> {
  await qmp.event('JOB_STATUS_CHANGE', ({ id, status }) => id === 'job' && status === 'concluded');
  const [job] = await qmp.execute<{ error?: string }[]>('query-jobs');
  expect(job?.error).toBeUndefined();
  await qmp.execute('job-dismiss', { id: 'job' });
}

function expectBytes(bytes: Buffer, model: Buffer): void {
  expect(bytes.length).toBe(model.length);
  const at = bytes.equals(model) ? -1 : bytes.findIndex((byte, i) => byte !== model[i]);
  expect(at, 'first byte that differs').toBe(-1);
}

describe.each(PEERS)('%s as the target', (peer) => {
  /** A disk and a `target` full of other bytes; `copied` ends the server and tells its bytes. */
  async function makeTarget(scope: Scope) {
    const disk = await makeDisk(scope);
    const { image, dir } = disk;
    const socket = join(dir, 'copy.sock');
    const uri = `nbd+unix:///disk?socket=${socket}`;
    const server = await serveBy(scope, peer, { image, socket });
    await addTarget(disk.qmp, socket);
    const inMemory = peer === 'nbdkit memory';
    if (inMemory) await runPeer('nbdcopy', [image, uri]);
    const copied = async (): Promise<Buffer> => {
      if (inMemory) await runPeer('nbdcopy', [uri, image]);
      await server.stop();
      return readFile(image);
    };
    return { ...disk, copied };
  }

  it('has all bytes of a mirror, from before READY to after the switch', async () => {
    const { source, qmp, copied } = await makeTarget(testScope());
    const model = written(await readFile(source.path));
    await qmp.execute('blockdev-mirror', { ...JOB, speed: SLOW });
    await guestWrites(source.uri, ...WRITES);
    await unthrottle(qmp);
    await qmp.event('BLOCK_JOB_READY');
    await guestWrites(source.uri, 'write -P 9 2M 512', 'discard 10M 64k');
    model.fill(9, 2 * MIB, 2 * MIB + 512).fill(0, 10 * MIB, 10 * MIB + 64 * KIB);
    await qmp.execute('block-job-complete', { device: 'job' });
    await succeeded(qmp);
    expectBytes(await readFile(source.path), model);
    // The export is now on the target, so that what comes later goes there only.
    await guestWrites(source.uri, 'write -P 8 6M 3k', 'read -P 9 2M 512');
    await source.daemon.stop();
    expectBytes(await readFile(source.path), model);
    expectBytes(await copied(), model.fill(8, 6 * MIB, 6 * MIB + 3 * KIB));
  });

  it('has all bytes of a backup as they were at its start', async () => {
    const { source, qmp, copied } = await makeTarget(testScope());
    const model = await readFile(source.path);
    await qmp.execute('blockdev-backup', { ...JOB, speed: SLOW });
    await guestWrites(source.uri, ...WRITES, 'discard 10M 64k');
    await unthrottle(qmp).then(() => succeeded(qmp));
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    expectBytes(await copied(), model);
    const after = written(model).fill(0, 10 * MIB, 10 * MIB + 64 * KIB);
    expectBytes(await readFile(source.path), after);
  });
});

/** What a guest does before each generation, and while the backup of it runs. */
const GENERATIONS = [
  { before: ['write -P 1 2M 1M'], during: ['write -P 2 2M 4k', 'write -P 3 9M 64k'] },
  {
    before: ['write -P 4 4M 66k', 'write -z -u 9M 192k', 'discard 10M 128k'],
    during: ['write -P 5 4M 512', 'write -P 6 0 512'],
  },
  { before: ['write -P 7 12M 1536', 'write -P 8 9M 512'], during: ['write -z 12M 512'] },
  { before: ['write -P 9 1536 512'], during: ['write -P 10 7M 64k'] },
];

describe('a chain of backups in qcow2 overlays that qemu-nbd writes', () => {
  it('restores the disk of each moment', async () => {
    const scope = testScope();
    const { source, qmp, dir } = await makeDisk(scope);
    const overlay = (generation: number): string => join(dir, `${generation}.qcow2`);
    const moment = (generation: number): string => join(dir, `${generation}.img`);
    for (const [generation, { before, during }] of GENERATIONS.entries()) {
      await guestWrites(source.uri, ...before);
      await copyFile(source.path, moment(generation));
      const image = overlay(generation);
      const base = generation === 0 ? [] : ['-F', 'qcow2', '-b', overlay(generation - 1)];
      await runPeer('qemu-img', ['create', '-f', 'qcow2', ...base, image, String(SIZE)]);
      const socket = join(dir, `${generation}.sock`);
      const server = await serveBy(scope, 'qemu-nbd', { image, socket, format: 'qcow2' });
      await addTarget(qmp, socket);
      const job = { ...JOB, speed: 64 * KIB };
      if (generation === 0) {
        const bitmap = { type: 'block-dirty-bitmap-add', data: { node: 'disk', name: 'changes' } };
        const backup = { type: 'blockdev-backup', data: job };
        await qmp.execute('transaction', { actions: [bitmap, backup] });
      } else {
        const changes = { bitmap: 'changes', 'bitmap-mode': 'on-success' };
        await qmp.execute('blockdev-backup', { ...job, ...changes, sync: 'incremental' });
      }
      await guestWrites(source.uri, ...during);
      await unthrottle(qmp).then(() => succeeded(qmp));
      await qmp.execute('blockdev-del', { 'node-name': 'target' });
      await server.stop();
      if (generation > 0) expect(await allocatedBytes(image)).toBeLessThan(MIB);
    }
    for (const generation of GENERATIONS.keys()) {
      const image = overlay(generation);
      await runPeer('qemu-img', ['check', '-f', 'qcow2', image]);
      await runPeer('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', image, moment(generation)]);
      const restored = join(dir, `${generation}.restored`);
      await runPeer('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', image, restored]);
      expectBytes(await readFile(restored), await readFile(moment(generation)));
    }
  });
});

/** An emulator with one disk `d0`, on node `n0`, and no guest. */
async function startQemu(scope: Scope, image: string) {
  const path = join(await scope.tempDir(), 'qmp.sock');
  const { child, stop } = startServer(scope, 'qemu-system-x86_64', [
    ...['-machine', 'none', '-accel', 'tcg', '-S', '-nodefaults', '-display', 'none'],
    ...['-drive', `if=none,id=d0,node-name=n0,format=raw,discard=unmap,file=${image}`],
    ...['-qmp', `unix:${path},server=on,wait=off`],
  ]);
  const qmp = await untilMonitor(child, path);
  scope.defer(() => qmp.close());
  return { qmp, stop };
}

/** Writes by the block layer of the emulator, as its guest would. */
async function emulatorWrites(qmp: QmpClient, ...commands: readonly string[]): Promise<void> {
  for (const command of [...commands, 'flush']) {
    const line = `qemu-io d0 "${command}"`;
    await qmp.execute('human-monitor-command', { 'command-line': line });
  }
}

/**
 * QEMU 7.2 loses a race against itself now and then, whatever the server is: a job's read of its own
 * image fails, because another descriptor takes the place of the one in use.
 */
const QEMU_RACE = 'Bad file descriptor';
const ATTEMPTS = 10;

/** @returns false when the emulator has lost its race */
async function becameReady(qmp: QmpClient): Promise<boolean> {
  const ends = ['ready', 'concluded'];
  const { data } = await qmp.event('JOB_STATUS_CHANGE', ({ status }) =>
    ends.includes(String(status)),
  );
  if (data?.status === 'ready') return true;
  const [job] = await qmp.execute<{ error?: string }[]>('query-jobs');
  expect(job?.error).toBe(QEMU_RACE);
  return false;
}

/** @returns false when the emulator has lost its race */
async function emulatorMovesItsDisk(command: string): Promise<boolean> {
  const scope = testScope();
  const { source: target, image } = await makeDisk(scope);
  const model = Buffer.concat([Buffer.alloc(MIB), patternBytes(SIZE - MIB, 21)]);
  await writeFile(image, model);
  const { qmp, stop } = await startQemu(scope, image);
  const existing = { device: 'd0', target: target.uri, format: 'raw', mode: 'existing' };
  if (command === 'blockdev-mirror') await addTarget(qmp, target.socketPath);
  const disk = command === 'drive-mirror' ? existing : { device: 'n0' };
  await qmp.execute(command, { ...JOB, ...disk });
  await emulatorWrites(qmp, ...WRITES);
  if (!(await becameReady(qmp))) return false;
  await emulatorWrites(qmp, 'write -P 9 2M 512');
  await qmp.execute('block-job-complete', { device: 'job' });
  await succeeded(qmp);
  const moved = written(model).fill(9, 2 * MIB, 2 * MIB + 512);
  expectBytes(await readFile(image), moved);
  await emulatorWrites(qmp, 'write -P 8 6M 3k');
  await stop();
  await target.daemon.stop();
  expectBytes(await readFile(target.path), moved.fill(8, 6 * MIB, 6 * MIB + 3 * KIB));
  return true;
}

describe('an emulator', () => {
  it.each(['drive-mirror', 'blockdev-mirror'])('moves its disk here by %s', async (command) => {
    for (let attempt = 1; !(await emulatorMovesItsDisk(command)); attempt++) {
      expect(attempt).toBeLessThan(ATTEMPTS);
    }
  });

  it('takes a disk from here, as the other end of a migration does', async () => {
    const scope = testScope();
    const { source, qmp, dir, image } = await makeDisk(scope);
    const emulator = await startQemu(scope, image);
    const path = join(dir, 'emulator.sock');
    await emulator.qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
    const disk = { type: 'nbd', id: 'e', 'node-name': 'n0', name: 'disk', writable: true };
    await emulator.qmp.execute('block-export-add', disk);
    await addTarget(qmp, path);
    const model = written(await readFile(source.path));
    await qmp.execute('blockdev-mirror', JOB);
    await qmp.event('BLOCK_JOB_READY');
    await guestWrites(source.uri, ...WRITES);
    await qmp.execute('block-job-cancel', { device: 'job' });
    await succeeded(qmp);
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    await emulator.stop();
    expectBytes(await readFile(image), model);
  });

  it('reads a disk in use here for a backup of its own', async () => {
    const scope = testScope();
    const { source, image } = await makeDisk(scope);
    const { qmp, stop } = await startQemu(scope, source.uri);
    await qmp.execute('blockdev-add', { driver: 'file', filename: image, 'node-name': 'target' });
    const model = await readFile(source.path);
    await qmp.execute('blockdev-backup', { ...JOB, device: 'n0', speed: SLOW });
    await emulatorWrites(qmp, ...WRITES);
    await unthrottle(qmp).then(() => succeeded(qmp));
    await stop();
    expectBytes(await readFile(image), model);
    await source.daemon.stop();
    expectBytes(await readFile(source.path), written(model));
  });
});
