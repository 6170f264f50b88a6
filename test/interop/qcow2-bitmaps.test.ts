// SPDX-License-Identifier: MIT
/** Persistent bitmaps: made by QEMU and kept up here, made here and loaded by QEMU. */
import { copyFile, open } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { addingBitmap, removingBitmap } from '../../src/block/bitmap/bitmap-changes.js';
import type { BlockGraph } from '../../src/block/graph.js';
import type { BlockNode } from '../../src/block/node.js';
import { reopenNodes } from '../../src/block/reopen.js';
import { setActive } from '../../src/block/set-active.js';
import { applyChanges } from '../../src/block/transaction.js';
import { peerBitmaps } from '../support/bitmap-peer.js';
import { runPeer, runPeerJson, tryPeer } from '../support/peers.js';
import { createImage, expectSound, KIB, MIB, openImage, qemuIo } from '../support/qcow2.js';
import { type Scope, testScope } from '../support/temp.js';
import { READER, RESIZER } from '../unit/block/driver/test-graph.js';

const SIZE = 64 * MIB + 512;

async function image(
  options = '',
  size = SIZE,
): Promise<{ scope: Scope; dir: string; path: string }> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 'image');
  await createImage(path, size, options);
  return { scope, dir, path };
}

const qemuBitmap = (...args: string[]) => runPeer('qemu-img', ['bitmap', '-f', 'qcow2', ...args]);

const OPTIONS = { driver: 'qcow2', discard: 'unmap', 'node-name': 'disk' };

const add = (graph: BlockGraph, name: string, more: object = {}): Promise<void> =>
  applyChanges([addingBitmap(graph, { node: 'disk', name, persistent: true, ...more })]);

function ours(node: BlockNode): object[] {
  return [...node.bitmaps.values()]
    .map((bitmap) => ({
      name: bitmap.name,
      count: bitmap.count,
      granularity: bitmap.granularity,
      recording: bitmap.recording,
      busy: bitmap.busy,
      persistent: bitmap.persistent,
      ...(bitmap.inconsistent ? { inconsistent: true } : { sha256: bitmap.sha256() }),
    }))
    .toSorted((left, right) => (String(left.name) < String(right.name) ? -1 : 1));
}

interface Info {
  readonly 'format-specific': { readonly data: { readonly bitmaps?: object[] } };
}

async function storedBitmaps(path: string): Promise<object[]> {
  const info = await runPeerJson<Info>('qemu-img', ['info', '-U', '--output=json', path]);
  return info['format-specific'].data.bitmaps ?? [];
}

