// SPDX-License-Identifier: MIT
/** `diskferry img bitmap` and `convert --bitmaps` beside qemu-img on the same images. */
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { peerBitmaps } from '../support/bitmap-peer.js';
import { diskferry } from '../support/diskferry.js';
import { tryPeer } from '../support/peers.js';
import { createImage, expectSound, MIB, openImage, qemuIo } from '../support/qcow2.js';
import { testScope } from '../support/temp.js';

const SIZE = 16 * MIB;

const ours = (...args: string[]) => diskferry(['img', ...args]);
const theirs = (...args: string[]) => tryPeer('qemu-img', args);

it('does to bitmaps what qemu-img does, and describes them as it does', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  const other = join(dir, 'other');
  await createImage(other, SIZE);
  await theirs('bitmap', '--add', '-g', '4k', other, 'source');
  await qemuIo(other, ['write 9M 100k']);
  const runs = [
    { img: theirs, path: join(dir, 'theirs') },
    { img: ours, path: join(dir, 'ours') },
  ];
  const found: unknown[] = [];
  for (const { img, path } of runs) {
    await createImage(path, SIZE, 'cluster_size=4k');
    const bitmap = async (...args: string[]): Promise<void> => {
      expect(await img('bitmap', '-f', 'qcow2', ...args)).toMatchObject({ code: 0, stdout: '' });
    };
    await bitmap('--add', '-g', '512', path, 'fine');
    await bitmap('--add', '--disable', path, 'off');
    await bitmap('--add', path, 'gone');
    await qemuIo(path, ['write 100k 1M']);
    await bitmap('--merge', 'fine', path, 'off');
    await bitmap('--clear', '--merge', 'source', '-b', other, '-F', 'qcow2', path, 'fine');
    await bitmap('--remove', path, 'gone');
    await bitmap('--enable', path, 'off');
    await qemuIo(path, ['write 3M 4k']);
    await expectSound(path);
    const { stdout } = await img('info', '--output=json', path);
    const { 'format-specific': specific } = JSON.parse(stdout);
    found.push({ bitmaps: await peerBitmaps(scope, path), told: specific.data.bitmaps });
  }
  expect(found[1]).toEqual(found[0]);
  expect(found[1]).toMatchObject({
    bitmaps: [{ name: 'fine' }, { name: 'off' }],
    told: [{ name: 'fine' }, { name: 'off' }],
  });
});

it('refuses what qemu-img refuses, in its words, and nothing has changed then', async () => {
  const scope = testScope();
  const path = join(await scope.tempDir(), 'image');
  await createImage(path, SIZE);
  await theirs('bitmap', '--add', path, 'b');
  for (const args of [
    [path, 'b'],
    ['--clear', '-g', '4k', path, 'b'],
    ['--clear', '-F', 'raw', path, 'b'],
    ['--clear', '-b', path, path, 'b'],
    ['--clear', path],
    ['--add', path, 'b'],
    ['--add', '-g', '1000', path, 'c'],
    ['--remove', path, 'c'],
    ['--merge', 'c', path, 'b'],
    ['--add', '-g', '512', path, 'x'.repeat(1024)],
  ]) {
    const said = await theirs('bitmap', ...args);
    const own = await ours('bitmap', ...args);
    expect(own.code, args.join(' ')).toBe(1);
    // The name that the node got by itself differs.
    const text = (stderr: string): string =>
      (stderr.split('\n')[0] ?? '').replace(/^[a-z-]+: /, '').replace(/'#block\d+'/, "'#'");
    expect(text(own.stderr)).toContain(text(said.stderr));
  }
  expect(await peerBitmaps(scope, path)).toMatchObject([{ name: 'b', count: 0 }]);
  await expectSound(path);
});

it('convert takes the bitmaps along, but for broken ones when told so', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 'image');
  await createImage(path, SIZE);
  await theirs('bitmap', '--add', path, 'b');
  await theirs('bitmap', '--add', '--disable', path, 'off');
  await qemuIo(path, ['write 100k 1M']);
  const copy = join(dir, 'copy');
  expect(await ours('convert', '-O', 'qcow2', '--bitmaps', path, copy)).toMatchObject({ code: 0 });
  await expectSound(copy);
  const before = await peerBitmaps(scope, path);
  expect(before.length).toBe(2);
  expect(await peerBitmaps(scope, copy)).toEqual(before);
  expect((await theirs('compare', path, copy)).code).toBe(0);
  const raw = await ours('convert', '-O', 'raw', '--bitmaps', path, join(dir, 'raw'));
  expect(raw).toMatchObject({ code: 1 });
  expect(raw.stderr).toContain("Format driver 'raw' does not support bitmaps");
  const { node, close } = await openImage(path);
  await node.write(0, Buffer.alloc(512, 1));
  await node.flush();
  const broken = join(dir, 'broken');
  await copyFile(path, broken);
  await close();
  const refused = await ours('convert', '-O', 'qcow2', '--bitmaps', broken, copy);
  expect(refused.stderr).toContain('Cannot copy inconsistent bitmap');
  const skip = ['--bitmaps', '--skip-broken-bitmaps'];
  const skipped = await ours('convert', '-O', 'qcow2', ...skip, broken, copy);
  expect(skipped).toMatchObject({ code: 0 });
  expect(await peerBitmaps(scope, copy)).toEqual([]);
});
