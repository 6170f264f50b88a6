// SPDX-License-Identifier: MIT
/** Images whose format is not told: what qemu-img does not take for raw, we don't. */
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { diskferry } from '../support/diskferry.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { TargetServer } from '../support/target-server.js';
import { testScope } from '../support/temp.js';

const MIB = 1024 * 1024;
const FORMAT = /^(?:file format: (.*)|.*(Unsupported qcow2 version \d+))$/m;

async function makeFile(text: string, length = MIB): Promise<{ dir: string; path: string }> {
  const dir = await testScope().tempDir();
  const path = join(dir, 'image');
  const bytes = Buffer.alloc(Math.max(length, text.length));
  bytes.write(text, 'latin1');
  await writeFile(path, bytes);
  return { dir, path };
}

/** An overlay that does not note the format of its backing file, as old ones don't. */
async function makeOverlay(dir: string, backing: string): Promise<string> {
  const path = join(dir, 'top');
  const create = ['create', '-q', '-f', 'qcow2', '-u', '-b', backing, '-F', 'raw', path, '1M'];
  await runPeer('qemu-img', create);
  const image = await readFile(path);
  const at = image.indexOf(Buffer.from([0xe2, 0x79, 0x2a, 0xca]));
  // Of a type that nobody knows it counts for nothing.
  image.writeUInt32BE(0x12345678, at);
  await writeFile(path, image);
  return path;
}

async function formatBy(run: typeof diskferry, path: string): Promise<string> {
  const { stdout, stderr } = await run(['info', path]);
  const found = FORMAT.exec(stdout + stderr);
  return found?.[1] ?? found?.[2] ?? 'refused';
}

const ours: typeof diskferry = (args) => diskferry(['img', ...args]);
const qemu: typeof diskferry = (args) => tryPeer('qemu-img', args);

describe('an image whose format is not told', () => {
  it.each([
    ['QFI\xfb\0\0\0\x09', 'Unsupported qcow2 version 9'],
    ['QFI\xfb\xff\xff\xff\xff', 'Unsupported qcow2 version 4294967295'],
    ['QFI\xfb\0\0\0\x01', 'refused'],
    ['QFI\xfb\0\0\0\0', 'raw'],
    ['LUKS\xba\xbe\0\x02', 'raw'],
    ['# Disk DescriptorFile\nversion=1\n', 'refused'],
    ['# Disk DescriptorFile\nversion=4\n', 'raw'],
    ['KDMV', 'refused'],
  ])('%j is what it is to qemu-img: %s', async (text, format) => {
    for (const length of [0, MIB]) {
      const { path } = await makeFile(text, length);
      expect(await formatBy(qemu, path)).toBe(format);
      expect(await formatBy(ours, path)).toBe(format);
    }
  });

  it('is not copied as it stands when nobody knows its version', async () => {
    const { dir, path } = await makeFile('QFI\xfb\0\0\0\x09');
    const copy = await ours(['convert', '-O', 'raw', path, join(dir, 'copy')]);
    expect(copy).toMatchObject({ code: 1 });
    expect(copy.stderr).toContain('Unsupported qcow2 version 9');
  });

  it.each([
    ['QFI\xfb\0\0\0\x09', 'Unsupported qcow2 version 9'],
    ['QFI\xfb\0\0\0\x01', "Unknown driver 'qcow'"],
    ['KDMV', "Unknown driver 'vmdk'"],
  ])('is no backing file when it is %j', async (text, reason) => {
    const { dir, path } = await makeFile(text);
    const top = await makeOverlay(dir, path);
    const { code, stderr } = await ours(['convert', '-O', 'raw', top, join(dir, 'copy')]);
    expect({ code, stderr }).toEqual({ code: 1, stderr: expect.stringContaining(reason) });
  });

  it('is looked into behind an NBD server, too', async () => {
    const { dir, path } = await makeFile('', 0);
    await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', path, '1M']);
    await runPeer('qemu-io', ['-c', 'write -P 7 64k 4k', path]);
    const server = await TargetServer.start(testScope(), { peer: 'nbdkit', image: path, dir });
    const top = await makeOverlay(dir, `nbd+unix:///disk?socket=${server.socketPath}`);
    expect(await ours(['compare', top, path])).toMatchObject({ code: 0 });
  });
});

describe('an image with an external data file', () => {
  it('is looked at without it, and as large as it is itself', async () => {
    const dir = await testScope().tempDir();
    const path = join(dir, 'image');
    const data = join(dir, 'data');
    const options = ['-o', `data_file=${data}`];
    await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', ...options, path, '4M']);
    await runPeer('qemu-io', ['-c', 'write 0 3M', path]);
    const wanted = await qemu(['info', path]);
    expect((await ours(['info', path])).stdout).toBe(wanted.stdout);
    await rm(data);
    expect(await ours(['info', path])).toMatchObject({ code: 0, stdout: wanted.stdout });
    const read = await ours(['convert', '-O', 'raw', path, join(dir, 'copy')]);
    expect(read).toMatchObject({ code: 1 });
    expect(read.stderr).toContain(`Could not open '${data}'`);
  });
});
