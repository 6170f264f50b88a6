// SPDX-License-Identifier: MIT
/** Encrypted qcow2 images that QEMU made are ours to read and write, and ours are QEMU's. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Qcow2CreateOptions } from '../../src/block/driver/qcow2/create.js';
import {
  expectSound,
  FORMATS,
  ours,
  qemuContent,
  qemuCreates,
  qemuIo,
  qemuWrites,
  SECRET,
  weCreate,
} from '../support/encrypted-qcow2.js';
import { tryPeer } from '../support/peers.js';
import { contentOf, expectEqual, KIB, MIB, pattern } from '../support/qcow2.js';
import { testScope } from '../support/temp.js';

const SIZE = 2 * MIB;
// Making LUKS images takes QEMU seconds on a busy machine.
const PATIENCE = { timeout: 120_000 };

const image = async (): Promise<string> => join(await testScope().tempDir(), 'disk.qcow2');

/** Layouts that place data differently. */
const LAYOUTS: readonly (readonly [text: string, ours: Partial<Qcow2CreateOptions>])[] = [
  ['', {}],
  ['cluster_size=512', { clusterSize: 512 }],
  ['cluster_size=2M', { clusterSize: 2 * MIB }],
  ['extended_l2=on', { extendedL2: true }],
  ['compat=0.10', { version: 'v2' }],
  ['preallocation=metadata', { preallocation: 'metadata' }],
  ['preallocation=full', { preallocation: 'full' }],
  ['extended_l2=on,preallocation=metadata', { extendedL2: true, preallocation: 'metadata' }],
  ['compat=0.10,preallocation=metadata', { version: 'v2', preallocation: 'metadata' }],
  ['lazy_refcounts=on', { lazyRefcounts: true }],
];

describe.each(FORMATS)('%s', PATIENCE, (format) => {
  const theirs = format === 'aes' ? LAYOUTS : LAYOUTS.slice(0, 3);
  it.each(theirs)('made by qemu-img (%s): each reads what the other writes', async (text) => {
    const path = await image();
    await qemuCreates(path, SIZE, format, text === '' ? [] : [text]);
    const content = Buffer.alloc(SIZE);
    pattern(1 * MIB, 1).copy(content, 300 * KIB);
    await qemuWrites(path, content);
    await exchange(path, content);
  });

  const mine = LAYOUTS.filter(([text]) => format === 'aes' || text !== 'cluster_size=512');
  it.each(mine)('made here (as %s): each reads what the other writes', async (_text, options) => {
    const path = await image();
    await weCreate(path, format, options);
    await expectSound(path);
    const content = Buffer.alloc(SIZE);
    expectEqual(await qemuContent(path), content);
    await exchange(path, content);
  });
});

/** Writes of all kinds here, then there, and what is read in both places. */
async function exchange(path: string, content: Buffer): Promise<void> {
  const used = await ours(path);
  try {
    expectEqual(await contentOf(used.node), content);
    for (const [offset, length] of [
      [0, 512],
      [700, 3],
      [66_000, 70_001],
      [SIZE - 1000, 1000],
      [1 * MIB, 600 * KIB],
    ] as const) {
      const bytes = pattern(length, offset);
      bytes.copy(content, offset);
      await used.node.write(offset, bytes);
    }
    await used.node.writeZeroes(1_200_000, 200_000, 0);
    content.fill(0, 1_200_000, 1_400_000);
    expectEqual(await contentOf(used.node), content);
  } finally {
    await used.close();
  }
  await expectSound(path);
  expectEqual(await qemuContent(path), content);
  await qemuIo(path, 'write -P 0x5a 100k 300k', 'write -z 500k 64k');
  content.fill(0x5a, 100 * KIB, 400 * KIB);
  content.fill(0, 500 * KIB, 564 * KIB);
  const again = await ours(path);
  try {
    expectEqual(await contentOf(again.node, 70_000), content);
  } finally {
    await again.close();
  }
}

it('a LUKS header longer than a block of counts covers is placed behind several', async () => {
  const path = await image();
  await weCreate(path, 'luks', { clusterSize: 512 });
  await expectSound(path);
  const { node, close } = await ours(path);
  try {
    await node.write(512 * KIB, Buffer.alloc(64 * KIB, 3));
  } finally {
    await close();
  }
  await expectSound(path);
  expect((await qemuContent(path)).subarray(512 * KIB, 576 * KIB).every((byte) => byte === 3)).toBe(
    true,
  );
}, 120_000);

it('a key that does not fit is refused in the words of qemu-io', async () => {
  const path = await image();
  await qemuCreates(path, SIZE, 'luks');
  const theirs = async (options: string): Promise<string> => {
    const secrets = [...SECRET, '--object', 'secret,id=wrong,data=wrong'];
    const opts = `driver=qcow2,file.driver=file,file.filename=${path}${options}`;
    const { stderr } = await tryPeer('qemu-io', ['-r', ...secrets, '--image-opts', opts]);
    return stderr.replace("qemu-io: can't open: ", '').trim();
  };
  for (const encrypt of [
    {},
    { 'key-secret': 'wrong' },
    { 'key-secret': 'absent' },
    { format: 'aes', 'key-secret': 's' },
  ]) {
    const text = Object.entries(encrypt).map(([key, value]) => `,encrypt.${key}=${value}`);
    const message = await theirs(text.join(''));
    expect(message).not.toBe('');
    await expect(ours(path, { encrypt })).rejects.toThrow(message);
  }
});
