// SPDX-License-Identifier: MIT
/**
 * Random requests on encrypted images: the content equals a model's, qemu-img finds nothing wrong and
 * decrypts the same; and a power loss leaves what was flushed. QCOW2_CRYPT_RUNS sets how many images of
 * each kind, QCOW2_CRYPT_SEED the first seed.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  expectSound,
  FORMATS,
  type Format,
  imageOpts,
  ours,
  qemuContent,
  SECRET,
  weCreate,
} from '../support/encrypted-qcow2.js';
import { PASSPHRASE, secretsWith } from '../support/luks.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { VolatileFile } from '../support/power-loss.js';
import { expectEqual, KIB, MIB } from '../support/qcow2.js';
import { ImageModel, Random } from '../support/qcow2-model.js';
import { testScope } from '../support/temp.js';
import { localGraph, useNode } from '../unit/block/driver/test-graph.js';

const RUNS = Number(process.env.QCOW2_CRYPT_RUNS ?? 6);
const FIRST_SEED = Number(process.env.QCOW2_CRYPT_SEED ?? 1);
const STEPS = 40;
const SEEDS = Array.from({ length: RUNS }, (_, index) => FIRST_SEED + index);

function layout(random: Random, format: Format) {
  const version = random.below(5) === 0 ? ('v2' as const) : ('v3' as const);
  const extendedL2 = version === 'v3' && random.below(3) === 0;
  const clusterSize = extendedL2
    ? random.pick([16, 64]) * KIB
    : random.pick([format === 'aes' ? 512 : 2 * KIB, 4 * KIB, 64 * KIB, 64 * KIB]);
  const lazyRefcounts = version === 'v3' && random.below(3) === 0;
  return { version, extendedL2, clusterSize, lazyRefcounts };
}

async function randomRequests(format: Format, seed: number): Promise<void> {
  const random = new Random(seed * 7919);
  const dir = await testScope().tempDir();
  const path = join(dir, 'image');
  const given = layout(random, format);
  const { version, clusterSize } = given;
  const size = random.pick([64 * KIB, 1 * MIB + 512, 3 * MIB]);
  const backing = version === 'v3' && random.below(2) === 0;
  const preallocation = backing ? 'off' : random.pick(['off', 'metadata', 'falloc'] as const);
  const content = Buffer.alloc(size);
  if (backing) await writeFile(join(dir, 'base'), content.fill(0xb5));
  const below = backing ? { backingFile: 'base', backingFormat: 'raw' } : {};
  await weCreate(path, format, { ...given, ...below, size, preallocation });
  const model = new ImageModel({ random, content, clusterSize, discards: true });
  const moments: { readonly name: string; readonly content: Buffer }[] = [];
  for (let round = 0; round < 2; round++) {
    const { node, close } = await ours(path);
    try {
      for (let step = 0; step < STEPS; step++) {
        await model.step(node);
        if (random.below(12) === 0) await node.flush();
        if (random.below(20) === 0) await resize(model, node, random);
      }
      await model.compare(node);
    } finally {
      await close();
    }
    await expectSound(path);
    const now = await qemuContent(path);
    expectEqual(now, model.content);
    if (version === 'v2') continue;
    await qemuSnapshot(path, '-c', `s${round}`);
    moments.push({ name: `s${round}`, content: now });
  }
  for (const { name, content: then } of moments) {
    const { node, close } = await ours(path);
    try {
      await node.driver.snapshots?.apply(name);
    } finally {
      await close();
    }
    await expectSound(path);
    expectEqual(await qemuContent(path), then);
  }
}

async function qemuSnapshot(path: string, ...action: string[]): Promise<void> {
  await runPeer('qemu-img', ['snapshot', ...SECRET, '--image-opts', ...action, imageOpts(path)]);
}

interface Resizable {
  truncate(size: number): Promise<void>;
}

async function resize(model: ImageModel, node: Resizable, random: Random): Promise<void> {
  const now = model.content.byteLength;
  const size = Math.max(now + (random.below(600) - 300) * 512, 16 * KIB);
  await node.truncate(size);
  model.resize(size);
}

/** Everything up to the last flush is there, whatever part of the writes after it is. */
async function powerLoss(format: Format, seed: number): Promise<void> {
  const random = new Random(seed * 104_729);
  const path = join(await testScope().tempDir(), 'image');
  const size = 1 * MIB;
  const given = { ...layout(random, format), version: 'v3' as const };
  await weCreate(path, format, { ...given, size });
  const file = new VolatileFile(await readFile(path), 64 * MIB);
  const graph = localGraph(await secretsWith({ s: PASSPHRASE }));
  graph.drivers.register(file.definition());
  const below = { driver: 'volatile', discard: 'unmap' };
  const options = { driver: 'qcow2', encrypt: { 'key-secret': 's' }, file: below };
  const used = await useNode({ ...options, discard: 'unmap' }, undefined, graph);
  const { clusterSize } = given;
  const model = new ImageModel({
    random,
    content: Buffer.alloc(size),
    clusterSize,
    discards: true,
  });
  const losses: { left: Buffer; touched: Buffer; flushed: Buffer }[] = [];
  for (let round = 0; round < 3; round++) {
    for (let step = random.below(4); step >= 0; step--) await model.step(used.node);
    await used.node.flush();
    model.settled();
    const flushed = Buffer.from(model.content);
    await model.step(used.node);
    losses.push({ left: file.loss(random), touched: Buffer.from(model.touched), flushed });
  }
  await used.close();
  for (const { left, touched, flushed } of losses) {
    await writeFile(path, left);
    const check = ['check', '--output=json', ...SECRET, '--image-opts', imageOpts(path)];
    const { stdout } = await tryPeer('qemu-img', check);
    if (!given.lazyRefcounts) expect(JSON.parse(stdout).corruptions ?? 0).toBe(0);
    const found = await qemuContent(path);
    for (let at = 0; at < size; at++) if (touched[at] === 1) found[at] = flushed[at] ?? 0;
    expectEqual(found, flushed);
  }
}

describe.each(FORMATS)('%s', (format) => {
  it.each(SEEDS)('random requests leave image %d equal to the model', (seed) =>
    randomRequests(format, seed),
  );

  it.each(SEEDS)('a power loss leaves what was flushed of image %d', (seed) =>
    powerLoss(format, seed),
  );
});
