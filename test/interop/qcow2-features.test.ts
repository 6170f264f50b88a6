// SPDX-License-Identifier: MIT
/**
 * Each feature of qcow2 that there is here has a test with images that qemu-img or qemu-io made, or that they
 * judge. The list says where; features that no other file is about are tested here.
 */
import { copyFile, mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  contentOf,
  createImage,
  expectEqual,
  expectSound,
  KIB,
  MIB,
  openImage,
  qemuContent,
  qemuIo,
} from '../support/qcow2.js';
import { testScope } from '../support/temp.js';
import { RESIZER } from '../unit/block/driver/test-graph.js';

/** Feature, file below test/, name of the test as it stands there. */
const FEATURES: readonly (readonly [feature: string, file: string, name: string])[] = [
  ['version 2', 'interop/qcow2-read', 'in version 2'],
  // biome-ignore lint/suspicious/noTemplateCurlyInString: as it stands in the file
  ['clusters of 512 B to 2 MiB', 'interop/qcow2-read', 'with clusters of ${cluster}'],
  ['counts of 1 to 64 bits', 'interop/qcow2-features', 'with counts of'],
  ['zero clusters, plain and allocated', 'interop/qcow2-status', 'is that of qemu-img map'],
  ['compressed clusters, read', 'interop/qcow2-read', 'compressed clusters'],
  ['compressed clusters, replaced', 'interop/qcow2-safety', 'are replaced by written ones'],
  ['lazy refcounts, dirty bit', 'interop/qcow2-safety', 'with lazy refcounts is put right'],
  ['corrupt bit', 'interop/qcow2-safety', 'make an image corrupt, and mark it so'],
  ['extended L2 entries', 'interop/qcow2-read', 'with extended L2 entries in the smallest'],
  ['external data file', 'interop/qcow2-features', 'with an external data file'],
  ['raw external data file', 'interop/qcow2-features', 'with a raw external data file'],
  ['option data-file', 'interop/qcow2-features', 'with a data file that has moved'],
  ['backing file, shorter', 'interop/qcow2-read', 'are read through to a shorter backing file'],
  ['backing file, relative', 'interop/qcow2-features', 'with a backing file named relative'],
  ['backing file, json: and no format', 'interop/qcow2-safety', 'named by json: or without'],
  ['option backing: null', 'interop/qcow2-read', 'are cut off by a backing of null'],
  ['header extensions kept', 'interop/qcow2-create', 'keeps what else is in it'],
  ['unknown features by name', 'interop/qcow2-safety', 'tells an unknown feature by its name'],
  ['options lazy-refcounts, caches', 'interop/qcow2-random', 'random lives of images'],
  ['option pass-discard-request', 'interop/qcow2-features', 'gives space back as told'],
  ['option discard-no-unref', 'interop/qcow2-features', 'keeps discarded clusters in place'],
  ['option overlap-check', 'interop/qcow2-safety', 'do not let a write destroy'],
  ['option cache-clean-interval', 'unit/block/driver/qcow2/table-cache', 'lets go of what nobody'],
  ['crash-safe order', 'interop/qcow2-power-loss', 'power that is lost'],
  ['kills', 'fault/qcow2-kills', 'a writer that is killed at any instant'],
  ['snapshots over a loss of power', 'interop/qcow2-snapshot-power-loss', 'with whole snapshots'],
  ['discard frees and punches', 'interop/qcow2-safety', 'gives space back where the node may'],
  ['growth beside a longer backing file', 'interop/qcow2-safety', 'does not let a longer'],
  ['shrinking', 'interop/qcow2-features', 'shrinks'],
  ['preallocation', 'interop/qcow2-create', 'with all clusters got ready'],
  ['bitmaps, loaded', 'interop/qcow2-bitmaps', 'are loaded as qemu-storage-daemon loads them'],
  ['bitmaps, stored', 'interop/qcow2-bitmaps', 'are loaded by QEMU with the same digests'],
  ['bitmaps, inconsistent', 'interop/qcow2-bitmaps', 'are inconsistent for both'],
  ['bitmaps, removed', 'interop/qcow2-bitmaps', 'can be removed one by one'],
  ['bitmaps over a loss of power', 'interop/qcow2-bitmaps-power-loss', 'no bitmap that lies'],
  ['bitmaps that lie', 'interop/qcow2-bitmaps-hostile', 'refuses an image with'],
  ['internal snapshots', 'interop/img-snapshot', 'makes, applies and deletes snapshots'],
  ['internal snapshots of QEMU', 'interop/img-snapshot', 'takes snapshots of qemu-img'],
  ['blockdev-create', 'interop/create-dialogue', 'has the dialogue of qemu-storage-daemon'],
  ['image information', 'scenario/qcow2', 'is made, added, exported, looked at'],
  ['blockdev-reopen', 'interop/qcow2-reopen', 'puts another backing node in place'],
  ['img info, map, compare', 'interop/img', 'finds what qemu-img finds'],
  ['img bitmap', 'interop/img-bitmap', 'does to bitmaps what qemu-img does'],
  ['hostile headers', 'interop/qcow2-safety', 'header fields are checked'],
  ['hostile metadata', 'fuzz/qcow2-images', 'images changed at random'],
  ['BLOCK_IMAGE_CORRUPTED', 'interop/qcow2-corruption-dialogue', 'a table between clusters, read'],
  ['migration', 'scenario/qcow2-migration', 'moves to another daemon under a writer'],
];

