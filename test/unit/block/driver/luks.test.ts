// SPDX-License-Identifier: MIT
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { createLuksDriver } from '../../../../src/block/driver/luks.js';
import {
  blockDriverSuite,
  expectSame,
  pattern,
  readBack,
} from '../../../suite/block-driver.suite.js';
import { luksImage, PASSPHRASE, secretsWith } from '../../../support/luks.js';
import { Scope, testScope } from '../../../support/temp.js';
import { localGraph, RESIZER, type UsedNode, useNode, WRITER } from './test-graph.js';

const KIB = 1024;
const SIZE = 64 * KIB;

async function openImage(
  image: Buffer,
  {
    scope = testScope(),
    options = {},
    permissions = WRITER,
  }: { scope?: Scope; options?: object; permissions?: typeof WRITER } = {},
): Promise<UsedNode & { readonly filename: string }> {
  const filename = join(await scope.tempDir(), 'disk.luks');
  await writeFile(filename, image);
  const graph = localGraph();
  const secrets = await secretsWith({ right: PASSPHRASE, wrong: 'battery staple' });
  graph.drivers.register(createLuksDriver(secrets));
  const file = { driver: 'file', filename };
  const given = { driver: 'luks', 'key-secret': 'right', file, ...options };
  const used = await useNode(given, permissions, graph);
  scope.defer(() => used.close());
  return { ...used, filename, close: () => scope.close() };
}

for (const mode of ['xts', 'cbc'] as const) {
  blockDriverSuite(
    `luks, ${mode}`,
    async (size) => {
      const used = await openImage(await luksImage({ size, mode }), { scope: new Scope() });
      await used.node.writeZeroes(0, size);
      return used;
    },
    { resizes: false },
  );
}

