// SPDX-License-Identifier: MIT
/** `diskferry img convert -c` beside qemu-img's. */
import { existsSync } from 'node:fs';
import { copyFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { diskferry, startDiskferry } from '../support/diskferry.js';
import { patternBytes } from '../support/images.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { createImage, expectEqual, expectSound, KIB, MIB, qemuContent } from '../support/qcow2.js';
import { testScope } from '../support/temp.js';

/** Words, noise and holes, to an end that is no cluster's. */
function words(): Buffer {
  const content = Buffer.alloc(9 * MIB + 1536);
  for (let at = 0; at < 4 * MIB; at += 16) content.write(`${at} words in a row`.slice(0, 16), at);
  patternBytes(700_000, 1).copy(content, 5 * MIB);
  content.write('the end', content.byteLength - 7);
  return content;
}

async function source(): Promise<{ path: (name: string) => string; content: Buffer }> {
  const dir = await testScope().tempDir();
  const content = words();
  await writeFile(join(dir, 'raw'), content);
  return { path: (name) => join(dir, name), content };
}

const convert = (...args: string[]) => diskferry(['img', 'convert', '-c', ...args]);

describe('diskferry img convert -c', () => {
  it.each([
    'compression_type=zlib',
    'compression_type=zstd',
    'cluster_size=2M',
    'cluster_size=512,compression_type=zstd',
    'compat=0.10',
  ])(
    'makes an image that is sound and not much larger than qemu-img makes it: %s',
    async (options) => {
      const { path, content } = await source();
      const args = ['-W', '-m', '4', '-f', 'raw', '-O', 'qcow2', '-o', options, path('raw')];
      expect(await convert(...args, path('ours'))).toMatchObject({ code: 0 });
      await runPeer('qemu-img', ['convert', '-c', ...args, path('theirs')]);
      await expectSound(path('ours'));
      expectEqual(await qemuContent(path('ours'), path('out')), content);
      const [ours, theirs] = [await stat(path('ours')), await stat(path('theirs'))];
      expect(ours.size).toBeLessThan(1.1 * theirs.size + 4 * MIB);
      expect(ours.size % 512).toBe(0);
      await diskferry(['img', 'convert', '-O', 'raw', path('theirs'), path('back')]);
      expect(await tryPeer('cmp', [path('back'), path('raw')])).toMatchObject({ code: 0 });
    },
  );

  it('fills an image that is there, larger and with old data in it', async () => {
    const { path, content } = await source();
    await createImage(path('image'), 12 * MIB);
    await runPeer('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 0 12M', path('image')]);
    const done = await convert('-n', '-f', 'raw', '-O', 'qcow2', path('raw'), path('image'));
    expect(done).toMatchObject({ code: 0 });
    await expectSound(path('image'));
    const expected = Buffer.alloc(12 * MIB, 7);
    content.copy(expected);
    expectEqual(await qemuContent(path('image'), path('out')), expected);
  });

  it('refuses what qemu-img refuses, before it makes anything', async () => {
    const { path } = await source();
    for (const args of [
      ['-O', 'raw'],
      ['-O', 'qcow2', '-o', 'preallocation=metadata'],
    ]) {
      const ours = await convert(...args, path('raw'), path('new'));
      const theirs = await tryPeer('qemu-img', [
        'convert',
        '-c',
        ...args,
        path('raw'),
        path('new'),
      ]);
      expect(ours.code).toBe(1);
      const text = theirs.stderr.replace(/^qemu-img: /, '').trim();
      expect(text).toMatch(/^Compression /);
      expect(ours.stderr).toContain(text);
      expect(existsSync(path('new'))).toBe(false);
    }
    await writeFile(path('raw-target'), Buffer.alloc(10 * MIB));
    const there = await convert('-n', '-O', 'raw', path('raw'), path('raw-target'));
    expect(there.stderr).toContain('Compression not supported for this file format');
  });

  it('that is killed at any moment leaves an image without corruption', async () => {
    const { path } = await source();
    for (let nth = 0; nth < 6; nth++) {
      await createImage(path('image'), 12 * MIB, 'compression_type=zstd');
      const size = (await stat(path('image'))).size;
      const running = startDiskferry([
        ...['img', 'convert', '-c', '-n', '-t', 'writeback', '-r', '8M'],
        ...['-f', 'raw', '-O', 'qcow2', path('raw'), path('image')],
      ]);
      const ended = new Promise((resolve) => running.once('exit', resolve));
      const grown = size + nth * 200 * KIB;
      for (;;) {
        if (running.exitCode !== null || (await stat(path('image'))).size > grown) break;
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      running.kill('SIGKILL');
      await ended;
      await copyFile(path('image'), path('left'));
      const { code, stdout } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', path('left')]);
      // 3: leaks, nothing worse.
      expect([0, 3], stdout).toContain(code);
    }
  });
});
