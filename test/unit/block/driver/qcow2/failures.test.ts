// SPDX-License-Identifier: MIT
/** Writes to the file that fail, now and then: what was acknowledged stays, and the image stays sound. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { BlockNode } from '../../../../../src/block/node.js';
import { tryPeer } from '../../../../support/peers.js';
import { VolatileFile } from '../../../../support/power-loss.js';
import {
  contentOf,
  createImage,
  expectEqual,
  KIB,
  MIB,
  pattern,
} from '../../../../support/qcow2.js';
import { Random } from '../../../../support/qcow2-model.js';
import { testScope } from '../../../../support/temp.js';
import { localGraph, useNode } from '../test-graph.js';

const BLOCK = 3 * KIB;

/** What a request in a row of many has come to: the block has its new content, or either. */
async function requests(
  node: BlockNode,
  file: VolatileFile,
  random: Random,
): Promise<{ content: Buffer; unsure: Buffer; failed: number }> {
  const content = Buffer.alloc(node.size);
  const unsure = Buffer.alloc(node.size);
  let failed = 0;
  for (let nth = 0; nth < 300; nth++) {
    const offset = random.below(Math.floor(node.size / BLOCK)) * BLOCK;
    if (random.below(6) === 0) file.failing = 1 + random.below(3);
    const kind = random.below(8);
    const bytes = kind < 6 ? pattern(BLOCK, nth) : Buffer.alloc(BLOCK);
    try {
      if (kind === 7) await node.flush();
      else if (kind === 6) await node.writeZeroes(offset, BLOCK, 2);
      else await node.write(offset, bytes);
      if (kind === 7) continue;
      bytes.copy(content, offset);
      unsure.fill(0, offset, offset + BLOCK);
    } catch {
      failed++;
      if (kind !== 7) unsure.fill(1, offset, offset + BLOCK);
    }
    if (random.below(2) === 0) file.failing = 0;
  }
  file.failing = 0;
  return { content, unsure, failed };
}

describe('qcow2 above a file whose writes fail', () => {
  for (const seed of [1, 2, 3, 4, 5, 6]) {
    it(`keeps what it has acknowledged: ${seed}`, async () => {
      const scope = testScope();
      const dir = await scope.tempDir();
      const path = join(dir, 'image');
      const random = new Random(seed * 31337);
      const cluster = random.pick([512, 4 * KIB, 64 * KIB]);
      await createImage(path, 1 * MIB, `cluster_size=${cluster}`);
      const file = new VolatileFile(await readFile(path), 32 * MIB);
      const graph = localGraph();
      graph.drivers.register(file.definition());
      const { node, close } = await useNode(
        {
          ...{ driver: 'qcow2', discard: 'unmap', file: { driver: 'volatile' } },
          ...(random.below(2) === 0 ? { 'l2-cache-size': 1024, 'l2-cache-entry-size': 512 } : {}),
        },
        undefined,
        graph,
      );
      const { content, unsure, failed } = await requests(node, file, random);
      expect(failed).toBeGreaterThan(5);
      await node.flush();
      const got = await contentOf(node);
      for (let at = 0; at < got.byteLength; at++) if (unsure[at] === 1) got[at] = content[at] ?? 0;
      expectEqual(got, content);
      await close();
      await writeFile(path, file.content);
      const { code, stdout, stderr } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', path]);
      // 3: clusters of a request that failed may be leaked.
      expect([0, 3], stdout + stderr).toContain(code);
    });
  }
});
