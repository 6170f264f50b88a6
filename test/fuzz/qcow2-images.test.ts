// SPDX-License-Identifier: MIT
/**
 * Images whose metadata was changed at random: they open or are refused, requests succeed or fail with a
 * reason, nothing hangs, grows without bound or throws what it should not. QCOW2_MUTANTS sets how many.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.js';
import { runPeer } from '../support/peers.js';
import { createImage, KIB, MIB, openImage, qemuIo } from '../support/qcow2.js';
import { Random } from '../support/qcow2-model.js';
import { testScope } from '../support/temp.js';
import { RESIZER } from '../unit/block/driver/test-graph.js';

const MUTANTS = Number(process.env.QCOW2_MUTANTS ?? 150);
const SEED = Number(process.env.QCOW2_MUTANT_SEED ?? 1);
/** Memory that one bad image may cost, bytes: caches and the largest tables that are allowed. */
const MEMORY_MAX = 256 * MIB;

/** Where an image has its structures: offset and length, bytes. */
function structures(image: Buffer, clusterSize: number): [number, number][] {
  const at = (offset: number): number =>
    Number(image.readBigUInt64BE(offset) & 0x00ff_ffff_ffff_fe00n);
  const l1 = at(40);
  const table = at(48);
  return [
    [0, 112],
    [112, 300],
    [l1, 64],
    [at(l1), clusterSize],
    [table, 16],
    [at(table), 512],
    [at(64), 200],
  ];
}

function mutate(image: Buffer, random: Random, clusterSize: number): void {
  const places = structures(image, clusterSize).filter(([offset]) => offset < image.byteLength);
  for (let count = random.pick([1, 1, 2, 4]); count > 0; count--) {
    const [offset, length] = random.pick(places);
    const place = Math.min(offset + random.below(length), image.byteLength - 8);
    switch (random.below(4)) {
      case 0:
        image.writeUInt8(random.below(256), place);
        break;
      case 1:
        image.writeUInt8((image[place] ?? 0) ^ (1 << random.below(8)), place);
        break;
      case 2: {
        // An entry that points at another structure.
        const [target] = random.pick(places);
        image.writeBigUInt64BE(BigInt(target) | (1n << 63n), place - (place % 8));
        break;
      }
      default:
        image.writeBigUInt64BE(
          random.pick([
            0n,
            1n,
            0xffff_ffff_ffff_ffffn,
            1n << 62n,
            1n << 55n,
            0x7fff_ffff_ffff_fe00n,
          ]),
          place - (place % 8),
        );
    }
  }
}

async function tolerated(work: () => unknown): Promise<void> {
  try {
    await work();
  } catch (error) {
    expect(error, String(error)).toBeInstanceOf(BlockError);
  }
}

async function use(path: string, random: Random): Promise<void> {
  const options = random.below(2) === 0 ? {} : { 'overlap-check': 'all' };
  const { node, close } = await openImage(path, { backing: null, ...options }, RESIZER);
  try {
    const size = Math.min(node.size, 4 * MIB);
    for (let at = 0; at + 64 * KIB <= size; at += 64 * KIB) {
      await tolerated(() => node.read(at, Buffer.alloc(64 * KIB)));
    }
    if (size > 0) await tolerated(() => node.blockStatus(0, size));
    for (let nth = 0; nth < 10 && size >= 64 * KIB; nth++) {
      const offset = random.below(size - 64 * KIB);
      await tolerated(() => node.write(offset, Buffer.alloc(1 + random.below(64 * KIB), nth)));
      if (nth % 3 === 0) await tolerated(() => node.writeZeroes(offset, 60 * KIB, 2));
      if (nth % 4 === 0) await tolerated(() => node.discard(offset, 64 * KIB));
      if (nth % 5 === 0) await tolerated(() => node.flush());
    }
    if (size > 0 && random.below(3) === 0)
      await tolerated(() => node.truncate(node.size + 1 * MIB));
  } finally {
    await close();
  }
}

describe('images changed at random', () => {
  for (const options of ['cluster_size=4k', 'cluster_size=16k,extended_l2=on,lazy_refcounts=on']) {
    it(`do no harm: ${options}`, async () => {
      const scope = testScope();
      const path = join(await scope.tempDir(), 'image');
      await createImage(path, 4 * MIB, options);
      await qemuIo(path, ['write -P 1 0 1M', 'write -z 1M 64k']);
      await runPeer('qemu-img', ['snapshot', '-c', 's', path]);
      await qemuIo(path, ['write -P 2 64k 100k']);
      const original = await readFile(path);
      const clusterSize = 2 ** original.readUInt32BE(20);
      const before = process.memoryUsage.rss();
      for (let nth = 0; nth < MUTANTS; nth++) {
        const random = new Random((SEED + nth) * 6151);
        const image = Buffer.from(original);
        mutate(image, random, clusterSize);
        await writeFile(path, image);
        await tolerated(() => use(path, random));
      }
      expect(process.memoryUsage.rss() - before).toBeLessThan(MEMORY_MAX);
    });
  }
});
