// SPDX-License-Identifier: MIT
/** `diskferry img snapshot` and qemu-img on the same images, in turn. */
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { diskferry } from '../support/diskferry.js';
import { tryPeer } from '../support/peers.js';
import { testScope } from '../support/temp.js';

const img = (...args: string[]) => diskferry(['img', ...args]);

async function qemu(tool: 'qemu-img' | 'qemu-io', ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await tryPeer(tool, args);
  expect({ args, code, stderr }).toEqual({ args, code: 0, stderr: '' });
  return stdout;
}

async function ours(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await img(...args);
  expect({ args, code, stderr }).toEqual({ args, code: 0, stderr: '' });
  return stdout;
}

/** Fails for leaks as well as for corruption. */
const sound = (path: string) => qemu('qemu-img', 'check', path);

async function write(path: string, ...commands: string[]): Promise<void> {
  await qemu('qemu-io', ...commands.flatMap((command) => ['-c', command]), path);
}

async function content(path: string, scratch: string): Promise<Buffer> {
  await qemu('qemu-img', 'convert', '-O', 'raw', path, scratch);
  return readFile(scratch);
}

const FORMATS: readonly (readonly [name: string, options: string])[] = [
  ['the usual format', 'cluster_size=64k'],
  ['small clusters and wide counts', 'cluster_size=512,refcount_bits=64'],
  ['version 2', 'compat=0.10'],
  ['lazy refcounts', 'lazy_refcounts=on'],
  ['extended L2 entries', 'extended_l2=on,cluster_size=128k'],
  ['counts of four bits', 'refcount_bits=4,cluster_size=4k'],
];

