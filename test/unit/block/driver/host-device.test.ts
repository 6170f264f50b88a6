// SPDX-License-Identifier: MIT
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../../src/base/errors.js';
import { REQ_MAY_UNMAP, REQ_NO_FALLBACK } from '../../../../src/block/block-driver.js';
import {
  blockDriverSuite,
  expectSame,
  pattern,
  readBack,
} from '../../../suite/block-driver.suite.js';
import { runPeer } from '../../../support/peers.js';
import { Scope, testScope } from '../../../support/temp.js';
import { READER, RESIZER, type UsedNode, useNode, WRITER } from './test-graph.js';

const KIB = 1024;
const MIB = 1024 * KIB;

/** A loop device over a file of `size` bytes, detached with the scope. Needs root. */
async function loopDevice(
  scope: Scope,
  size: number,
  args: string[] = [],
): Promise<{ device: string; image: string }> {
  const image = join(await scope.tempDir(), 'image');
  await writeFile(image, '');
  await truncate(image, size);
  const { stdout } = await runPeer('losetup', ['--find', '--show', ...args, image]);
  const device = stdout.trim();
  scope.defer(() => runPeer('losetup', ['--detach', device]));
  return { device, image };
}

async function makeDevice(size: number, options: object = {}): Promise<UsedNode> {
  const scope = new Scope();
  try {
    const { device } = await loopDevice(scope, size);
    const used = await useNode({ driver: 'host_device', filename: device, ...options });
    scope.defer(used.close);
    return { ...used, close: () => scope.close() };
  } catch (error) {
    await scope.close();
    throw error;
  }
}

blockDriverSuite('host_device', (size) => makeDevice(size), { resizes: false });
blockDriverSuite(
  'host_device with discard=unmap',
  (size) => makeDevice(size, { discard: 'unmap' }),
  { resizes: false },
);
blockDriverSuite(
  'host_device with cache.direct',
  (size) => makeDevice(size, { cache: { direct: true }, discard: 'unmap' }),
  { resizes: false },
);

describe('host_device', () => {
  it('refuses a regular file by name', async () => {
    const scope = testScope();
    const filename = join(await scope.tempDir(), 'image');
    await writeFile(filename, Buffer.alloc(512));
    await expect(useNode({ driver: 'host_device', filename })).rejects.toThrow(
      `'host_device' driver requires '${filename}' to be either a character or block device`,
    );
  });

  it('is refused by the file driver by name', async () => {
    const scope = testScope();
    const { device } = await loopDevice(scope, MIB);
    await expect(useNode({ driver: 'file', filename: device })).rejects.toThrow(
      `'file' driver requires '${device}' to be a regular file`,
    );
  });

  it('refuses to write to a device that is set read-only, and reads from it', async () => {
    const scope = testScope();
    const { device } = await loopDevice(scope, MIB, ['--read-only']);
    await expect(useNode({ driver: 'host_device', filename: device })).rejects.toBeInstanceOf(
      BlockError,
    );
    const options = { driver: 'host_device', filename: device, 'read-only': true };
    const { node, close } = await useNode(options, READER);
    expect(node.size).toBe(MIB);
    await close();
  });

  it('can not be resized', async () => {
    const scope = testScope();
    const { device } = await loopDevice(scope, MIB);
    const { node, close } = await useNode({ driver: 'host_device', filename: device }, RESIZER);
    await expect(node.truncate(2 * MIB)).rejects.toThrow('Cannot resize device files');
    await expect(node.truncate(2 * MIB, { exact: false, preallocation: 'off' })).rejects.toThrow(
      'Cannot grow device files',
    );
    await node.truncate(KIB, { exact: false, preallocation: 'off' });
    expect(node.size).toBe(MIB);
    await close();
  });

  it('shows nothing stale after zeroing or discarding what is in the page cache', async () => {
    const scope = testScope();
    const { device, image } = await loopDevice(scope, MIB);
    const options = { driver: 'host_device', filename: device, discard: 'unmap' };
    const { node, close } = await useNode(options, WRITER);
    await node.write(0, pattern(1, MIB));
    await node.writeZeroes(0, 256 * KIB, REQ_MAY_UNMAP);
    await node.writeZeroes(256 * KIB, 256 * KIB);
    expectSame(await readBack(node, 0, 512 * KIB), Buffer.alloc(512 * KIB));
    await node.flush();
    expectSame((await readFile(image)).subarray(0, 512 * KIB), Buffer.alloc(512 * KIB));
    expectSame((await readFile(image)).subarray(512 * KIB), pattern(1, MIB).subarray(512 * KIB));
    await close();
  });

  it('refuses a fast zero that may have to write', async () => {
    const scope = testScope();
    const { device } = await loopDevice(scope, MIB);
    const { node, close } = await useNode({ driver: 'host_device', filename: device });
    await expect(async () => node.writeZeroes(0, 64 * KIB, REQ_NO_FALLBACK)).rejects.toMatchObject({
      code: 'DF_NOT_SUPPORTED',
    });
    await close();
  });
});
