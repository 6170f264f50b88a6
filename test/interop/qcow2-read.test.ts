// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { runPeer } from '../support/peers.js';
import {
  contentOf,
  createImage,
  expectEqual,
  KIB,
  MIB,
  openImage,
  qemuContent,
  qemuIo,
} from '../support/qcow2.js';
import { testScope } from '../support/temp.js';
import { READER } from '../unit/block/driver/test-graph.js';

const SIZE = 8 * MIB - 512;

/** Writes of every kind, at places that fit no cluster size in particular. */
const COMMANDS = [
  'write -P 0x11 0 64k',
  'write -P 0x12 100k 3k',
  'write -P 0x13 1M 300k',
  'write -P 0x14 4000k 1',
  `write -P 0x15 ${SIZE - 700} 700`,
  'write -z 1100k 130k',
  'write -z -u 64k 20k',
  'discard 1M 32k',
  'write -P 0x16 5M 70000',
];

async function compareWithQemu(options: string, commands = COMMANDS): Promise<void> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 'image');
  await createImage(path, SIZE, options);
  await qemuIo(path, commands);
  const { node, close } = await openImage(path, { 'read-only': true }, READER);
  scope.defer(close);
  const expected = await qemuContent(path, join(dir, 'raw'));
  expectEqual(await contentOf(node), expected);
  expectEqual(await contentOf(node, 4096), expected);
}

describe('images made by qemu-img read the same', () => {
  for (const cluster of ['512', '1k', '4k', '64k', '256k', '2M']) {
    it(`with clusters of ${cluster}`, () => compareWithQemu(`cluster_size=${cluster}`));
  }
  it('in version 2', () => compareWithQemu('compat=0.10'));
  it('with extended L2 entries', () => compareWithQemu('extended_l2=on'));
  it('with extended L2 entries in the smallest clusters', () =>
    compareWithQemu('extended_l2=on,cluster_size=16k'));
  it('with clusters got ready ahead', () => compareWithQemu('preallocation=metadata'));
});

describe('chains made by qemu-img', () => {
  it('are read through to a shorter backing file', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const base = join(dir, 'base');
    const path = join(dir, 'top');
    await createImage(base, 3 * MIB);
    await qemuIo(base, ['write -P 0x21 0 3M']);
    await createImage(path, SIZE, '', ['-b', 'base', '-F', 'qcow2']);
    await qemuIo(path, ['write -P 0x31 10k 5k', 'write -z 1M 200k', 'write -P 0x32 2900k 400k']);
    const { node, close } = await openImage(path, { 'read-only': true }, READER);
    scope.defer(close);
    expect(node.children.get('backing')?.node.driver.name).toBe('qcow2');
    expectEqual(await contentOf(node), await qemuContent(path, join(dir, 'raw')));
  });

  it('are cut off by a backing of null', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const base = join(dir, 'base');
    const path = join(dir, 'top');
    await createImage(base, 1 * MIB);
    await qemuIo(base, ['write -P 0x21 0 1M']);
    await createImage(path, 1 * MIB, '', ['-b', base, '-F', 'qcow2']);
    await qemuIo(path, ['write -P 0x31 0 64k']);
    const { node, close } = await openImage(path, { backing: null, 'read-only': true }, READER);
    scope.defer(close);
    const expected = Buffer.alloc(1 * MIB);
    expected.fill(0x31, 0, 64 * KIB);
    expectEqual(await contentOf(node), expected);
  });
});

describe('compressed clusters', () => {
  for (const cluster of ['512', '4k', '64k', '2M']) {
    it(`of ${cluster} read the same`, async () => {
      const scope = testScope();
      const dir = await scope.tempDir();
      const plain = join(dir, 'plain');
      const path = join(dir, 'image');
      await createImage(plain, 4 * MIB);
      await qemuIo(plain, ['write -P 0x41 0 1M', 'write -P 0x42 1500k 1M', 'write -P 7 3M 1k']);
      await runPeer('qemu-img', [
        ...['convert', '-c', '-f', 'qcow2', '-O', 'qcow2', '-o', `cluster_size=${cluster}`],
        ...[plain, path],
      ]);
      const { node, close } = await openImage(path, { 'read-only': true }, READER);
      scope.defer(close);
      expectEqual(await contentOf(node, 10_000), await qemuContent(path, join(dir, 'raw')));
    });
  }
});
