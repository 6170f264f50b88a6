// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { firstDifference, KIB, MIB, makeImage } from '../support/images.js';
import { runPeer, runPeerJson, tryPeer } from '../support/peers.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const SIZE = 32 * MIB;
const DATA = [
  { offset: 0, length: 64 * KIB },
  { offset: 4 * MIB + 64 * KIB, length: 3 * MIB },
  { offset: SIZE - 64 * KIB, length: 64 * KIB },
];

for (const tcp of [false, true]) {
  const over = tcp ? 'TCP' : 'a UNIX socket';

  test(`convert copies an export out over ${over}`, async () => {
    const scope = testScope();
    const disk = await serveImage(scope, { size: SIZE, data: DATA, readOnly: true, tcp });
    const copy = join(disk.dir, 'copy.img');
    await runPeer('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', disk.uri, copy]);
    expect(await firstDifference(disk.path, copy)).toBeUndefined();
  });

  test(`convert copies an image in over ${over}`, async () => {
    const scope = testScope();
    const disk = await serveImage(scope, { size: SIZE, data: [{ offset: 0, length: MIB }], tcp });
    const source = join(disk.dir, 'source.img');
    await makeImage(source, { size: SIZE, data: DATA, seed: 7 });
    await runPeer('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, disk.uri]);
    expect(await firstDifference(disk.path, source)).toBeUndefined();
  });
}

test('convert with many requests out of order copies an export out', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: DATA, readOnly: true });
  const copy = join(disk.dir, 'copy.img');
  await runPeer('qemu-img', ['convert', '-W', '-m', '16', '-O', 'raw', disk.uri, copy]);
  expect(await firstDifference(disk.path, copy)).toBeUndefined();
});

test('convert makes a qcow2 image of an export that holds the same data', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: DATA, readOnly: true });
  const copy = join(disk.dir, 'copy.qcow2');
  await runPeer('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', disk.uri, copy]);
  const compared = await runPeer('qemu-img', [
    'compare',
    '-f',
    'raw',
    '-F',
    'qcow2',
    disk.uri,
    copy,
  ]);
  expect(compared.stdout).toBe('Images are identical.\n');
});

test('compare finds one byte that differs', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: DATA });
  const other = join(disk.dir, 'other.img');
  await makeImage(other, { size: SIZE, data: DATA });
  const args = ['compare', '-f', 'raw', '-F', 'raw', disk.uri, other];
  expect((await tryPeer('qemu-img', args)).code).toBe(0);
  await runPeer('qemu-io', ['-f', 'raw', '-c', `write -P 0x5a ${10 * MIB} 1`, other]);
  const result = await tryPeer('qemu-img', args);
  expect(result.code).toBe(1);
  expect(result.stdout).toMatch(/^Content mismatch at offset \d+!$/m);
});

test('info reports format and size', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, readOnly: true });
  const info = await runPeerJson('qemu-img', ['info', '--output=json', '-f', 'raw', disk.uri]);
  expect(info).toMatchObject({ format: 'raw', 'virtual-size': SIZE });
});

test('an export of odd size is seen rounded up to sectors and copied whole', async () => {
  const size = MIB + 333;
  const data = [{ offset: MIB - 1000, length: 1333 }];
  const disk = await serveImage(testScope(), { size, data, readOnly: true });
  const info = await runPeerJson('nbdinfo', ['--json', disk.uri]);
  expect(info).toMatchObject({ exports: [{ 'export-size': size }] });
  const copy = join(disk.dir, 'copy.img');
  await runPeer('nbdcopy', [disk.uri, copy]);
  expect(await firstDifference(disk.path, copy)).toBeUndefined();
});

test('map shows the data and holes of the file', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: DATA, readOnly: true });
  const args = ['map', '--output=json', '-f', 'raw'];
  const extents = await runPeerJson<MapExtent[]>('qemu-img', [...args, disk.uri]);
  const ofFile = await runPeerJson<MapExtent[]>('qemu-img', [...args, disk.path]);
  const shape = (list: MapExtent[]) =>
    list.map(({ start, length, data }) => ({ start, length, data }));
  expect(shape(extents)).toEqual(shape(ofFile));
  expect(extents.every(({ data, zero }) => data !== zero)).toBe(true);
  expect(extents.filter(({ data }) => data).map(({ start }) => start)).toEqual(
    DATA.map(({ offset }) => offset),
  );
});

interface MapExtent {
  readonly start: number;
  readonly length: number;
  readonly data: boolean;
  readonly zero: boolean;
}

test('a read-only export refuses to be written to', async () => {
  const disk = await serveImage(testScope(), { size: MIB, readOnly: true });
  const result = await tryPeer('qemu-io', ['-f', 'raw', '-c', 'write 0 4k', disk.uri]);
  expect(result.code).not.toBe(0);
  expect(result.stderr).toMatch(/read.?only|permi/i);
});
