// SPDX-License-Identifier: MIT
/**
 * Power that is lost while bitmaps are marked as in use, or stored: none that counts as valid lacks the mark
 * of a change that is in the image, and qemu-img finds no corruption. QCOW2_BITMAP_LOSSES sets how often.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { runPeer, tryPeer } from '../support/peers.js';
import { VolatileFile } from '../support/power-loss.js';
import { contentOf, createImage, KIB, MIB, openImage } from '../support/qcow2.js';
import { Random } from '../support/qcow2-model.js';
import { testScope } from '../support/temp.js';
import { localGraph, READER, useNode } from '../unit/block/driver/test-graph.js';

const RUNS = Number(process.env.QCOW2_BITMAP_LOSSES ?? 6);
const SIZE = 2 * MIB;
const GRANULE = 4 * KIB;

async function lossesOf(random: Random, image: Buffer): Promise<Buffer[]> {
  const file = new VolatileFile(image, 64 * MIB);
  const graph = localGraph();
  graph.drivers.register(file.definition());
  const options = { driver: 'qcow2', file: { driver: 'volatile' } };
  const { node, close } = await useNode(options, undefined, graph);
  const losses: Buffer[] = [];
  const during = async (work: Promise<void>): Promise<void> => {
    let running = true;
    const ended = work.finally(() => {
      running = false;
    });
    for (let turn = 0; running && turn < 40; turn++) {
      if (random.below(2) === 0) losses.push(file.loss(random));
      await nextTurn();
    }
    await ended;
    losses.push(file.loss(random));
  };
  await during(Promise.resolve(node.write(1 * MIB, Buffer.alloc(10 * KIB, 2))));
  await during(Promise.resolve(node.flush()));
  await during(close());
  return losses;
}

/** Every granule that differs from `before` must be marked, where the bitmap counts as valid. */
async function checkMarks(path: string, before: Buffer): Promise<void> {
  const { node, close } = await openImage(path, { 'read-only': true }, READER);
  const bitmap = node.bitmaps.get('b');
  const now = await contentOf(node);
  if (bitmap !== undefined && !bitmap.inconsistent) {
    expect(bitmap.isDirty(0)).toBe(true);
    for (let at = 0; at < SIZE; at += GRANULE) {
      const same = now.subarray(at, at + GRANULE).equals(before.subarray(at, at + GRANULE));
      if (!same) expect({ at, dirty: bitmap.isDirty(at) }).toEqual({ at, dirty: true });
    }
  }
  await close();
}

for (let seed = 1; seed <= RUNS; seed++) {
  it(`leaves no bitmap that lies: seed ${seed}`, async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const random = new Random(seed * 7919);
    const path = join(dir, 'image');
    await createImage(path, SIZE, `cluster_size=${random.pick([512, 4 * KIB, 64 * KIB])}`);
    await runPeer('qemu-img', ['bitmap', '--add', '-g', String(GRANULE), path, 'b']);
    // What is written now is allocated already when power is lost.
    await runPeer('qemu-io', ['-f', 'qcow2', '-c', 'write -P 1 0 2M', path]);
    await runPeer('qemu-img', ['bitmap', '--clear', path, 'b']);
    await runPeer('qemu-io', ['-f', 'qcow2', '-c', 'write -P 1 0 4k', path]);
    const before = Buffer.alloc(SIZE, 1);
    const left = join(dir, 'left');
    const losses = await lossesOf(random, await readFile(path));
    for (const loss of losses) {
      await writeFile(left, loss);
      const { code, stdout } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', left]);
      // 3: leaks.
      expect([0, 3], stdout).toContain(code);
      await checkMarks(left, before);
    }
  });
}
