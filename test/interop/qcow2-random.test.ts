// SPDX-License-Identifier: MIT
/**
 * Random requests on images with random parameters: the content equals a model's, qemu-img finds nothing
 * wrong and reads the same. QCOW2_RANDOM_RUNS sets how many images, QCOW2_RANDOM_SEED the first seed.
 */
import { copyFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'vitest';
import { runPeer } from '../support/peers.js';
import {
  createImage,
  expectEqual,
  expectSound,
  KIB,
  MIB,
  openImage,
  qemuContent,
} from '../support/qcow2.js';
import { ImageModel, Random } from '../support/qcow2-model.js';
import { Scope, testScope } from '../support/temp.js';
import { RESIZER } from '../unit/block/driver/test-graph.js';

const RUNS = Number(process.env.QCOW2_RANDOM_RUNS ?? 24);
const FIRST_SEED = Number(process.env.QCOW2_RANDOM_SEED ?? 1);
const STEPS = 60;

interface Parameters {
  readonly clusterSize: number;
  readonly options: string;
  readonly backing: boolean;
  readonly version: 2 | 3;
  readonly size: number;
  /** Clusters may be shared with internal snapshots. */
  readonly snapshots: boolean;
  readonly compresses: boolean;
}

function parameters(random: Random): Parameters {
  const version = random.below(5) === 0 ? 2 : 3;
  const extended = version === 3 && random.below(4) === 0;
  const clusterSize = extended
    ? random.pick([16, 64, 256]) * KIB
    : random.pick([512, 1 * KIB, 4 * KIB, 64 * KIB, 64 * KIB, 2 * MIB]);
  const backing = random.below(3) === 0;
  const refcountBits = version === 2 ? 16 : random.pick([1, 2, 4, 8, 16, 32, 64]);
  const options = [`cluster_size=${clusterSize}`, `compat=${version === 2 ? '0.10' : '1.1'}`];
  if (version === 3) {
    options.push(`refcount_bits=${refcountBits}`);
    options.push(`lazy_refcounts=${random.pick(['on', 'off', 'off'])}`);
    if (extended) options.push('extended_l2=on');
  }
  if (!backing) options.push(`preallocation=${random.pick(['off', 'off', 'metadata', 'falloc'])}`);
  const size = random.pick([64 * KIB, 1 * MIB + 512, 3 * MIB, 9 * MIB - 1536]);

  const compresses = random.below(2) === 0;
  // Each compressed cluster counts, in every snapshot.
  const snapshots = version === 3 && refcountBits > (compresses ? 8 : 2);
  if (compresses && version === 3) {
    options.push(`compression_type=${random.pick(['zlib', 'zstd'])}`);
  }
  return { clusterSize, options: options.join(','), backing, version, size, snapshots, compresses };
}

/** Options of our node: small caches, so that tables come and go. */
function nodeOptions(random: Random, clusterSize: number): object {
  const slice = random.pick([512, Math.min(clusterSize, 4 * KIB), clusterSize]);
  return {
    ...(random.below(2) === 0 ? { 'l2-cache-entry-size': slice, 'l2-cache-size': 2 * slice } : {}),
    ...(random.below(3) === 0 ? { 'discard-no-unref': true } : {}),
    ...(random.below(3) === 0 ? { 'overlap-check': 'all' } : {}),
    ...(random.below(4) === 0 ? { 'pass-discard-request': false } : {}),
  };
}

async function runOne(seed: number, keep: string | undefined): Promise<void> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const random = new Random(seed * 7919);
  const { clusterSize, options, backing, version, size, snapshots, compresses } =
    parameters(random);
  const moments: { name: string; content: Buffer }[] = [];
  const path = join(dir, 'image');
  let content: Buffer = Buffer.alloc(size);
  if (backing) {
    const below = random.pick([size, Math.floor(size / 1024) * 512, size + 64 * KIB]);
    const base = Buffer.alloc(below, 0xb5);
    await writeFile(join(dir, 'base'), base);
    await createImage(path, size, options, ['-b', 'base', '-F', 'raw']);
    base.copy(content);
  } else await createImage(path, size, options);
  const resizes = !(backing && version === 2);
  const model = new ImageModel({
    random,
    content,
    clusterSize,
    discards: !(backing && version === 2),
    compresses,
  });
  for (let round = 0; round < 3; round++) {
    const inner = new Scope();
    const { node, close } = await openImage(path, nodeOptions(random, clusterSize), RESIZER);
    inner.defer(close);
    try {
      for (let step = 0; step < STEPS; step++) {
        await model.step(node);
        if (random.below(12) === 0) await node.flush();
        if (resizes && random.below(25) === 0) await resize(model, node, random);
      }
      await model.compare(node);
    } finally {
      await inner.close();
    }
    if (keep !== undefined) await copyFile(path, `${keep}.${round}`);
    await expectSound(path);
    content = await qemuContent(path, join(dir, 'raw'));
    expectEqual(content, model.content);
    if (!snapshots || random.below(3) > 0) continue;
    await runPeer('qemu-img', ['snapshot', '-c', `s${round}`, path]);
    moments.push({ name: `s${round}`, content });
  }
  for (const { name, content: before } of moments) {
    await runPeer('qemu-img', ['snapshot', '-a', name, path]);
    const then = await qemuContent(path, join(dir, 'raw'));
    expectEqual(then.subarray(0, before.byteLength), before.subarray(0, then.byteLength));
  }
  await expectSound(path);
}

async function resize(
  model: ImageModel,
  node: Parameters_<typeof openImage>,
  random: Random,
): Promise<void> {
  const now = model.content.byteLength;
  const size = Math.max(now + (random.below(600) - 300) * 512, 16 * KIB);
  await node.truncate(size);
  model.resize(size);
}
type Parameters_<T extends (...args: never[]) => Promise<{ node: unknown }>> = Awaited<
  ReturnType<T>
>['node'];

describe('random requests', () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
    it(`leave image ${seed} sound and equal to the model`, async () => {
      try {
        await runOne(seed, process.env.QCOW2_RANDOM_KEEP);
      } catch (error) {
        const random = new Random(seed * 7919);
        throw new Error(`seed ${seed}: ${JSON.stringify(parameters(random))}`, { cause: error });
      }
    });
  }
});