describe('luks', () => {
  let image: Buffer;
  beforeAll(async () => {
    image = await luksImage({ size: SIZE });
  });
  const changed = (change: (copy: Buffer) => void): Buffer => {
    const copy = Buffer.from(image);
    change(copy);
    return copy;
  };

  it('lets nothing of the data be seen in the file', async () => {
    const { node, filename } = await openImage(image);
    const data = pattern(1, SIZE);
    await node.write(0, data);
    await node.flush();
    const stored = await readFile(filename);
    expect(stored.byteLength).toBe(image.byteLength);
    expectSame(
      stored.subarray(0, image.byteLength - SIZE),
      image.subarray(0, image.byteLength - SIZE),
    );
    for (let at = 0; at < SIZE; at += 512) {
      expect(stored.includes(data.subarray(at, at + 16))).toBe(false);
    }
  });

  it('reads again what was written before it was closed', async () => {
    const first = await openImage(image);
    await first.node.write(511, pattern(3, 5000));
    await first.node.flush();
    const stored = await readFile(first.filename);
    await first.close();
    const { node } = await openImage(stored);
    expectSame(await readBack(node, 511, 5000), pattern(3, 5000));
  });

  it('does not open with another passphrase, or without one', async () => {
    const wrong = openImage(image, { options: { 'key-secret': 'wrong' } });
    await expect(wrong).rejects.toThrow('Invalid password, cannot unlock any keyslot');
    const nobody = openImage(image, { options: { 'key-secret': 'nobody' } });
    await expect(nobody).rejects.toThrow("No secret with id 'nobody'");
    const none = openImage(image, { options: { 'key-secret': undefined } });
    await expect(none).rejects.toThrow("Parameter 'key-secret' is required for cipher");
  });

  it('tries all key slots', async () => {
    // The key of slot 0, moved to slot 7; slot 2 holds another's.
    const moved = changed((copy) => {
      const slot = (index: number) => 208 + index * 48;
      const offset = (index: number) => copy.readUInt32BE(slot(index) + 40) * 512;
      copy.copy(copy, offset(7), offset(0), offset(0) + 256_000);
      copy.copy(copy, slot(7), slot(0), slot(0) + 40);
      copy.copy(copy, slot(2), slot(0), slot(0) + 40);
      copy.writeUInt32BE(0xdead, slot(0));
      copy.fill(0, offset(0), offset(0) + 256_000);
    });
    const { node } = await openImage(moved);
    await node.write(0, pattern(1, 512));
    expectSame(await readBack(node, 0, 512), pattern(1, 512));
  });

  it('tells how it is encrypted', async () => {
    const { node } = await openImage(await luksImage({ size: SIZE, ivGenerator: 'essiv' }));
    expect(node.size).toBe(SIZE);
    expect(node.driver.encrypted).toBe(true);
    const told = await node.driver.specificInfo?.();
    expect(told).toMatchObject({
      type: 'luks',
      data: {
        'cipher-alg': 'aes-256',
        'cipher-mode': 'xts',
        'ivgen-alg': 'essiv',
        'ivgen-hash-alg': 'sha256',
        'hash-alg': 'sha256',
        'payload-offset': 2_068_480,
      },
    });
    expect(JSON.stringify(told)).not.toContain(PASSPHRASE);
  });

  it('grows and shrinks, and keeps what remains', async () => {
    const { node } = await openImage(image, { permissions: RESIZER });
    await node.write(0, pattern(1, SIZE));
    await node.truncate(SIZE / 2);
    expect(node.size).toBe(SIZE / 2);
    await node.truncate(SIZE * 2);
    expect(node.size).toBe(SIZE * 2);
    expectSame(await readBack(node, 0, SIZE / 2), pattern(1, SIZE).subarray(0, SIZE / 2));
    await node.write(SIZE, pattern(2, SIZE));
    expectSame(await readBack(node, SIZE, SIZE), pattern(2, SIZE));
  });

  it('counts whole sectors only', async () => {
    const { node } = await openImage(image.subarray(0, image.byteLength - 100));
    expect(node.size).toBe(SIZE - 512);
  });

  it.each<[string, (copy: Buffer) => void]>([
    ['Volume is not in LUKS format', (copy) => copy.writeUInt8(0, 0)],
    ['LUKS version 2 is not supported', (copy) => copy.writeUInt16BE(2, 6)],
    ['LUKS header cipher name is not NUL terminated', (copy) => copy.fill(0x61, 8, 40)],
    ["Algorithm 'camellia' with key size 32 bytes", (copy) => copy.write('camellia\0', 8)],
    ["Cipher mode 'ecb' not supported", (copy) => copy.write('ecb-plain64\0', 40)],
    ["Hash algorithm 'tiger' not supported", (copy) => copy.write('tiger\0', 72)],
    ['LUKS payload is overlapping with the header', (copy) => copy.writeUInt32BE(0, 104)],
    ['past the end', (copy) => copy.writeUInt32BE(0xffff_ffff, 104)],
    ['overlapping with the encrypted payload', (copy) => copy.writeUInt32BE(0xffff_ffff, 108)],
    ["Algorithm 'aes' with key size 0 bytes", (copy) => copy.writeUInt32BE(0, 108)],
    ["Algorithm 'aes' with key size 16 bytes", (copy) => copy.writeUInt32BE(33, 108)],
    ['LUKS key iteration count is zero', (copy) => copy.writeUInt32BE(0, 164)],
    ['asks for 4294967295 iterations', (copy) => copy.writeUInt32BE(0xffff_ffff, 164)],
    ['asks for 100000001 iterations', (copy) => copy.writeUInt32BE(100_000_001, 208 + 4)],
    ['Keyslot 0 iteration count is zero', (copy) => copy.writeUInt32BE(0, 208 + 4)],
    ['Keyslot 0 state (active/disable) is corrupted', (copy) => copy.writeUInt32BE(1, 208)],
    ['stripes 4294967295 != 4000', (copy) => copy.writeUInt32BE(0xffff_ffff, 208 + 44)],
    ['Keyslots 0 and 1 are overlapping', (copy) => copy.writeUInt32BE(9, 208 + 48 + 40)],
    ['Invalid password', (copy) => copy.writeUInt32BE(0xdead, 208)],
    ['Invalid password', (copy) => copy.writeUInt8(copy.readUInt8(112) ^ 1, 112)],
    ['Invalid password', (copy) => copy.writeUInt8(copy.readUInt8(4096) ^ 1, 4096)],
  ])('refuses a hostile header: %s', async (message, change) => {
    await expect(openImage(changed(change))).rejects.toThrow(message);
  });

  it('refuses an image that is too short for a header', async () => {
    for (const length of [0, 6, 591]) {
      const cut = openImage(image.subarray(0, length));
      await expect(cut).rejects.toThrow('Volume is not in LUKS format');
    }
  });

  it('refuses an image that ends before its payload', async () => {
    await expect(openImage(image.subarray(0, 4096))).rejects.toThrow(
      'LUKS payload starts at 2068480, past the end at 4096',
    );
  });

  it.each([
    [{ ivGenerator: 'essiv', ivHash: 'sha1' }, 'No AES cipher with key size 20 available'],
    [{ algorithm: 'aes-192', mode: 'cbc' }, 'aes-192 with cbc is not for new images'],
    [{ iterTimeMs: 0 }, 'iter-time must be larger than 0'],
    [{ size: Number.MAX_SAFE_INTEGER }, 'The requested file size is too large'],
  ] as const)('is not made with %j', async (options, message) => {
    await expect(luksImage({ size: SIZE, ...options })).rejects.toThrow(message);
  });
});