describe('diskferry img snapshot', () => {
  it.each(FORMATS)('makes, applies and deletes snapshots: %s', async (_name, options) => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const path = join(dir, 'a.qcow2');
    const raw = join(dir, 'a.raw');
    await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, path, '8M');
    await write(path, 'write -P 1 0 1M', 'write -P 2 5000k 300k', 'write -z 512k 64k');
    const first = await content(path, raw);
    await ours('snapshot', '-c', 'one', path);
    await sound(path);
    expect((await content(path, raw)).equals(first)).toBe(true);
    await write(path, 'write -P 3 256k 1M', 'discard 5000k 128k', 'write -P 4 7M 64k');
    const second = await content(path, raw);
    await ours('snapshot', '-c', 'two', path);
    await sound(path);
    await write(path, 'write -P 5 0 8M');
    const third = await content(path, raw);
    await ours('snapshot', '-a', 'one', path);
    await sound(path);
    expect((await content(path, raw)).equals(first)).toBe(true);
    // What was written since the last snapshot is gone; the snapshots stay as they were.
    await write(path, 'write -P 6 0 2M');
    await ours('snapshot', '-a', '2', path);
    await sound(path);
    expect((await content(path, raw)).equals(second)).toBe(true);
    expect(third.equals(second)).toBe(false);
    await ours('snapshot', '-d', 'two', path);
    await sound(path);
    expect((await content(path, raw)).equals(second)).toBe(true);
    await qemu('qemu-img', 'snapshot', '-a', 'one', path);
    expect((await content(path, raw)).equals(first)).toBe(true);
    await ours('snapshot', '-d', 'one', path);
    await sound(path);
    expect((await content(path, raw)).equals(first)).toBe(true);
    expect(await ours('snapshot', '-l', path)).toBe('');
  });

  it('lists what qemu-img lists, in its words, and in what info tells', async () => {
    const scope = testScope();
    const path = join(await scope.tempDir(), 'a.qcow2');
    await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', path, '8M');
    await qemu('qemu-img', 'snapshot', '-c', 'theirs', path);
    await ours('snapshot', '-c', 'ours, with a name that is long', path);
    const theirs = await qemu('qemu-img', 'snapshot', '-l', path);
    expect(theirs).toContain('ours, with');
    expect(await ours('snapshot', '-l', path)).toBe(theirs);
    const told = JSON.parse(await ours('info', '--output=json', path));
    const expected = JSON.parse(await qemu('qemu-img', 'info', '--output=json', path));
    expect(told.snapshots).toEqual(expected.snapshots);
    const table = theirs.trimEnd();
    expect(await ours('info', path)).toContain(table);
    expect(await qemu('qemu-img', 'info', path)).toContain(table);
  });

  it('takes snapshots of qemu-img with compressed clusters, and gives back their space', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const path = join(dir, 'a.qcow2');
    const packed = join(dir, 'b.qcow2');
    const raw = join(dir, 'a.raw');
    await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', path, '8M');
    await write(path, 'write -P 7 0 3M');
    await qemu('qemu-img', 'convert', '-c', '-O', 'qcow2', path, packed);
    await qemu('qemu-img', 'snapshot', '-c', 'a', packed);
    const before = await content(packed, raw);
    await ours('snapshot', '-c', 'b', packed);
    await write(packed, 'write -P 8 0 8M');
    await ours('snapshot', '-d', 'a', packed);
    await ours('snapshot', '-a', 'b', packed);
    await sound(packed);
    expect((await content(packed, raw)).equals(before)).toBe(true);
    await ours('snapshot', '-d', 'b', packed);
    await sound(packed);
    expect((await content(packed, raw)).equals(before)).toBe(true);
  });

  it('gives the disk back the size that it had', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const path = join(dir, 'a.qcow2');
    const raw = join(dir, 'a.raw');
    await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', path, '3M');
    await write(path, 'write -P 1 1M 2M');
    const before = await content(path, raw);
    await ours('snapshot', '-c', 'small', path);
    await qemu('qemu-img', 'resize', '-q', path, '64M');
    await write(path, 'write -P 2 60M 4M');
    await ours('snapshot', '-a', 'small', path);
    await sound(path);
    expect((await content(path, raw)).equals(before)).toBe(true);
  });

  it('keeps bitmaps, and does not go back where a bitmap would not tell of it', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const path = join(dir, 'a.qcow2');
    await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', path, '8M');
    await qemu('qemu-img', 'bitmap', '--add', path, 'b');
    await write(path, 'write -P 1 1M 1M');
    const bitmaps = async (): Promise<unknown> => {
      const info = JSON.parse(await qemu('qemu-img', 'info', '--output=json', path));
      return info['format-specific'].data.bitmaps;
    };
    const before = await bitmaps();
    const exported = join(dir, 'b.qcow2');
    await ours('snapshot', '-c', 'one', path);
    await sound(path);
    await write(path, 'write -P 2 1M 1M');
    const { code, stderr } = await img('snapshot', '-a', 'one', path);
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: "diskferry: Could not apply snapshot 'one': Device has active dirty bitmaps\n",
    });
    await ours('snapshot', '-d', 'one', path);
    await sound(path);
    expect(await bitmaps()).toEqual(before);
    // The bitmap can be read: merging takes only sound ones.
    await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', exported, '8M');
    await qemu(
      'qemu-img',
      'bitmap',
      '--add',
      '--merge',
      'b',
      '-b',
      path,
      '-F',
      'qcow2',
      exported,
      'c',
    );
  });

  it('does not go back to a disk that is larger than any disk can be', async () => {
    const scope = testScope();
    const path = join(await scope.tempDir(), 'a.qcow2');
    await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=2M', path, '8M');
    await qemu('qemu-img', 'snapshot', '-c', 'one', path);
    const image = await readFile(path);
    // The second field of the extra data, which follows the fixed part of the table's first entry.
    const table = Number(image.readBigUInt64BE(64));
    image.writeBigUInt64BE(2n ** 60n, table + 48);
    await writeFile(path, image);
    const { code, stderr } = await img('snapshot', '-a', 'one', path);
    expect(code).toBe(1);
    expect(stderr).toContain(`Snapshot '1' says that its disk has ${2n ** 60n} bytes`);
    expect(JSON.parse(await ours('info', '--output=json', path))['virtual-size']).toBe(8 << 20);
  });

  it('leaves an image as it was when it refuses', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const path = join(dir, 'a.qcow2');
    await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'refcount_bits=1', path, '8M');
    await write(path, 'write -P 1 0 1M');
    const copy = join(dir, 'copy.qcow2');
    await copyFile(path, copy);
    for (const [args, text] of [
      [['-c', 'one'], "Could not create snapshot 'one'"],
      [['-c', 'x'.repeat(256)], 'more than 255 bytes'],
      [['-a', 'one'], "Could not apply snapshot 'one'"],
      [['-d', 'one'], "Could not delete snapshot 'one': snapshot not found"],
      [['-l', '-d', 'one'], 'Cannot mix'],
    ] as const) {
      const { code, stdout, stderr } = await img('snapshot', ...args, path);
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
      expect(stderr).toContain(text);
      await sound(path);
      await qemu('qemu-img', 'compare', path, copy);
    }
  });
});
