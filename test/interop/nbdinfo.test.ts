// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { startDaemon } from '../support/daemon.js';
import { KIB, MIB, makeImage } from '../support/images.js';
import { runPeer, runPeerJson } from '../support/peers.js';
import { type ServedImage, serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const SIZE = 8 * MIB;
const DATA = [{ offset: MIB, length: 256 * KIB }];

interface ExportInfo {
  readonly 'export-name': string;
  readonly 'export-size': number;
  readonly description?: string;
  readonly is_read_only: boolean;
  readonly [field: string]: unknown;
}

interface ServerInfo {
  readonly protocol: string;
  readonly TLS: boolean;
  readonly structured: boolean;
  readonly exports: readonly ExportInfo[];
}

async function onlyExport(disk: ServedImage): Promise<ExportInfo & { server: ServerInfo }> {
  const server = await runPeerJson<ServerInfo>('nbdinfo', ['--json', disk.uri]);
  const [info] = server.exports;
  if (info === undefined) throw new Error('no export');
  return { ...info, server };
}

test('plain output shows size, name and description', async () => {
  const disk = await serveImage(testScope(), {
    size: SIZE,
    data: DATA,
    exportOptions: ',description=A disk for tests',
  });
  const { stdout } = await runPeer('nbdinfo', [disk.uri]);
  expect(stdout).toMatch(/^protocol: newstyle-fixed without TLS, using structured packets$/m);
  expect(stdout).toContain('export="disk":');
  expect(stdout).toMatch(/description: A disk for tests/);
  expect(stdout).toMatch(/export-size: 8388608/);
  expect(stdout).toMatch(/base:allocation/);
});

test('--size prints the size in bytes', async () => {
  const disk = await serveImage(testScope(), { size: SIZE + 12345, readOnly: true });
  expect((await runPeer('nbdinfo', ['--size', disk.uri])).stdout).toBe(`${SIZE + 12345}\n`);
});

test('a writable export offers every command, and several connections', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const info = await onlyExport(disk);
  expect(info.server).toMatchObject({ protocol: 'newstyle-fixed', TLS: false, structured: true });
  expect(info).toMatchObject({
    'export-name': 'disk',
    'export-size': SIZE,
    is_rotational: false,
    is_read_only: false,
    can_cache: true,
    can_df: true,
    can_fast_zero: true,
    can_flush: true,
    can_fua: true,
    can_multi_conn: true,
    can_trim: true,
    can_zero: true,
    contexts: ['base:allocation'],
  });
});

test('a read-only export says so and offers no command that writes', async () => {
  const info = await onlyExport(await serveImage(testScope(), { size: SIZE, readOnly: true }));
  expect(info).toMatchObject({ is_read_only: true, can_multi_conn: true });
  expect(info).toMatchObject({ can_trim: false, can_zero: false, can_fast_zero: false });
});

test('block sizes are sensible powers of two', async () => {
  const info = await onlyExport(await serveImage(testScope(), { size: SIZE }));
  const least = Number(info.block_size_minimum);
  const preferred = Number(info.block_size_preferred);
  const most = Number(info.block_size_maximum);
  for (const size of [least, preferred]) expect(size & (size - 1)).toBe(0);
  expect(least).toBeLessThanOrEqual(4096);
  expect(preferred).toBeGreaterThanOrEqual(4096);
  expect(most).toBeGreaterThanOrEqual(MIB);
});

test('--map shows data and holes with their types', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: DATA, readOnly: true });
  const map = await runPeerJson('nbdinfo', ['--map', '--json', disk.uri]);
  expect(map).toEqual([
    { offset: 0, length: MIB, type: 3, description: 'hole,zero' },
    { offset: MIB, length: 256 * KIB, type: 0, description: 'data' },
    { offset: MIB + 256 * KIB, length: SIZE - MIB - 256 * KIB, type: 3, description: 'hole,zero' },
  ]);
});

test('--map --totals adds up to the size', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: DATA, readOnly: true });
  const args = ['--map', '--totals', '--json', disk.uri];
  const totals = await runPeerJson<{ size: number; type: number }[]>('nbdinfo', args);
  const bySize = Object.fromEntries(totals.map(({ type, size }) => [type, size]));
  expect(bySize).toEqual({ 0: 256 * KIB, 3: SIZE - 256 * KIB });
});

test('--map=qemu:allocation-depth tells what the top image holds', async () => {
  const disk = await serveImage(testScope(), {
    size: SIZE,
    data: DATA,
    readOnly: true,
    exportOptions: ',allocation-depth=on',
  });
  const info = await onlyExport(disk);
  expect(info).toMatchObject({ contexts: ['base:allocation', 'qemu:allocation-depth'] });
  const args = ['--map=qemu:allocation-depth', '--json', disk.uri];
  const map = await runPeerJson<{ offset: number; length: number; type: number }[]>(
    'nbdinfo',
    args,
  );
  expect(map.reduce((sum, { length }) => sum + length, 0)).toBe(SIZE);
  const holding = map.find(({ offset, length }) => offset <= MIB && MIB < offset + length);
  expect(holding?.type).toBe(1);
});

test('--list shows every export, wherever it listens', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  const socket = join(dir, 'nbd.sock');
  const names = ['first', 'second', 'with/slash'];
  const args: string[] = [];
  for (const [index, name] of names.entries()) {
    const path = join(dir, `${index}.img`);
    await makeImage(path, { size: (index + 1) * MIB });
    args.push('--blockdev', `driver=file,node-name=n${index},filename=${path}`);
    args.push('--export', `type=nbd,id=e${index},node-name=n${index},name=${name}`);
  }
  const server = ['--nbd-server', `addr.type=unix,addr.path=${socket}`];
  const blockdevs = args.filter((_, i) => args[i - (i % 2)] === '--blockdev');
  const exportArgs = args.filter((_, i) => args[i - (i % 2)] === '--export');
  await startDaemon(scope, [...blockdevs, ...server, ...exportArgs]);
  const list = await runPeerJson<ServerInfo>('nbdinfo', [
    '--list',
    '--json',
    `nbd+unix:///?socket=${socket}`,
  ]);
  const seen = list.exports.map((item) => [item['export-name'], item['export-size']]);
  expect(seen.sort()).toEqual(names.map((name, index) => [name, (index + 1) * MIB]));
});

test('--can and --is answer by exit status', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  await runPeer('nbdinfo', ['--can', 'connect', disk.uri]);
  await runPeer('nbdinfo', ['--can', 'write', disk.uri]);
  await runPeer('nbdinfo', ['--can', 'structured', disk.uri]);
});
