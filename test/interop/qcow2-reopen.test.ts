// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openNode } from '../../src/block/open-node.js';
import { reopenNodes } from '../../src/block/reopen.js';
import {
  contentOf,
  createImage,
  expectEqual,
  expectSound,
  KIB,
  MIB,
  qemuIo,
} from '../support/qcow2.js';
import { testScope } from '../support/temp.js';
import { localGraph, useNode } from '../unit/block/driver/test-graph.js';

describe('blockdev-reopen of a qcow2 node', () => {
  it('puts another backing node in place, or none', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const graph = localGraph();
    for (const [name, byte] of [
      ['one', 1],
      ['two', 2],
    ] as const) {
      const filename = join(dir, name);
      await createImage(filename, 1 * MIB);
      await qemuIo(filename, [`write -P ${byte} 0 1M`]);
      const file = { driver: 'file', filename };
      await openNode(
        graph,
        { driver: 'qcow2', 'node-name': name, 'read-only': true, file },
        { monitorOwned: true },
      );
    }
    const path = join(dir, 'top');
    await createImage(path, 1 * MIB);
    const file = { driver: 'file', 'node-name': 'f', filename: path };
    await openNode(graph, file, { monitorOwned: true });
    const top = { driver: 'qcow2', 'node-name': 'top', file: 'f' };
    const { node, close } = await useNode({ ...top, backing: 'one' }, undefined, graph);
    scope.defer(close);
    await node.write(64 * KIB, Buffer.alloc(64 * KIB, 9));
    const expected = (byte: number): Buffer =>
      Buffer.alloc(1 * MIB, byte).fill(9, 64 * KIB, 128 * KIB);
    expectEqual(await contentOf(node), expected(1));
    await reopenNodes(graph, [{ ...top, backing: 'two' }]);
    expectEqual(await contentOf(node), expected(2));
    await reopenNodes(graph, [{ ...top, backing: null }]);
    expectEqual(await contentOf(node), expected(0));
    await reopenNodes(graph, [{ ...top, backing: 'one', 'l2-cache-size': 4096 }]);
    await node.write(512 * KIB, Buffer.alloc(100, 9));
    const last = expected(1).fill(9, 512 * KIB, 512 * KIB + 100);
    expectEqual(await contentOf(node), last);
  });

  it('refuses options that can not be', async () => {
    const scope = testScope();
    const path = join(await scope.tempDir(), 'image');
    await createImage(path, 1 * MIB, 'compat=0.10');
    const graph = localGraph();
    const file = { driver: 'file', 'node-name': 'f', filename: path };
    await openNode(graph, file, { monitorOwned: true });
    const options = { driver: 'qcow2', 'node-name': 'd', file: 'f' };
    const { node, close } = await useNode(options, undefined, graph);
    await node.write(0, Buffer.alloc(100_000, 1));
    await expect(reopenNodes(graph, [{ ...options, 'lazy-refcounts': true }])).rejects.toThrow(
      'Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level',
    );
    await expect(reopenNodes(graph, [{ ...options, 'l2-cache-entry-size': 1000 }])).rejects.toThrow(
      'L2 cache entry size must be a power of two between 512 and the cluster size (65536)',
    );
    await expect(
      reopenNodes(graph, [
        { ...options, 'cache-size': 1 * MIB, 'l2-cache-size': 1024, 'refcount-cache-size': 1024 },
      ]),
    ).rejects.toThrow('may not be set at the same time');
    await node.write(200_000, Buffer.alloc(100_000, 2));
    await close();
    await expectSound(path);
  });
});
