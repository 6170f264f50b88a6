// SPDX-License-Identifier: MIT
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { STATUS_DATA, STATUS_ZERO } from '../../../../src/block/block-driver.js';
import { chainStatus } from '../../../../src/block/block-status.js';
import { blockDriverSuite, expectSame, readBack } from '../../../suite/block-driver.suite.js';
import { Scope, testScope } from '../../../support/temp.js';
import { RESIZER, type UsedNode, useNode } from './test-graph.js';

const KIB = 1024;
/** What lies outside of a window: a write that leaks out of it shows. */
const FENCE = 0x5a;

async function makeRaw(
  size: number,
  window: { offset?: number; size?: number },
): Promise<UsedNode> {
  const scope = new Scope();
  const { offset = 0 } = window;
  const filename = join(await scope.tempDir(), 'image');
  const tail = window.size === undefined ? 0 : 8 * KIB;
  const content = Buffer.alloc(offset + size + tail, FENCE);
  content.fill(0, offset, offset + size);
  await writeFile(filename, content);
  const used = await useNode({ driver: 'raw', ...window, file: { driver: 'file', filename } });
  scope.defer(async () => {
    const outside = await readBack(used.node.children.get('file') ?? used.node, 0, offset);
    expectSame(outside, Buffer.alloc(offset, FENCE));
    await used.close();
  });
  return { ...used, close: () => scope.close() };
}

blockDriverSuite('raw over file', (size) => makeRaw(size, {}));
blockDriverSuite('raw with an offset', (size) => makeRaw(size, { offset: 3 * KIB }), {
  resizes: false,
});
blockDriverSuite('raw with offset and size', (size) => makeRaw(size, { offset: 512, size }), {
  resizes: false,
});

function overNull(window: object, size = 1024 * KIB): Promise<UsedNode> {
  return useNode({ driver: 'raw', ...window, file: { driver: 'null-co', size } });
}

describe('raw', () => {
  it('refuses an offset beyond the end of the node below', async () => {
    await expect(overNull({ offset: 2048 * KIB })).rejects.toThrow(
      'Offset (2097152) cannot be greater than size of the containing file (1048576)',
    );
  });

  it('refuses a window that reaches past the end of the node below', async () => {
    await expect(overNull({ offset: 512, size: 1024 * KIB })).rejects.toThrow(
      'The sum of offset (512) and size (1048576) has to be smaller or equal to the  actual size ' +
        'of the containing file (1048576)',
    );
  });

  it('refuses a size that is no multiple of 512', async () => {
    await expect(overNull({ size: 1000 })).rejects.toThrow('Specified size is not multiple of 512');
  });

  it('has what is left of the node below as its size', async () => {
    const { node, close } = await overNull({ offset: 1000 });
    expect(node.size).toBe(1024 * KIB - 1000);
    await close();
  });

  it('refuses to resize a window of fixed size', async () => {
    const { node, close } = await overNull({ size: 512 * KIB });
    await expect(node.truncate(KIB)).rejects.toThrow('Cannot resize fixed-size raw disks');
    await close();
  });

  it('refuses writes past a window even to a parent that may resize', async () => {
    const scope = testScope();
    const filename = join(await scope.tempDir(), 'image');
    await writeFile(filename, Buffer.alloc(8 * KIB));
    const { node, close } = await useNode(
      { driver: 'raw', size: 4 * KIB, file: { driver: 'file', filename } },
      RESIZER,
    );
    scope.defer(close);
    await expect(async () => node.write(4 * KIB, Buffer.alloc(512, 1))).rejects.toMatchObject({
      code: 'DF_OUT_OF_RANGE',
    });
    await expect(async () => node.writeZeroes(3 * KIB, 2 * KIB)).rejects.toMatchObject({
      code: 'DF_OUT_OF_RANGE',
    });
  });

  it('grows with the file when its parent may resize', async () => {
    const scope = testScope();
    const filename = join(await scope.tempDir(), 'image');
    await writeFile(filename, Buffer.alloc(8 * KIB));
    const { node, close } = await useNode(
      { driver: 'raw', offset: KIB, file: { driver: 'file', filename } },
      RESIZER,
    );
    scope.defer(close);
    await node.write(20 * KIB, Buffer.alloc(KIB, 1));
    expect(node.size).toBe(21 * KIB);
    expectSame(await readBack(node, 7 * KIB, 13 * KIB), Buffer.alloc(13 * KIB));
  });

  it('has the status of the node below', async () => {
    const scope = testScope();
    const filename = join(await scope.tempDir(), 'image');
    await writeFile(filename, '');
    await truncate(filename, 1024 * KIB);
    const file = { driver: 'file', filename };
    const { node, close } = await useNode({ driver: 'raw', offset: 64 * KIB, file });
    scope.defer(close);
    await node.write(128 * KIB, Buffer.alloc(64 * KIB, 1));
    const hole = await chainStatus(node, 0, 512 * KIB);
    const data = await chainStatus(node, 128 * KIB, 512 * KIB);
    expect(hole.flags & STATUS_ZERO).toBe(STATUS_ZERO);
    expect(data).toMatchObject({ length: 64 * KIB, depth: 1 });
    expect(data.flags & (STATUS_DATA | STATUS_ZERO)).toBe(STATUS_DATA);
  });
});
