// SPDX-License-Identifier: MIT
/** The nbd driver beside QEMU's, over the same servers. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { STATUS_DATA, STATUS_ZERO } from '../../src/block/block-driver.js';
import { nbdDefinition } from '../../src/block/driver/nbd.js';
import { BlockGraph } from '../../src/block/graph.js';
import type { BlockNode } from '../../src/block/node.js';
import { openNode } from '../../src/block/open-node.js';
import { untilListens } from '../support/listening.js';
import { runPeer, runPeerJson, spawnTracked } from '../support/peers.js';
import { type Scope, testScope } from '../support/temp.js';

interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly zero: boolean;
  readonly data: boolean;
}

/** A qcow2 image with data, zeroes, a hole and a dirty bitmap, served by qemu-nbd. */
async function serveImage(scope: Scope): Promise<string> {
  const dir = await scope.tempDir();
  const image = join(dir, 'image.qcow2');
  const path = join(dir, 'nbd.sock');
  await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', image, '8M']);
  await runPeer('qemu-io', ['-c', 'write -P 1 0 1M', '-c', 'write -z 2M 1M', image]);
  await runPeer('qemu-img', ['bitmap', '--add', '-g', '64k', image, 'b0']);
  await runPeer('qemu-io', ['-c', 'write -P 2 4M 192k', '-c', 'write -P 3 6M 64k', image]);
  const args = ['-t', '-r', '-k', path, '-f', 'qcow2', '-x', 'disk', '-B', 'b0', '-e', '4', image];
  const child = spawnTracked('qemu-nbd', args);
  child.stdout?.resume();
  child.stderr?.resume();
  const exited = new Promise((resolve) => child.once('close', resolve));
  scope.defer(async () => {
    child.kill('SIGKILL');
    await exited;
  });
  await untilListens(child, path);
  return path;
}

async function mapOf(node: BlockNode): Promise<MapEntry[]> {
  const entries: MapEntry[] = [];
  for (let start = 0; start < node.size; ) {
    const { length, flags } = await node.blockStatus(start, node.size - start);
    const entry = {
      start,
      length,
      zero: (flags & STATUS_ZERO) !== 0,
      data: (flags & STATUS_DATA) !== 0,
    };
    const last = entries.at(-1);
    if (last !== undefined && last.zero === entry.zero && last.data === entry.data) {
      entries.splice(-1, 1, { ...last, length: last.length + length });
    } else entries.push(entry);
    start += length;
  }
  return entries;
}

test.each([undefined, 'qemu:dirty-bitmap:b0'])('maps as qemu-img does (%s)', async (context) => {
  const scope = testScope();
  const path = await serveImage(scope);
  const graph = new BlockGraph();
  graph.drivers.register(nbdDefinition);
  scope.defer(() => graph.closeAll());
  const node = await openNode(
    graph,
    {
      driver: 'nbd',
      server: { type: 'unix', path },
      export: 'disk',
      'read-only': true,
      'open-timeout': 5,
      ...(context === undefined ? {} : { 'x-dirty-bitmap': context }),
    },
    { monitorOwned: true },
  );
  const options = `driver=nbd,server.type=unix,server.path=${path},export=disk`;
  const dirty = context === undefined ? '' : `,x-dirty-bitmap=${context}`;
  const args = ['map', '--output=json', '--image-opts', `${options}${dirty}`];
  const theirs = await runPeerJson<MapEntry[]>('qemu-img', args);
  const plain = theirs.map(({ start, length, zero, data }) => ({ start, length, zero, data }));
  expect(await mapOf(node)).toEqual(plain);
  const info = await runPeerJson<{ filename: string }>('qemu-img', [
    'info',
    '--output=json',
    '--image-opts',
    options,
  ]);
  expect(node.driver.filename).toBe(info.filename);
});
