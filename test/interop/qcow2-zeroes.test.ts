// SPDX-License-Identifier: MIT
/** Zeroes in parts of clusters, above backing images that end within a cluster. */
import { join } from 'node:path';
import { describe, it } from 'vitest';
import {
  contentOf,
  createImage,
  expectEqual,
  expectSound,
  KIB,
  openImage,
  qemuContent,
  qemuIo,
} from '../support/qcow2.js';
import { testScope } from '../support/temp.js';

const END = 100 * KIB;

describe('zeroes in a cluster in which the backing image ends', () => {
  it.each([
    ['at its end', END - 1024, 1024],
    ['behind its end', END, 1024],
    ['over its end', END - 512, 4096],
    ['to the end of the cluster', END - 512, 28 * KIB + 512],
    ['from the cluster before', 60 * KIB, END - 60 * KIB],
    ['into the cluster after', END - 512, 60 * KIB],
    ['to the end of the image', END + 512, 200 * KIB - 512],
  ])('%s leave the rest as it is', async (_where, offset, length) => {
    const dir = await testScope().tempDir();
    const path = join(dir, 'image');
    await createImage(join(dir, 'base'), END);
    await qemuIo(join(dir, 'base'), [`write -P 7 0 ${END}`]);
    // It ends within a cluster, too.
    await createImage(path, 3 * END, 'backing_file=base,backing_fmt=qcow2');
    const expected = Buffer.alloc(3 * END);
    expected.fill(7, 0, END);
    expected.fill(0, offset, offset + length);
    const { backend, close } = await openImage(path);
    await backend.writeZeroes(offset, length);
    const seen = await contentOf(backend);
    await close();
    expectEqual(seen, expected);
    expectEqual(await qemuContent(path, join(dir, 'out')), expected);
    await expectSound(path);
  });
});