describe('the feature', () => {
  it.each(FEATURES)('%s has a test', async (_feature, file, name) => {
    const source = await readFile(join('test', `${file}.test.ts`), 'utf8');
    const list = source.indexOf('const FEATURES');
    const tests = list < 0 ? source : source.slice(source.indexOf('];', list));
    expect(tests).toContain(name);
  });
});

const SIZE = 4 * MIB;
const COMMANDS = [
  'write -P 1 0 1M',
  'write -P 2 1100k 5k',
  'write -z 64k 100k',
  'write -P 3 3M 1M',
];

/** Reads as QEMU does, is written, and is sound and right for QEMU then. */
async function useBoth(dir: string, path: string, options: object = {}): Promise<void> {
  const raw = join(dir, 'raw');
  const { node, close } = await openImage(path, options, RESIZER);
  const expected = await contentOf(node);
  await close();
  expectEqual(expected, await qemuContent(path, raw));
  const again = await openImage(path, options, RESIZER);
  const bytes = Buffer.alloc(300_000, 0x5a);
  await again.node.write(700_001, bytes);
  bytes.copy(expected, 700_001);
  await again.node.writeZeroes(3 * MIB, 200 * KIB, 2);
  expected.fill(0, 3 * MIB, 3 * MIB + 200 * KIB);
  expectEqual(await contentOf(again.node), expected);
  await again.close();
  await expectSound(path);
  expectEqual(await qemuContent(path, raw), expected);
}

async function made(options: string): Promise<{ dir: string; path: string }> {
  const dir = await testScope().tempDir();
  const path = join(dir, 'image');
  await createImage(path, SIZE, options.replace('DIR', dir));
  await qemuIo(path, COMMANDS);
  return { dir, path };
}

