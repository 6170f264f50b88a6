// SPDX-License-Identifier: MIT
/**
 * Random lives of images with random parameters: the content equals a model's, qemu-img finds nothing wrong
 * (no leaks either) after each round and reads the same. The environment asks for more, or for others:
 * QCOW2_RANDOM_IMAGES (how many), QCOW2_RANDOM_SEED (the first), QCOW2_RANDOM_KEEP (a folder that gets the
 * image after each round).
 */
import { copyFile, mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'vitest';
import { runPeer } from '../support/peers.js';
import { expectSound } from '../support/qcow2.js';
import { ImageLife } from '../support/qcow2-life.js';
import { Random } from '../support/qcow2-model.js';
import { makeImage, randomParameters } from '../support/qcow2-parameters.js';
import { testScope } from '../support/temp.js';

const IMAGES = Number(process.env.QCOW2_RANDOM_IMAGES ?? 320);
const FIRST_SEED = Number(process.env.QCOW2_RANDOM_SEED ?? 1);
const KEEP = process.env.QCOW2_RANDOM_KEEP;
/** Sequences of requests from an open to a close, of each image. */
const ROUNDS = 7;
const STEPS = 20;
/** Images of one test. */
const BATCH = 20;

async function runOne(seed: number, dir: string): Promise<void> {
  const random = new Random(seed * 7919);
  const parameters = randomParameters(random);
  let life: ImageLife | undefined;
  try {
    life = new ImageLife(random, parameters, await makeImage(dir, parameters, random));
    for (let round = 0; round < ROUNDS; round++) {
      await life.round(STEPS);
      if (KEEP !== undefined) await copyFile(life.path, join(KEEP, `${seed}.${round}`));
      await expectSound(life.path);
      if (random.below(4) === 0) await life.peersTurn();
    }
    await compareByQemu(dir, life);
  } catch (cause) {
    const story = (life?.story ?? []).slice(-60).join('\n');
    throw new Error(`seed ${seed}: ${JSON.stringify(parameters)}\n${story}`, { cause });
  }
}

/** QEMU finds the content of the model, in the image and in its snapshots. */
async function compareByQemu(dir: string, { path, model, moments, bitmaps }: ImageLife) {
  await compare(dir, path, model.content);
  if (moments.length === 0) return;
  // QEMU goes back to a snapshot only where no bitmap would have to tell of it.
  for (const name of bitmaps) await runPeer('qemu-img', ['bitmap', '--remove', path, name]);
  for (const { name, content } of moments) {
    await runPeer('qemu-img', ['snapshot', '-a', name, path]);
    await compare(dir, path, content);
  }
  await expectSound(path);
}

async function compare(dir: string, path: string, content: Buffer): Promise<void> {
  const raw = join(dir, 'raw');
  await writeFile(raw, content);
  await runPeer('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
}

describe('random lives of images', () => {
  for (let first = FIRST_SEED; first < FIRST_SEED + IMAGES; first += BATCH) {
    const last = Math.min(first + BATCH, FIRST_SEED + IMAGES) - 1;
    it(`leave images ${first} to ${last} sound and equal to the model`, async () => {
      const scope = testScope();
      const dir = await scope.tempDir();
      for (let seed = first; seed <= last; seed++) {
        const own = join(dir, String(seed));
        await mkdir(own);
        await runOne(seed, own);
        await rm(own, { recursive: true });
      }
    }, 120_000);
  }
});
