// SPDX-License-Identifier: MIT
/** Compressed clusters, ours and QEMU's, read by the other and checked by qemu-img. */
import { open, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { deflateRawSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { REQ_WRITE_COMPRESSED, STATUS_COMPRESSED } from '../../src/block/block-driver.js';
import { compressDefinition } from '../../src/block/filter/compress.js';
import { loadZstd } from '../../src/sys/zstd.js';
import { runPeer } from '../support/peers.js';
import {
  contentOf,
  createImage,
  expectEqual,
  expectSound,
  KIB,
  MIB,
  openImage,
  pattern,
  qemuContent,
} from '../support/qcow2.js';
import { ImageModel, Random } from '../support/qcow2-model.js';
import { testScope } from '../support/temp.js';
import { localGraph, READER, useNode, WRITER } from '../unit/block/driver/test-graph.js';

const CLUSTER = 64 * KIB;

/** Text that shrinks, but for every fifth 16 KiB, which do not. */
function mixed(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  let x = 12345;
  for (let at = 0; at < length; at++) {
    const noise = Math.floor(at / (16 * KIB)) % 5 === 4;
    x = (Math.imul(x, 1103515245) + 12345) >>> 0;
    bytes[at] = noise ? x >>> 23 : 97 + ((at >> 3) % 23) + ((x >>> 30) & 1);
  }
  return bytes;
}

const SIZES = [512, 1 * KIB, 4 * KIB, 64 * KIB, 256 * KIB, 2 * MIB];
const TYPES = ['zlib', 'zstd'] as const;

describe('compressed clusters', () => {
  for (const type of TYPES) {
    for (const clusterSize of SIZES) {
      const name = `${type}, clusters of ${clusterSize} bytes`;
      const options = `cluster_size=${clusterSize},compression_type=${type}`;

      it(`of qemu-img are read: ${name}`, async () => {
        const dir = await testScope().tempDir();
        const path = join(dir, 'image');
        const content = mixed(4 * MIB + 1536);
        await writeFile(join(dir, 'raw'), content);
        const args = ['convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', options];
        await runPeer('qemu-img', [...args, join(dir, 'raw'), path]);
        const { node, close } = await openImage(path);
        testScope().defer(close);
        const { flags } = await node.blockStatus(0, node.size);
        expect(flags & STATUS_COMPRESSED).toBe(STATUS_COMPRESSED);
        expectEqual(await contentOf(node, 100_000), content);
      });

      it(`of ours are read by qemu-img, and sound: ${name}`, async () => {
        const dir = await testScope().tempDir();
        const path = join(dir, 'image');
        const content = mixed(4 * MIB + 1536);
        await createImage(path, content.byteLength, options);
        const { node, close } = await openImage(path);
        for (let at = 0; at < content.byteLength; at += 2 * MIB) {
          await node.write(at, content.subarray(at, at + 2 * MIB), REQ_WRITE_COMPRESSED);
        }
        expectEqual(await contentOf(node, 100_000), content);
        await close();
        await expectSound(path);
        expectEqual(await qemuContent(path, join(dir, 'out')), content);
        const { stdout } = await runPeer('qemu-img', ['check', '-f', 'qcow2', path]);
        expect(stdout).toMatch(/[1-9][\d.]*% compressed clusters/);
      });
    }
  }
});

/** An image with a compressed cluster and a plain one; where in the file the first one's data and entry are. */
async function oneCompressed(type: (typeof TYPES)[number]) {
  const dir = await testScope().tempDir();
  const path = join(dir, 'image');
  await createImage(path, 1 * MIB, `compression_type=${type}`);
  const { node, close } = await openImage(path);
  await node.write(0, mixed(CLUSTER), REQ_WRITE_COMPRESSED);
  await node.write(CLUSTER, Buffer.alloc(CLUSTER, 7));
  await close();
  const content = await readFile(path);
  const l1 = Number(content.readBigUInt64BE(40));
  const entry = Number(content.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
  return { path, entry, data: content.readUInt32BE(entry + 4) };
}

async function patch(path: string, offset: number, bytes: Buffer): Promise<void> {
  const file = await open(path, 'r+');
  await file.write(bytes, 0, bytes.byteLength, offset);
  await file.close();
}

/** A stream that gives so many bytes. */
async function streamOf(type: (typeof TYPES)[number], bytes: Buffer): Promise<Buffer> {
  if (type === 'zlib') return deflateRawSync(bytes, { windowBits: 12 });
  const target = Buffer.alloc(bytes.byteLength);
  return target.subarray(0, await loadZstd().compress(bytes, target));
}

/** What is written over the cluster's data, and its entry. */
type Damage = [stream?: Buffer | undefined, entry?: Buffer];

describe.each(TYPES)('hostile %s clusters', (type) => {
  const COMPRESSED = 1n << 62n;
  /** An entry for data at `offset` with so many sectors after the first. */
  const entryFor = (offset: number, sectors: number): Buffer => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64BE(COMPRESSED | (BigInt(sectors) << 54n) | BigInt(offset));
    return bytes;
  };

  const cases: [string, (image: { data: number; size: number }) => Promise<Damage>][] = [
    ['rubbish', async () => [pattern(4 * KIB, 3)]],
    ['nothing but zeroes', async () => [Buffer.alloc(4 * KIB)]],
    ['a stream that is cut off', async ({ data }) => [undefined, entryFor(data, 0)]],
    ['a stream that gives too little', async () => [await streamOf(type, mixed(CLUSTER / 2))]],
    [
      'a stream that gives a thousand times too much',
      async () => [await streamOf(type, Buffer.alloc(64 * MIB)), entryFor(CLUSTER * 8, 255)],
    ],
    [
      'data past the end of the file',
      async ({ size }) => [undefined, entryFor(size + 1 * MIB, 255)],
    ],
    ['data at the end of what an entry can say', async () => [undefined, entryFor(2 ** 53, 255)]],
  ];
  for (const [what, make] of cases) {
    it(`are an error of the read, no more: ${what}`, async () => {
      const { path, entry, data } = await oneCompressed(type);
      const { size } = await stat(path);
      const [stream, words] = await make({ data, size });
      if (words !== undefined) await patch(path, entry, words);
      const at = words === undefined ? data : Number(words.readBigUInt64BE() & ((1n << 54n) - 1n));
      if (stream !== undefined) await patch(path, at, stream);
      const { node, close } = await openImage(path, { 'read-only': true }, READER);
      const before = process.memoryUsage.rss();
      for (let nth = 0; nth < 20; nth++) {
        const reading = (async () => node.read(nth * 512, Buffer.alloc(512)))();
        await expect(reading).rejects.toThrow('A compressed cluster can not be decompressed');
      }
      expect(process.memoryUsage.rss() - before).toBeLessThan(100 * MIB);
      const other = Buffer.alloc(CLUSTER);
      await node.read(CLUSTER, other);
      expectEqual(other, Buffer.alloc(CLUSTER, 7));
      await close();
    });
  }
});

describe('compressed writes', () => {
  async function image(size: number, options = ''): Promise<{ path: string; raw: string }> {
    const dir = await testScope().tempDir();
    const path = join(dir, 'image');
    await createImage(path, size, options);
    return { path, raw: join(dir, 'raw') };
  }

  it('replace what is there, plain, compressed or shared with a snapshot', async () => {
    const { path, raw } = await image(2 * MIB);
    const content = Buffer.alloc(2 * MIB);
    const round = async (seed: number): Promise<void> => {
      const { node, close } = await openImage(path);
      const bytes = mixed(1 * MIB).map((byte) => byte ^ seed);
      Buffer.from(bytes).copy(content, 512 * KIB);
      await node.write(512 * KIB, Buffer.from(bytes), REQ_WRITE_COMPRESSED);
      await node.write(700 * KIB, Buffer.alloc(70_000, seed));
      content.fill(seed, 700 * KIB, 700 * KIB + 70_000);
      await node.flush();
      await node.discard(1 * MIB, CLUSTER);
      content.fill(0, 1 * MIB, 1 * MIB + CLUSTER);
      await close();
      await expectSound(path);
      expectEqual(await qemuContent(path, raw), content);
    };
    await round(1);
    await round(2);
    const before = Buffer.from(content);
    await runPeer('qemu-img', ['snapshot', '-c', 's', path]);
    await round(3);
    await runPeer('qemu-img', ['snapshot', '-a', 's', path]);
    expectEqual(await qemuContent(path, raw), before);
    await runPeer('qemu-img', ['snapshot', '-d', 's', path]);
    await expectSound(path);
  });

  it('take no more room when they are repeated', async () => {
    const { path } = await image(4 * MIB);
    const { node, close } = await openImage(path);
    const sizes: number[] = [];
    for (let nth = 0; nth < 6; nth++) {
      await node.write(0, mixed(4 * MIB), REQ_WRITE_COMPRESSED);
      await node.flush();
      sizes.push((await stat(path)).size);
    }
    await close();
    await expectSound(path);
    expect(sizes[5]).toBeLessThan((sizes[2] ?? 0) + 4 * CLUSTER);
  });

  it.each([1, 2, 4])('keep to counts of %i bits', async (bits) => {
    const { path, raw } = await image(4 * MIB, `refcount_bits=${bits}`);
    const { node, close } = await openImage(path);
    const content = Buffer.alloc(4 * MIB, 'nothing new ');
    await node.write(0, content, REQ_WRITE_COMPRESSED);
    await close();
    await expectSound(path);
    expectEqual(await qemuContent(path, raw), content);
  });

  it('are refused where they are no whole clusters', async () => {
    const { path } = await image(1 * MIB + 512);
    const { node, close } = await openImage(path);
    for (const [offset, length] of [
      [512, CLUSTER],
      [0, 512],
      [1 * MIB - CLUSTER, CLUSTER + 256],
    ] as const) {
      const writing = (async () =>
        node.write(offset, Buffer.alloc(length, 1), REQ_WRITE_COMPRESSED))();
      await expect(writing).rejects.toThrow('Only whole clusters can be compressed');
    }
    await node.write(1 * MIB, Buffer.alloc(512, 1), REQ_WRITE_COMPRESSED);
    await close();
    await expectSound(path);
  });

  it('are refused with an external data file', async () => {
    const dir = await testScope().tempDir();
    const path = join(dir, 'image');
    await createImage(path, 1 * MIB, `data_file=${join(dir, 'data')}`);
    const { node, close } = await openImage(path, {
      'data-file': { driver: 'file', filename: join(dir, 'data') },
    });
    expect(node.limits.compressedUnit).toBe(0);
    const writing = (async () => node.write(0, Buffer.alloc(CLUSTER, 1), REQ_WRITE_COMPRESSED))();
    await expect(writing).rejects.toThrow('has no compressed clusters');
    await close();
  });

  it('go into images with subclusters', async () => {
    const { path, raw } = await image(2 * MIB, 'extended_l2=on,compression_type=zstd');
    const { node, close } = await openImage(path);
    const content = mixed(2 * MIB);
    await node.write(0, Buffer.alloc(2 * MIB, 9));
    await node.write(0, content, REQ_WRITE_COMPRESSED);
    await node.write(100_000, Buffer.alloc(3000, 5));
    content.fill(5, 100_000, 103_000);
    await close();
    await expectSound(path);
    expectEqual(await qemuContent(path, raw), content);
  });
});

describe('the filter compress', () => {
  const graphWithFilter = () => {
    const graph = localGraph();
    graph.drivers.register(compressDefinition);
    return graph;
  };

  it.each([1, 2, 3, 4])(
    'compresses any writes, and keeps what is around them: %i',
    async (seed) => {
      const dir = await testScope().tempDir();
      const path = join(dir, 'image');
      const random = new Random(seed * 977);
      const clusterSize = random.pick([512, 4 * KIB, CLUSTER, 2 * MIB]);
      const size = 3 * MIB + 1024;
      await createImage(path, size, `cluster_size=${clusterSize}`);
      const file = { driver: 'qcow2', discard: 'unmap', file: { driver: 'file', filename: path } };
      const options = { driver: 'compress', discard: 'unmap', file };
      const { node, close } = await useNode(options, WRITER, graphWithFilter());
      const content = Buffer.alloc(size);
      const model = new ImageModel({ random, content, clusterSize, discards: true });
      for (let step = 0; step < 40; step++) await model.step(node);
      await node.write(0, Buffer.alloc(5000, 'once more '));
      Buffer.alloc(5000, 'once more ').copy(model.content);
      await model.compare(node);
      await close();
      await expectSound(path);
      expectEqual(await qemuContent(path, join(dir, 'raw')), model.content);
      const { stdout } = await runPeer('qemu-img', ['check', '-f', 'qcow2', path]);
      expect(stdout).toMatch(/[1-9][\d.]*% compressed clusters/);
    },
  );

  it('is refused above what does not compress', async () => {
    const path = join(await testScope().tempDir(), 'raw');
    await writeFile(path, Buffer.alloc(1 * MIB));
    const file = { driver: 'raw', file: { driver: 'file', filename: path } };
    await expect(useNode({ driver: 'compress', file }, WRITER, graphWithFilter())).rejects.toThrow(
      'Compression is not supported for underlying format: raw',
    );
  });
});