describe('an image that qemu-img made', () => {
  for (const bits of [1, 2, 4, 8, 16, 32, 64]) {
    it(`with counts of ${bits} bits is read and written`, async () => {
      const { dir, path } = await made(`cluster_size=4k,refcount_bits=${bits}`);
      await useBoth(dir, path);
    });
  }

  it('with an external data file is read and written', async () => {
    const { dir, path } = await made('data_file=DIR/data');
    await useBoth(dir, path);
  });

  it('with a raw external data file is read and written, and the file is the disk', async () => {
    const { dir, path } = await made('data_file=DIR/data,data_file_raw=on');
    await useBoth(dir, path);
    const { node, close } = await openImage(path);
    expectEqual((await readFile(join(dir, 'data'))).subarray(0, SIZE), await contentOf(node));
    await close();
  });

  it('with a raw external data file that is longer grows with zeroes, in the file too', async () => {
    const { dir, path } = await made('data_file=DIR/data,data_file_raw=on');
    await writeFile(join(dir, 'data'), Buffer.alloc(2 * MIB, 9), { flag: 'a' });
    const { node, close } = await openImage(path, {}, RESIZER);
    const expected = Buffer.alloc(SIZE + 3 * MIB);
    (await contentOf(node)).copy(expected);
    await node.truncate(SIZE + 3 * MIB);
    expectEqual(await contentOf(node), expected);
    await close();
    expectEqual(await readFile(join(dir, 'data')), expected);
    await expectSound(path);
    expectEqual(await qemuContent(path, join(dir, 'raw')), expected);
  });

  it('with a data file that has moved is opened with the option data-file', async () => {
    const { dir, path } = await made('data_file=DIR/data');
    const expected = await qemuContent(path, join(dir, 'raw'));
    await copyFile(join(dir, 'data'), join(dir, 'moved'));
    await qemuIo(path, ['write -P 9 0 4M']);
    const { node, close } = await openImage(path, {
      'data-file': { driver: 'file', filename: join(dir, 'moved') },
    });
    const content = await contentOf(node);
    expectEqual(content.subarray(0, 64 * KIB), expected.subarray(0, 64 * KIB));
    await close();
  });

  it('with a backing file named relative to it is found from anywhere', async () => {
    const dir = await testScope().tempDir();
    await mkdir(join(dir, 'below'));
    await createImage(join(dir, 'below/base'), SIZE);
    await qemuIo(join(dir, 'below/base'), COMMANDS);
    const path = join(dir, 'image');
    await createImage(path, SIZE, 'cluster_size=4k', ['-b', 'below/base', '-F', 'qcow2']);
    await qemuIo(path, ['write -P 8 200k 10k']);
    await useBoth(dir, path);
  });

  for (const pass of [true, false]) {
    it(`gives space back as told: pass-discard-request ${pass}`, async () => {
      const { path } = await made('');
      await qemuIo(path, ['write -P 1 0 4M']);
      const before = (await stat(path)).blocks * 512;
      const { node, close } = await openImage(path, { 'pass-discard-request': pass });
      await node.discard(0, SIZE);
      await node.flush();
      await close();
      const after = (await stat(path)).blocks * 512;
      if (pass) expect(after).toBeLessThan(before - 3 * MIB);
      else expect(after).toBeGreaterThanOrEqual(before);
      await expectSound(path);
    });
  }

  it('keeps discarded clusters in place with discard-no-unref', async () => {
    const { dir, path } = await made('');
    const before = (await stat(path)).size;
    const { node, close } = await openImage(path, { 'discard-no-unref': true });
    await node.discard(3 * MIB, 1 * MIB);
    await node.write(2 * MIB, Buffer.alloc(1 * MIB, 6));
    await close();
    const again = await openImage(path);
    await again.node.write(3 * MIB, Buffer.alloc(1 * MIB, 7));
    await again.close();
    await expectSound(path);
    // What was written in between did not get them, so they were there for what came later.
    expect((await stat(path)).size).toBe(before + 1 * MIB);
    const content = await qemuContent(path, join(dir, 'raw'));
    expectEqual(content.subarray(3 * MIB), Buffer.alloc(1 * MIB, 7));
  });

  it('shrinks, and grows again with zeroes', async () => {
    const { dir, path } = await made('cluster_size=4k');
    const { node, close } = await openImage(path, {}, RESIZER);
    const expected = Buffer.alloc(SIZE);
    (await contentOf(node)).copy(expected, 0, 0, 1 * MIB + 512);
    await node.truncate(1 * MIB + 512);
    await node.truncate(SIZE);
    expectEqual(await contentOf(node), expected);
    await close();
    await expectSound(path);
    expectEqual(await qemuContent(path, join(dir, 'raw')), expected);
  });
});