describe('bitmaps that qemu-img and qemu-io made', () => {
  for (const options of ['', 'cluster_size=4k', 'cluster_size=512', 'extended_l2=on']) {
    it(`are loaded as qemu-storage-daemon loads them: ${options}`, async () => {
      const { scope, path } = await image(options);
      await qemuBitmap('--add', path, 'auto');
      await qemuBitmap('--add', '-g', '512', path, 'fine');
      await qemuBitmap('--add', '-g', '2M', path, 'coarse');
      await qemuIo(path, ['write 100k 1M', 'write 30M 20M', `write ${64 * MIB} 512`]);
      await qemuBitmap('--disable', path, 'coarse');
      await qemuIo(path, ['write 3M 4k']);
      const theirs = await peerBitmaps(scope, path);
      const { node, close } = await openImage(path, OPTIONS, READER);
      expect(theirs.length).toBe(3);
      expect(ours(node)).toEqual(theirs);
      await close();
      expect(await peerBitmaps(scope, path)).toEqual(theirs);
    });
  }

  it('record what is written here, and are sound for QEMU afterwards', async () => {
    const { scope, path } = await image('cluster_size=4k');
    await qemuBitmap('--add', '-g', '512', path, 'fine');
    await qemuBitmap('--add', path, 'off');
    await qemuBitmap('--disable', path, 'off');
    const { node, close } = await openImage(path, OPTIONS);
    await node.write(5 * MIB, Buffer.alloc(3000, 1));
    await node.writeZeroes(40 * MIB, 9 * MIB, 2);
    await node.discard(20 * MIB, 64 * KIB);
    const seen = ours(node);
    await close();
    await expectSound(path);
    const theirs = await peerBitmaps(scope, path);
    expect(theirs).toEqual(seen);
    expect(theirs.map(({ count }) => count)).toEqual([9 * MIB + 64 * KIB + 3072, 0]);
    await qemuIo(path, ['write 0 1']);
    await expectSound(path);
  });

  it('are inconsistent for both when the writer was killed, and can only be removed', async () => {
    const { scope, dir, path } = await image();
    await qemuBitmap('--add', path, 'b');
    await qemuIo(path, ['write 0 1M']);
    const { node, close } = await openImage(path, OPTIONS);
    await node.write(5 * MIB, Buffer.alloc(3000, 1));
    await node.flush();
    const left = join(dir, 'left');
    await copyFile(path, left);
    await close();
    await expectSound(left);
    expect(await peerBitmaps(scope, left)).toMatchObject([{ name: 'b', inconsistent: true }]);
    const second = await openImage(left, OPTIONS);
    expect(ours(second.node)).toMatchObject([{ name: 'b', inconsistent: true, recording: false }]);
    await second.node.write(0, Buffer.alloc(1));
    await applyChanges([removingBitmap(second.graph, { node: 'disk', name: 'b' })]);
    expect(await storedBitmaps(left)).toEqual([]);
    await second.close();
    await expectSound(left);
    expect(await peerBitmaps(scope, left)).toEqual([]);
  });

  it('are stored with what a discard has marked that changed nothing', async () => {
    const { scope, path } = await image();
    await qemuBitmap('--add', '-g', '512', path, 'b');
    const { node, close } = await openImage(path, OPTIONS);
    await node.discard(1 * MIB, 512);
    const seen = ours(node);
    await close();
    expect(seen).toMatchObject([{ count: 512 }]);
    expect(await peerBitmaps(scope, path)).toEqual(seen);
  });

  it('keep their clusters when counts are worked out anew after a kill', async () => {
    const { scope, dir, path } = await image('lazy_refcounts=on,cluster_size=4k');
    await qemuBitmap('--add', '-g', '512', path, 'b');
    await qemuIo(path, ['write 0 1M']);
    const { node, close } = await openImage(path, OPTIONS);
    await node.write(5 * MIB, Buffer.alloc(3000, 1));
    await node.flush();
    const left = join(dir, 'left');
    await copyFile(path, left);
    await close();
    expect(await peerBitmaps(scope, path)).toMatchObject([{ name: 'b', count: 1 * MIB + 3072 }]);
    await expectSound(path);
    const second = await openImage(left, OPTIONS);
    await second.node.write(0, Buffer.alloc(512, 1));
    await second.close();
    await expectSound(left);
    expect(await storedBitmaps(left)).toMatchObject([{ name: 'b', flags: ['in-use', 'auto'] }]);
  });

  it('are left alone by who only reads, and can not be changed there', async () => {
    const { path } = await image();
    await qemuBitmap('--add', path, 'b');
    const { node, graph, close } = await openImage(path, { ...OPTIONS, 'read-only': true }, READER);
    const remove = applyChanges([removingBitmap(graph, { node: 'disk', name: 'b' })]);
    await expect(remove).rejects.toThrow("Bitmap 'b' is readonly and cannot be modified");
    await expect(add(graph, 'c')).rejects.toThrow('read-only');
    expect(node.bitmaps.get('b')?.readOnly).toBe(true);
    await close();
    expect(await storedBitmaps(path)).toEqual([{ name: 'b', granularity: 65536, flags: ['auto'] }]);
  });

  it('are dropped when a program without knowledge of them has written', async () => {
    const { path } = await image();
    await qemuBitmap('--add', path, 'b');
    // Autoclear features, byte 88: the bit is gone.
    const file = await open(path, 'r+');
    await file.write(Buffer.alloc(8), 0, 8, 88);
    await file.close();
    const { node, close } = await openImage(path, OPTIONS);
    expect(node.bitmaps.size).toBe(0);
    await node.write(0, Buffer.alloc(512, 1));
    await close();
    const { code } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', path]);
    // Clusters that only the bitmap used have leaked; nothing is corrupt.
    expect(code).toBe(3);
    expect(await storedBitmaps(path)).toEqual([]);
  });
});

