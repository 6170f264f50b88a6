// SPDX-License-Identifier: MIT

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { isPromise } from '../../../../../src/base/maybe-promise.js';
import {
  createQcow2,
  type Qcow2CreateOptions,
} from '../../../../../src/block/driver/qcow2/create.js';
import { blockDriverSuite } from '../../../../suite/block-driver.suite.js';
import { contentOf, expectEqual, KIB, MIB, openImage } from '../../../../support/qcow2.js';
import { Scope, testScope } from '../../../../support/temp.js';
import { RESIZER, type UsedNode, useNode } from '../test-graph.js';

async function makeImage(path: string, options: Qcow2CreateOptions): Promise<void> {
  await writeFile(path, '');
  const { node, close } = await useNode({ driver: 'file', filename: path }, RESIZER);
  await createQcow2(node, options);
  await close();
}

async function fresh(options: Qcow2CreateOptions): Promise<UsedNode> {
  const scope = new Scope();
  const path = join(await scope.tempDir(), 'image');
  await makeImage(path, options);
  const used = await openImage(path, {}, RESIZER);
  scope.defer(used.close);
  return { ...used, close: () => scope.close() };
}

blockDriverSuite('qcow2', (size) => fresh({ size }));
blockDriverSuite('qcow2 with clusters of 512', (size) => fresh({ size, clusterSize: 512 }));
blockDriverSuite('qcow2, version 2', (size) => fresh({ size, version: 'v2' }));
blockDriverSuite('qcow2 with extended L2 entries', (size) =>
  fresh({ size, extendedL2: true, clusterSize: 16 * KIB }),
);

describe('qcow2', () => {
  it('reads and writes clusters that it knows at once', async () => {
    const scope = testScope();
    const { node, close } = await fresh({ size: 1 * MIB });
    scope.defer(close);
    const bytes = Buffer.alloc(4 * KIB, 7);
    await node.write(0, bytes);
    expect(isPromise(node.write(4 * KIB, bytes))).toBe(false);
    expect(isPromise(node.read(0, Buffer.alloc(8 * KIB)))).toBe(false);
  });

  it('takes new clusters at once when its tables are at hand', async () => {
    const scope = testScope();
    const { node, close } = await fresh({ size: 4 * MIB });
    scope.defer(close);
    await node.write(0, Buffer.alloc(KIB, 1));
    const written = [
      { offset: 1 * MIB + 3 * KIB, bytes: Buffer.alloc(2 * KIB, 2) },
      { offset: 2 * MIB - 5 * KIB, bytes: Buffer.alloc(200 * KIB, 3) },
      { offset: 3 * MIB, bytes: Buffer.alloc(128 * KIB, 4) },
    ];
    const expected = Buffer.alloc(4 * MIB).fill(1, 0, KIB);
    for (const { offset, bytes } of written) {
      expect(isPromise(node.write(offset, bytes))).toBe(false);
      bytes.copy(expected, offset);
    }
    expectEqual(await contentOf(node), expected);
  });

  it('fills up what is left of a cluster that was used before', async () => {
    const scope = testScope();
    const { node, close } = await fresh({ size: 4 * MIB });
    scope.defer(close);
    await node.write(0, Buffer.alloc(1 * MIB, 9));
    await node.discard(0, 1 * MIB);
    await node.flush();
    const expected = Buffer.alloc(4 * MIB);
    for (const offset of [1 * MIB, 2 * MIB + 7 * KIB, 3 * MIB - 1 * KIB]) {
      const bytes = Buffer.alloc(2 * KIB, 5);
      await node.write(offset, bytes);
      bytes.copy(expected, offset);
    }
    expectEqual(await contentOf(node), expected);
  });
});
