// SPDX-License-Identifier: MIT
/** Compressed clusters, ours and QEMU's, read by the other and checked by qemu-img. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { REQ_WRITE_COMPRESSED, STATUS_COMPRESSED } from '../../src/block/block-driver.js';
import { runPeer } from '../support/peers.js';
import {
  contentOf,
  createImage,
  expectEqual,
  expectSound,
  KIB,
  MIB,
  openImage,
  qemuContent,
} from '../support/qcow2.js';
import { testScope } from '../support/temp.js';

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
