// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { allocatedBytes, firstDifference, KIB, MIB, makeImage } from '../support/images.js';
import { runPeer } from '../support/peers.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const SIZE = 48 * MIB;
const DATA = [
  { offset: 64 * KIB, length: 5 * MIB },
  { offset: 20 * MIB, length: 1 * MIB },
  { offset: SIZE - 4 * KIB, length: 4 * KIB },
];

for (const tcp of [false, true]) {
  const over = tcp ? 'TCP' : 'a UNIX socket';

  test(`copies an export into a file over ${over} and keeps it sparse`, async () => {
    const disk = await serveImage(testScope(), { size: SIZE, data: DATA, readOnly: true, tcp });
    const copy = join(disk.dir, 'copy.img');
    await runPeer('nbdcopy', [disk.uri, copy]);
    expect(await firstDifference(disk.path, copy)).toBeUndefined();
    expect(await allocatedBytes(copy)).toBeLessThan(8 * MIB);
  });

  test(`copies a file into an export over ${over}, on several connections`, async () => {
    const disk = await serveImage(testScope(), {
      size: SIZE,
      data: [{ offset: 0, length: MIB }],
      tcp,
    });
    const source = join(disk.dir, 'source.img');
    await makeImage(source, { size: SIZE, data: DATA, seed: 3 });
    await runPeer('nbdcopy', ['--flush', '--connections=4', '--requests=64', source, disk.uri]);
    expect(await firstDifference(disk.path, source)).toBeUndefined();
  });
}

test('copies from one export to another', async () => {
  const scope = testScope();
  const source = await serveImage(scope, { size: SIZE, data: DATA, readOnly: true });
  const target = await serveImage(scope, { size: SIZE, data: [{ offset: 0, length: 2 * MIB }] });
  await runPeer('nbdcopy', ['--flush', source.uri, target.uri]);
  expect(await firstDifference(source.path, target.path)).toBeUndefined();
});

test('copies with the largest requests and synchronously', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: DATA, readOnly: true });
  const big = join(disk.dir, 'big.img');
  await runPeer('nbdcopy', [`--request-size=${32 * MIB}`, '--no-extents', disk.uri, big]);
  expect(await firstDifference(disk.path, big)).toBeUndefined();
  const slow = join(disk.dir, 'synchronous.img');
  await runPeer('nbdcopy', ['--synchronous', disk.uri, slow]);
  expect(await firstDifference(disk.path, slow)).toBeUndefined();
});

test('an export with data everywhere survives a copy there and back', async () => {
  const data = [{ offset: 0, length: 24 * MIB }];
  const disk = await serveImage(testScope(), { size: 24 * MIB });
  const [source, back] = [join(disk.dir, 'source.img'), join(disk.dir, 'back.img')];
  await makeImage(source, { size: 24 * MIB, data });
  await runPeer('nbdcopy', ['--allocated', source, disk.uri]);
  await runPeer('nbdcopy', [disk.uri, back]);
  expect(await firstDifference(source, back)).toBeUndefined();
});
