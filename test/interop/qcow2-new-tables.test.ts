// SPDX-License-Identifier: MIT
/** L2 tables that have no entry yet, because the data that they are for is still being written. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { tryPeer } from '../support/peers.js';
import { VolatileFile } from '../support/power-loss.js';
import { createImage, KIB, MIB } from '../support/qcow2.js';
import { testScope } from '../support/temp.js';
import { localGraph, useNode } from '../unit/block/driver/test-graph.js';

it('a flush meanwhile leaves an image whose tables lie within the file', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 'image');
  const options = `cluster_size=512,data_file=${join(dir, 'data')}`;
  await createImage(path, 1 * MIB, options);
  const file = new VolatileFile(await readFile(path), 4 * MIB);
  const data = new VolatileFile(Buffer.alloc(1 * MIB), 1 * MIB);
  let release = (): void => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const graph = localGraph();
  graph.drivers.register(file.definition());
  const put = data.write.bind(data);
  data.write = (offset, buffer) => held.then(() => put(offset, buffer));
  graph.drivers.register({ ...data.definition(), name: 'held', open: () => data });
  const { node, close } = await useNode(
    { driver: 'qcow2', file: { driver: 'volatile' }, 'data-file': { driver: 'held' } },
    undefined,
    graph,
  );
  // Each is in the reach of another table.
  const writing = [0, 1, 2, 3, 4].map((nth) => node.write(nth * 64 * KIB, Buffer.alloc(512, 1)));
  for (let turn = 0; turn < 50; turn++) await nextTurn();
  await node.driver.flush?.();
  await writeFile(path, file.content);
  const { code, stdout } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', path]);
  expect([0, 3], stdout).toContain(code);
  release();
  await Promise.all(writing);
  await close();
});
