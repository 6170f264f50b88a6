// SPDX-License-Identifier: MIT
/** Reads whose bytes are taken from their file: who hands out what, and that they count as reads. */
import { copyFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { isPromise } from '../../../src/base/maybe-promise.js';
import { drained } from '../../../src/block/drain.js';
import type { FileRange } from '../../../src/block/file-range.js';
import { expectSame, pattern, rangeOf } from '../../suite/block-driver.suite.js';
import { runPeer } from '../../support/peers.js';
import { testScope } from '../../support/temp.js';
import { type UsedNode, useNode } from './driver/test-graph.js';

const KIB = 1024;
const SIZE = 1024 * KIB;
const content = pattern(1, SIZE);

let folder = '';
let plain = '';
let image = '';
let defer: (undo: () => Promise<void>) => void;

beforeEach(async () => {
  const scope = testScope();
  defer = (undo) => scope.defer(undo);
  folder = await scope.tempDir();
  plain = join(folder, 'plain');
  image = join(folder, 'image.qcow2');
  await writeFile(plain, content);
});

async function used(options: Record<string, unknown>): Promise<UsedNode> {
  const made = await useNode(options);
  defer(made.close);
  return made;
}

const file = (filename: string, more = {}): Record<string, unknown> => ({
  driver: 'file',
  filename,
  ...more,
});

async function qcow2(more: readonly string[] = []): Promise<void> {
  await runPeer('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...more, plain, image]);
}

async function loaded(options: Record<string, unknown> = {}): Promise<UsedNode> {
  const made = await used({ driver: 'qcow2', file: file(image), ...options });
  await made.node.read(0, Buffer.alloc(1));
  return made;
}

describe('a range of a file', () => {
  it('is all that was asked for in a regular file', async () => {
    const { backend } = await used(file(plain));
    expectSame(await rangeOf(backend, 3, 300 * KIB), content.subarray(3, 3 + 300 * KIB));
  });

  it('is not handed out past the page cache', async () => {
    const { backend } = await used(file(plain, { cache: { direct: true } }));
    expect(await rangeOf(backend, 0, 4 * KIB)).toHaveLength(0);
  });

  it('is not handed out past the end', async () => {
    const { backend } = await used(file(plain));
    expect(await rangeOf(backend, SIZE - 1, 2)).toHaveLength(0);
    expect(await rangeOf(backend, -1, 2)).toHaveLength(0);
    expect(await rangeOf(backend, SIZE, 0)).toHaveLength(0);
  });

  it('lies behind the offset of raw', async () => {
    const { backend } = await used({ driver: 'raw', offset: 4096, file: file(plain) });
    expectSame(await rangeOf(backend, 5, 64 * KIB), content.subarray(4101, 4101 + 64 * KIB));
  });

  it('is a run of clusters of a qcow2 image', async () => {
    await qcow2();
    const { backend } = await loaded();
    const bytes = await rangeOf(backend, 7 * KIB, 400 * KIB);
    expectSame(bytes, content.subarray(7 * KIB, 407 * KIB));
  });

  it('is not handed out before the L2 table is in memory', async () => {
    await qcow2();
    const { backend } = await used({ driver: 'qcow2', file: file(image) });
    expect(await rangeOf(backend, 0, 64 * KIB)).toHaveLength(0);
  });

  it('lies in the external data file of a qcow2 image', async () => {
    const data = join(folder, 'data');
    await qcow2(['-o', `data_file=${data}`]);
    const { backend } = await loaded({ 'data-file': file(data) });
    expectSame(await rangeOf(backend, 64 * KIB, 128 * KIB), content.subarray(64 * KIB, 192 * KIB));
  });

  it('is not handed out of compressed or encrypted images', async () => {
    await qcow2(['-c']);
    const { backend } = await loaded();
    expect(await rangeOf(backend, 0, 64 * KIB)).toHaveLength(0);
  });

  it('lies in the layer of a chain that has the data, as far as that is one', async () => {
    const base = join(folder, 'base');
    await copyFile(plain, base);
    await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', image]);
    const made = await loaded({ backing: file(base) });
    const written = Buffer.alloc(64 * KIB, 0xab);
    await made.node.write(128 * KIB, written);
    const below = await rangeOf(made.backend, KIB, SIZE - KIB);
    expectSame(below, content.subarray(KIB, 128 * KIB));
    expectSame(await rangeOf(made.backend, 128 * KIB, 128 * KIB), written);
  });

  it('counts as a read of what was dealt with, at each node that it passes', async () => {
    await qcow2();
    const { node, backend } = await loaded();
    const below = node.children.get('file')?.node;
    const before = [node.stats.read.bytes, below?.stats.read.bytes ?? 0];
    expect(backend.readRange(0, 64 * KIB, () => 10 * KIB)).toBe(10 * KIB);
    expect(await backend.readRange(0, 64 * KIB, () => Promise.resolve(KIB))).toBe(KIB);
    expect(backend.readRange(0, 64 * KIB, () => 0)).toBe(0);
    const after = [node.stats.read.bytes, below?.stats.read.bytes ?? 0];
    expect(after.map((bytes, index) => bytes - (before[index] ?? 0))).toEqual([11 * KIB, 11 * KIB]);
  });

  it('is in flight until what was made of it has ended, well or not', async () => {
    await qcow2();
    const { node, backend } = await loaded();
    let fail = (_error: Error): void => {};
    let seen: FileRange | undefined;
    const pending = backend.readRange(0, 64 * KIB, (range) => {
      seen = range;
      return new Promise((_resolve, reject) => {
        fail = reject;
      });
    });
    expect(seen).toMatchObject({ length: 64 * KIB });
    let isDrained = false;
    const drain = drained([node], async () => {
      isDrained = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    expect([isPromise(pending), isDrained]).toEqual([true, false]);
    fail(new Error('given up'));
    await expect(pending).rejects.toThrow('given up');
    await drain;
    expect(isDrained).toBe(true);
    expect(node.inFlight.count).toBe(0);
  });

  it('is not handed out while requests are held back', async () => {
    const { backend } = await used(file(plain));
    backend.hold();
    expect(await rangeOf(backend, 0, KIB)).toHaveLength(0);
    backend.release();
  });
});
