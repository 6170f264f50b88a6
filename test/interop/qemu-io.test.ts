// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { allocatedBytes, KIB, MIB, readRange } from '../support/images.js';
import { runPeer } from '../support/peers.js';
import { type ServedImage, serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const SIZE = 16 * MIB;

/** qemu-io says "Pattern verification failed" and still exits 0 in some releases; look at both. */
async function qemuIo(disk: ServedImage, commands: readonly string[]): Promise<string> {
  const args = commands.flatMap((command) => ['-c', command]);
  const { stdout, stderr } = await runPeer('qemu-io', ['-f', 'raw', ...args, disk.uri]);
  expect(stdout + stderr).not.toMatch(/verification failed|error/i);
  return stdout;
}

async function expectFilled(disk: ServedImage, offset: number, length: number, byte: number) {
  const bytes = await readRange(disk.path, offset, length);
  expect(bytes.equals(Buffer.alloc(length, byte)), `bytes at ${offset}`).toBe(true);
}

test('patterns that were written read back, here and in the file', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  await qemuIo(disk, [
    'write -P 0x11 0 1M',
    'write -P 0x22 64k 64k',
    'write -f -P 0x33 8M 2M',
    'read -P 0x11 0 64k',
    'read -P 0x22 64k 64k',
    'read -P 0x11 128k 896k',
    'read -P 0x33 8M 2M',
    'read -P 0 1M 7M',
    'flush',
  ]);
  await expectFilled(disk, 0, 64 * KIB, 0x11);
  await expectFilled(disk, 64 * KIB, 64 * KIB, 0x22);
  await expectFilled(disk, 8 * MIB, 2 * MIB, 0x33);
});

test('unaligned requests change only their own bytes', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  await qemuIo(disk, [
    'write -P 0xaa 0 64k',
    'write -P 0xbb 1 511',
    'write -P 0xcc 4095 2',
    'write -z 10001 777',
    'read -P 0xaa 0 1',
    'read -P 0xbb 1 511',
    'read -P 0xaa 512 3583',
    'read -P 0xcc 4095 2',
    'read -P 0xaa 4097 5904',
    'read -P 0 10001 777',
    'read -P 0xaa 10778 50000',
  ]);
  await expectFilled(disk, 1, 511, 0xbb);
  await expectFilled(disk, 4095, 2, 0xcc);
  await expectFilled(disk, 10001, 777, 0);
  await expectFilled(disk, 10778, 65536 - 10778, 0xaa);
});

test('write zeroes clears, and gives storage back where it may', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  await qemuIo(disk, ['write -P 0x77 0 8M', 'write -z 1M 1M', 'write -z -u 4M 4M', 'flush']);
  await expectFilled(disk, 0, MIB, 0x77);
  await expectFilled(disk, MIB, MIB, 0);
  await expectFilled(disk, 2 * MIB, 2 * MIB, 0x77);
  await expectFilled(disk, 4 * MIB, 4 * MIB, 0);
  expect(await allocatedBytes(disk.path)).toBeLessThanOrEqual(4 * MIB + 64 * KIB);
});

test('discard gives storage back, and the range reads as zeroes', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  await qemuIo(disk, ['write -P 0x66 0 8M', 'flush']);
  const before = await allocatedBytes(disk.path);
  await qemuIo(disk, [
    'discard 2M 4M',
    'read -P 0x66 0 2M',
    'read -P 0 2M 4M',
    'read -P 0x66 6M 2M',
  ]);
  expect(before - (await allocatedBytes(disk.path))).toBeGreaterThanOrEqual(4 * MIB);
});

test('a discard that does not keep to the block size gives back the whole blocks inside of it', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, fileOptions: ',cache.direct=on' });
  const stdout = await qemuIo(disk, [
    'write -P 0x66 0 8M',
    'discard 1000 4M',
    'read -P 0x66 0 4k',
    'read -P 0 4k 4092k',
    'read -P 0x66 4M 4M',
  ]);
  expect(stdout).toContain('discard 4194304/4194304 bytes at offset 1000');
});

test('many requests in flight at once all land', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const writes = Array.from({ length: 64 }, (_, i) => `aio_write -P ${i + 1} ${i * 64}k 64k`);
  const reads = Array.from({ length: 64 }, (_, i) => `aio_read -P ${i + 1} ${i * 64}k 64k`);
  await qemuIo(disk, [...writes, 'aio_flush', ...reads, 'aio_flush']);
  for (let i = 0; i < 64; i++) await expectFilled(disk, i * 64 * KIB, 64 * KIB, i + 1);
});

test('a vector of buffers is written and read in order', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  await qemuIo(disk, ['writev -P 0x42 3k 1k 2k 3k 512', 'readv -P 0x42 3k 512 3k 2k 1k']);
  await expectFilled(disk, 3 * KIB, 6 * KIB + 512, 0x42);
});
