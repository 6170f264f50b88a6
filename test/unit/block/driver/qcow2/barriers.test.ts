// SPDX-License-Identifier: MIT
/** Data is on stable storage before an L2 entry that points at it is written, whatever else is flushed. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { REQ_WRITE_COMPRESSED } from '../../../../../src/block/block-driver.js';
import { VolatileFile } from '../../../../support/power-loss.js';
import { createImage, KIB, MIB } from '../../../../support/qcow2.js';
import { testScope } from '../../../../support/temp.js';
import { localGraph, useNode } from '../test-graph.js';

const CLUSTER = 64 * KIB;

/** A file that holds back one write, and notes what happens when. */
class HoldingFile extends VolatileFile {
  readonly story: string[] = [];
  holdNext = false;
  release = (): void => {};
  readonly #held = new Promise<void>((resolve) => {
    this.release = resolve;
  });

  override write(offset: number, buffer: Buffer): Promise<void> | void {
    if (!this.holdNext) {
      this.story.push('write');
      return super.write(offset, buffer);
    }
    this.holdNext = false;
    this.story.push('held write begins');
    return this.#held.then(async () => {
      await super.write(offset, buffer);
      this.story.push('held write ends');
    });
  }

  override async flush(): Promise<void> {
    await super.flush();
    this.story.push('flush');
  }
}

describe('a write that goes on while others are flushed', () => {
  for (const flags of [0, REQ_WRITE_COMPRESSED]) {
    it(`is durable before it becomes part of the image: flags ${flags}`, async () => {
      const dir = await testScope().tempDir();
      const path = join(dir, 'image');
      await createImage(path, 1 * MIB, `cluster_size=${CLUSTER}`);
      const file = new HoldingFile(await readFile(path), 4 * MIB);
      const graph = localGraph();
      graph.drivers.register(file.definition());
      const options = { driver: 'qcow2', file: { driver: 'volatile' } };
      const { node, close } = await useNode(options, undefined, graph);
      await node.write(0, Buffer.alloc(CLUSTER, 1));
      await node.flush();
      file.holdNext = true;
      const writing = Promise.resolve(node.write(CLUSTER, Buffer.alloc(CLUSTER, 2), flags));
      while (!file.story.includes('held write begins')) await nextTurn();
      await node.write(2 * CLUSTER, Buffer.alloc(CLUSTER, 3));
      await node.flush();
      file.release();
      await writing;
      await node.flush();
      const after = file.story.slice(file.story.indexOf('held write ends') + 1);
      expect(after).toEqual(['flush', 'write', 'flush']);
      await close();
    });
  }
});
