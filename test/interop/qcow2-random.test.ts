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
import { PeerShell } from '../support/peer-shell.js';
import { ImageLife } from '../support/qcow2-life.js';
import { Random } from '../support/qcow2-model.js';
import { makeImage, randomParameters } from '../support/qcow2-parameters.js';
import { testScope } from '../support/temp.js';

const IMAGES = Number(process.env.QCOW2_RANDOM_IMAGES ?? 180);
const FIRST_SEED = Number(process.env.QCOW2_RANDOM_SEED ?? 1);
const KEEP = process.env.QCOW2_RANDOM_KEEP;
/** Sequences of requests from an open to a close, of each image. */
const ROUNDS = 7;
const STEPS = 20;
/** Images of one test, and how many of them at a time. */
const BATCH = 40;
const LANES = 3;

async function runOne(seed: number, dir: string, shell: PeerShell): Promise<void> {
  const random = new Random(seed * 7919);
  const parameters = randomParameters(random);
  let life: ImageLife | undefined;
  try {
    const made = await makeImage(dir, parameters, { random, shell });
    life = new ImageLife(random, parameters, made);
    for (let round = 0; round < ROUNDS; round++) {
      await life.round(STEPS);
      if (KEEP !== undefined) await copyFile(life.path, join(KEEP, `${seed}.${round}`));
      await shell.expectSound(life.path);
      if (random.below(4) === 0) await life.peersTurn(shell);
    }
    await compareByQemu(dir, life, shell);
  } catch (cause) {
    const story = (life?.story ?? []).slice(-60).join('\n');
    throw new Error(`seed ${seed}: ${JSON.stringify(parameters)}\n${story}`, { cause });
  }
}

/** QEMU finds the content of the model, in the image and in its snapshots. */
async function compareByQemu(
  dir: string,
  { path, model, moments, bitmaps }: ImageLife,
  shell: PeerShell,
): Promise<void> {
  const raw = join(dir, 'raw');
  const compare = async (content: Buffer): Promise<void> => {
    await writeFile(raw, content);
    await shell.expect('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
  };
  await compare(model.content);
  if (moments.length === 0) return;
  // QEMU goes back to a snapshot only where no bitmap would have to tell of it.
  for (const name of bitmaps) await shell.expect('qemu-img', ['bitmap', '--remove', path, name]);
  for (const { name, content } of moments) {
    await shell.expect('qemu-img', ['snapshot', '-a', name, path]);
    await compare(content);
  }
  await shell.expectSound(path);
}

describe('random lives of images', () => {
  for (let first = FIRST_SEED; first < FIRST_SEED + IMAGES; first += BATCH) {
    const last = Math.min(first + BATCH, FIRST_SEED + IMAGES) - 1;
    it(`leave images ${first} to ${last} sound and equal to the model`, async () => {
      const scope = testScope();
      const dir = await scope.tempDir();
      let next = first;
      const lane = async (): Promise<void> => {
        const shell = new PeerShell(scope);
        while (next <= last) {
          const seed = next++;
          const own = join(dir, String(seed));
          await mkdir(own);
          await runOne(seed, own, shell);
          await rm(own, { recursive: true });
        }
      };
      const ended = await Promise.allSettled(Array.from({ length: LANES }, lane));
      for (const one of ended) if (one.status === 'rejected') throw one.reason;
    }, 600_000);
  }
});
