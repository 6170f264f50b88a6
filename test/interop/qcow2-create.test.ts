// SPDX-License-Identifier: MIT
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { QCOW2_EXT_BACKING_FORMAT } from '../../protocol/qcow2/extensions.js';
import { createQcow2, type Qcow2CreateOptions } from '../../src/block/driver/qcow2/create.js';
import { HeaderState } from '../../src/block/driver/qcow2/header-state.js';
import { readHead } from '../../src/block/driver/qcow2/open.js';
import { runPeerJson } from '../support/peers.js';
import { expectSound, KIB, MIB, openImage, qemuContent, qemuIo } from '../support/qcow2.js';
import { testScope } from '../support/temp.js';
import { RESIZER, useNode } from '../unit/block/driver/test-graph.js';

interface ImageInfo {
  readonly 'virtual-size': number;
  readonly 'cluster-size': number;
  readonly 'actual-size': number;
  readonly 'backing-filename'?: string;
  readonly 'backing-filename-format'?: string;
  readonly 'format-specific': { readonly data: Record<string, unknown> };
}

async function make(options: Qcow2CreateOptions): Promise<{ path: string; dir: string }> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 'image');
  await writeFile(path, 'what was there before');
  const file = await useNode({ driver: 'file', filename: path }, RESIZER);
  try {
    await createQcow2(file.node, options);
  } finally {
    await file.close();
  }
  return { path, dir };
}

const info = (path: string): Promise<ImageInfo> =>
  runPeerJson('qemu-img', ['info', '-f', 'qcow2', '--output=json', path]);

describe('new images, as qemu-img sees them', () => {
  it('have the defaults of qemu-img', async () => {
    const { path } = await make({ size: 10 * MIB });
    await expectSound(path);
    expect(await info(path)).toMatchObject({
      'virtual-size': 10 * MIB,
      'cluster-size': 64 * KIB,
      'format-specific': {
        data: {
          compat: '1.1',
          'compression-type': 'zlib',
          'lazy-refcounts': false,
          'refcount-bits': 16,
          corrupt: false,
          'extended-l2': false,
        },
      },
    });
  });

  for (const clusterSize of [512, 4 * KIB, 2 * MIB]) {
    for (const refcountBits of [1, 8, 64]) {
      it(`with clusters of ${clusterSize} and counts of ${refcountBits} bits`, async () => {
        const { path, dir } = await make({ size: 5 * MIB, clusterSize, refcountBits });
        await qemuIo(path, ['write -P 3 0 3M', 'write -P 4 4M 1000']);
        await expectSound(path);
        expect(await info(path)).toMatchObject({
          'cluster-size': clusterSize,
          'format-specific': { data: { 'refcount-bits': refcountBits } },
        });
        const content = await qemuContent(path, join(dir, 'raw'));
        expect(content.subarray(0, 3 * MIB).every((byte) => byte === 3)).toBe(true);
      });
    }
  }

  it('in version 2', async () => {
    const { path } = await make({ size: 1 * MIB, version: 'v2' });
    await expectSound(path);
    expect((await info(path))['format-specific'].data.compat).toBe('0.10');
  });

  it('with lazy refcounts, extended L2 entries and zstd', async () => {
    const { path } = await make({
      size: 1 * MIB,
      lazyRefcounts: true,
      extendedL2: true,
      compressionType: 'zstd',
    });
    await expectSound(path);
    expect((await info(path))['format-specific'].data).toMatchObject({
      'lazy-refcounts': true,
      'extended-l2': true,
      'compression-type': 'zstd',
    });
  });

  it('with a backing file and its format', async () => {
    const { path, dir } = await make({
      size: 1 * MIB,
      backingFile: 'base',
      backingFormat: 'raw',
    });
    await writeFile(join(dir, 'base'), Buffer.alloc(1 * MIB, 9));
    expect(await info(path)).toMatchObject({
      'backing-filename': 'base',
      'backing-filename-format': 'raw',
    });
    const content = await qemuContent(path, join(dir, 'raw'));
    expect(content.equals(Buffer.alloc(1 * MIB, 9))).toBe(true);
  });

  for (const preallocation of ['metadata', 'falloc', 'full'] as const) {
    it(`with all clusters got ready: ${preallocation}`, async () => {
      const size = 9 * MIB;
      const { path, dir } = await make({ size, preallocation });
      await expectSound(path);
      expect((await qemuContent(path, join(dir, 'raw'))).equals(Buffer.alloc(size))).toBe(true);
      const map = await runPeerJson<{ data: boolean; length: number }[]>('qemu-img', [
        ...['map', '-f', 'qcow2', '--output=json', path],
      ]);
      expect(map.every((extent) => 'offset' in extent)).toBe(true);
      const taken = (await info(path))['actual-size'];
      if (preallocation === 'metadata') expect(taken).toBeLessThan(2 * MIB);
      else expect(taken).toBeGreaterThanOrEqual(size);
    });
  }

  it('are given up when they are called off', async () => {
    const scope = testScope();
    const path = join(await scope.tempDir(), 'image');
    await writeFile(path, '');
    const file = await useNode({ driver: 'file', filename: path }, RESIZER);
    scope.defer(file.close);
    const reason = new Error('called off');
    const options = {
      size: 1024 * MIB,
      preallocation: 'full',
      signal: AbortSignal.abort(reason),
    } as const;
    await expect(createQcow2(file.node, options)).rejects.toThrow('called off');
    expect(file.node.size).toBeLessThan(2 * MIB);
  });

  for (const [clusterSize, size] of [
    [512, 20 * 1024 * MIB],
    [1024, 200 * 1024 * MIB],
  ] as const) {
    it(`with a table longer than a block of counts covers: clusters of ${clusterSize}`, async () => {
      const { path } = await make({ size: 10 * MIB, clusterSize, refcountBits: 64 });
      const small = await openImage(path, {}, RESIZER);
      await small.node.write(3 * MIB, Buffer.alloc(5 * MIB, 7));
      await small.node.truncate(size, { exact: true, preallocation: 'off' });
      await small.node.write(size - MIB, Buffer.alloc(MIB, 8));
      await small.close();
      await expectSound(path);
      await qemuIo(path, ['read -P 7 3M 5M', `read -P 8 ${size - MIB} 1M`]);
      await expectSound((await make({ size, clusterSize })).path);
    });
  }

  it('that are large cost little', async () => {
    const { path } = await make({ size: 64 * 1024 * 1024 * MIB });
    await expectSound(path);
    const { node, close } = await openImage(path);
    await node.write(63 * 1024 * 1024 * MIB, Buffer.alloc(512, 1));
    await close();
    await expectSound(path);
    expect((await info(path))['actual-size']).toBeLessThan(3 * MIB);
  });
});

