// SPDX-License-Identifier: MIT
/** A qcow2 image on a file that can lose power, in use. */
import { readFile } from 'node:fs/promises';
import { localGraph, type UsedNode, useNode } from '../unit/block/driver/test-graph.js';
import { VolatileFile } from './power-loss.js';
import { KIB } from './qcow2.js';
import type { Random } from './qcow2-model.js';

export interface VolatileImage {
  readonly random: Random;
  readonly clusterSize: number;
  /** Bytes that the file may come to have. */
  readonly capacity: number;
}

/** Opens a copy of the image at `path` in memory, with a small or a large cache of tables. */
export async function openVolatile(
  path: string,
  { random, clusterSize, capacity }: VolatileImage,
): Promise<{ readonly file: VolatileFile; readonly used: UsedNode }> {
  const file = new VolatileFile(await readFile(path), capacity);
  const graph = localGraph();
  graph.drivers.register(file.definition());
  const slice = random.pick([512, Math.min(clusterSize, 4 * KIB)]);
  const options = {
    driver: 'qcow2',
    discard: 'unmap',
    'l2-cache-entry-size': slice,
    'l2-cache-size': random.pick([2, 64]) * slice,
    file: { driver: 'volatile', discard: 'unmap' },
  };
  return { file, used: await useNode(options, undefined, graph) };
}