describe('bitmaps that were made here', () => {
  it('are loaded by QEMU with the same digests', async () => {
    const { scope, path } = await image('cluster_size=1k');
    const { node, graph, close } = await openImage(path, OPTIONS);
    await add(graph, 'default');
    await add(graph, 'fine', { granularity: 512 });
    await add(graph, 'off', { disabled: true });
    await applyChanges([addingBitmap(graph, { node: 'disk', name: 'passing' })]);
    await node.write(1000, Buffer.alloc(70_000, 1));
    await node.writeZeroes(32 * MIB, 16 * MIB, 2);
    await applyChanges([removingBitmap(graph, { node: 'disk', name: 'passing' })]);
    const seen = ours(node);
    await close();
    await expectSound(path);
    expect(await peerBitmaps(scope, path)).toEqual(seen);
    expect(await storedBitmaps(path)).toEqual([
      { name: 'default', granularity: 4096, flags: ['auto'] },
      { name: 'fine', granularity: 512, flags: ['auto'] },
      { name: 'off', granularity: 4096, flags: [] },
    ]);
  });

  it('can be removed one by one, after which nothing has leaked', async () => {
    const { path } = await image('cluster_size=4k');
    const { node, graph, close } = await openImage(path, OPTIONS);
    for (const name of ['a', 'b', 'c']) await add(graph, name, { granularity: 512 });
    await node.write(0, Buffer.alloc(1 * MIB, 1));
    await close();
    const second = await openImage(path, OPTIONS);
    await applyChanges([removingBitmap(second.graph, { node: 'disk', name: 'b' })]);
    await second.close();
    await expectSound(path);
    expect(await storedBitmaps(path)).toMatchObject([{ name: 'a' }, { name: 'c' }]);
    const third = await openImage(path, OPTIONS);
    for (const name of ['a', 'c']) {
      await applyChanges([removingBitmap(third.graph, { node: 'disk', name })]);
    }
    await third.close();
    await expectSound(path);
    expect(await storedBitmaps(path)).toEqual([]);
  });

  it('follow the disk when it is resized; inconsistent ones bar that, as in QEMU', async () => {
    const { scope, dir, path } = await image();
    const { node, graph, backend, close } = await openImage(path, OPTIONS, RESIZER);
    await add(graph, 'b', { granularity: 512 });
    await node.write(10 * MIB, Buffer.alloc(4096, 1));
    await backend.root.truncate(100 * MIB, { exact: true, preallocation: 'off' });
    await node.write(99 * MIB, Buffer.alloc(4096, 1));
    const left = join(dir, 'left');
    await node.flush();
    await copyFile(path, left);
    const seen = ours(node);
    await close();
    await expectSound(path);
    expect(await peerBitmaps(scope, path)).toEqual(seen);
    // A bitmap that was never stored is gone after a crash.
    expect(await storedBitmaps(left)).toEqual([]);
    const killed = await openImage(path, OPTIONS);
    await killed.node.write(0, Buffer.alloc(512, 1));
    await killed.node.flush();
    await copyFile(path, left);
    await killed.close();
    const again = await openImage(left, OPTIONS, RESIZER);
    const resize = again.backend.root.truncate(10 * MIB, { exact: true, preallocation: 'off' });
    await expect(resize).rejects.toThrow("Bitmap 'b' is inconsistent and cannot be used");
    await again.close();
  });

  it('are handed over with the image, and taken back as the other has left them', async () => {
    const { scope, path } = await image();
    const { node, graph, backend, close } = await openImage(path, OPTIONS);
    await add(graph, 'b');
    await node.write(0, Buffer.alloc(512, 1));
    const seen = ours(node);
    const mayIdle = (parent: unknown): boolean => parent === backend;
    await setActive(graph, { active: false, mayIdle });
    await expectSound(path);
    expect(await peerBitmaps(scope, path)).toEqual(seen);
    const bar = applyChanges([removingBitmap(graph, { node: 'disk', name: 'b' })]);
    await expect(bar).rejects.toThrow('readonly');
    await qemuIo(path, ['write 1M 1M']);
    const theirs = await peerBitmaps(scope, path);
    await setActive(graph, { active: true, mayIdle });
    expect(ours(node)).toEqual(theirs);
    await node.write(5 * MIB, Buffer.alloc(512, 1));
    expect(node.bitmaps.get('b')?.count).toBe(64 * KIB * 18);
    await close();
    await expectSound(path);
    expect(await peerBitmaps(scope, path)).toMatchObject([{ name: 'b', count: 64 * KIB * 18 }]);
  });

  it('are stored when the image is reopened for reading, and go on when for writing', async () => {
    const { scope, path } = await image();
    const { node, graph, close } = await openImage(path, OPTIONS, READER);
    await add(graph, 'b');
    const file = [...node.children.values()][0]?.node.name;
    const options = { ...OPTIONS, file };
    await reopenNodes(graph, [{ ...options, 'read-only': true }]);
    expect(await storedBitmaps(path)).toMatchObject([{ name: 'b', flags: ['auto'] }]);
    expect(node.bitmaps.get('b')?.readOnly).toBe(true);
    await reopenNodes(graph, [options]);
    expect(node.bitmaps.get('b')?.readOnly).toBe(false);
    await close();
    await expectSound(path);
    expect(await peerBitmaps(scope, path)).toMatchObject([{ name: 'b', count: 0 }]);
  });

  it('are refused where they can not be stored, in the words of QEMU', async () => {
    const { path } = await image('compat=0.10');
    const { graph, close } = await openImage(path, OPTIONS);
    await expect(add(graph, 'b')).rejects.toThrow(
      "Can't make bitmap 'b' persistent in 'disk': Cannot store dirty bitmaps in qcow2 v2 files",
    );
    await close();
    const huge = await image('', 4 * 1024 * 1024 * MIB);
    const second = await openImage(huge.path, OPTIONS);
    await expect(add(second.graph, 'b', { granularity: 512 })).rejects.toThrow(
      "Can't make bitmap 'b' persistent in 'disk': Too much space will be occupied by the bitmap. Use larger granularity",
    );
    await expect(add(second.graph, 'x'.repeat(1024))).rejects.toThrow(
      'Name length exceeds maximum (1023 characters)',
    );
    await add(second.graph, 'x'.repeat(1023));
    await expect(add(second.graph, 'x'.repeat(1023))).rejects.toThrow('Bitmap already exists');
    await second.close();
    await expectSound(huge.path);
  });
});