describe('external data files', () => {
  for (const dataFileRaw of [false, true]) {
    it(`hold the guest's data, ${dataFileRaw ? 'as a raw image' : 'mapped'}`, async () => {
      const scope = testScope();
      const dir = await scope.tempDir();
      const path = join(dir, 'image');
      const data = join(dir, 'data');
      await writeFile(path, '');
      await writeFile(data, '');
      const file = await useNode({ driver: 'file', filename: path }, RESIZER);
      const dataFile = await useNode({ driver: 'file', filename: data }, RESIZER);
      await createQcow2(file.node, {
        size: 3 * MIB,
        dataFile: dataFile.node,
        dataFileName: data,
        dataFileRaw,
      });
      await file.close();
      await dataFile.close();
      const image = await openImage(path, {}, RESIZER);
      await image.node.write(1 * MIB - 100, Buffer.alloc(70_000, 0x44));
      await image.node.write(0, Buffer.alloc(64 * KIB, 0x45));
      await image.node.writeZeroes(10 * KIB, 20 * KIB);
      await image.node.discard(0, 64 * KIB);
      await image.node.write(2 * MIB, Buffer.alloc(128 * KIB, 0x46));
      await image.node.writeZeroes(2 * MIB, 64 * KIB, 2);
      await image.close();
      await expectSound(path);
      const expected = Buffer.alloc(3 * MIB);
      expected.fill(0x44, 1 * MIB - 100, 1 * MIB - 100 + 70_000);
      expected.fill(0x46, 2 * MIB + 64 * KIB, 2 * MIB + 128 * KIB);
      expect((await qemuContent(path, join(dir, 'raw'))).equals(expected)).toBe(true);
      if (!dataFileRaw) return;
      const raw = await useNode({ driver: 'file', filename: data });
      const bytes = Buffer.alloc(3 * MIB);
      await raw.node.read(0, bytes);
      await raw.close();
      expect(bytes.equals(expected)).toBe(true);
    });
  }
});

describe('a header written anew', () => {
  it('has another backing file, and keeps what else is in it', async () => {
    const { path } = await make({ size: 1 * MIB, lazyRefcounts: true });
    const file = await useNode({ driver: 'file', filename: path }, RESIZER);
    const { content } = await readHead(file.node);
    const header = new HeaderState(content, () => file.node);
    const unknown = { type: 0x1234_5678, data: Buffer.from('kept') };
    const format = { type: QCOW2_EXT_BACKING_FORMAT, data: Buffer.from('raw') };
    await header.rewrite({
      backingName: 'other',
      extensions: [unknown, format, ...content.extensions],
    });
    const { content: after } = await readHead(file.node);
    expect(after).toEqual(header.content);
    await file.close();
    expect(after.extensions.map(({ type }) => type)).toContain(unknown.type);
    expect(await info(path)).toMatchObject({
      'backing-filename': 'other',
      'backing-filename-format': 'raw',
      'format-specific': { data: { 'lazy-refcounts': true } },
    });
    const tooLong = { type: 1, data: Buffer.alloc(64 * KIB) };
    await expect(header.rewrite({ extensions: [tooLong] })).rejects.toThrow('does not fit');
  });
});

describe('createQcow2 refuses', () => {
  const refuses = (options: Omit<Qcow2CreateOptions, 'size'>, message: string): void => {
    it(message, async () => {
      await expect(make({ size: 1 * MIB, ...options })).rejects.toThrow(message);
    });
  };
  refuses({ clusterSize: 3000 }, 'Cluster size must be a power of two between 512 and 2048k');
  refuses({ refcountBits: 3 }, 'Refcount width must be a power of two');
  refuses({ version: 'v2', lazyRefcounts: true }, 'Lazy refcounts only supported with');
  refuses({ version: 'v2', refcountBits: 8 }, 'Different refcount widths than 16 bits require');
  refuses({ backingFormat: 'raw' }, 'Backing format cannot be used without backing file');
  refuses({ dataFileRaw: true }, 'data-file-raw requires data-file');
});
