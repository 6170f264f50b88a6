// SPDX-License-Identifier: MIT
/** `diskferry img` beside qemu-img on the same images. */
import { copyFile, open, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { diskferry } from '../support/diskferry.js';
import { MIB, makeImage } from '../support/images.js';
import { tryPeer } from '../support/peers.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const img = (...args: string[]) => diskferry(['img', ...args]);
const qemuImg = (...args: string[]) => tryPeer('qemu-img', args);

/** A file with data and holes, neither of which end at round offsets. */
async function sparseImage(path: string): Promise<string> {
  await makeImage(path, {
    size: 8 * MIB + 1536,
    data: [
      { offset: 4096, length: 70_000 },
      { offset: 3 * MIB, length: 2 * MIB },
    ],
    seed: 5,
  });
  return path;
}

describe('diskferry img info', () => {
  it('says of a raw image what qemu-img says, for people and for programs', async () => {
    const scope = testScope();
    const path = await sparseImage(join(await scope.tempDir(), 'a.img'));
    const ours = await img('info', '-f', 'raw', path);
    const theirs = await qemuImg('info', '-f', 'raw', path);
    expect(ours).toMatchObject({ code: 0, stdout: theirs.stdout });
    const json = await img('info', '--output=json', path);
    const reference = await qemuImg('info', '--output=json', path);
    expect(JSON.parse(json.stdout)).toEqual(JSON.parse(reference.stdout));
  });

  it('takes exports for images', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: 3 * MIB });
    const { stdout } = await img('info', '--output=json', served.uri);
    expect(JSON.parse(stdout)).toMatchObject({ format: 'raw', 'virtual-size': 3 * MIB });
  });

  it('refuses by name a format that it does not know, a file or an option that is not there', async () => {
    const scope = testScope();
    const path = join(await scope.tempDir(), 'a.vmdk');
    await writeFile(path, Buffer.concat([Buffer.from('KDMV'), Buffer.alloc(4096)]));
    for (const [args, text] of [
      [['info', path], "Unknown driver 'vmdk'"],
      [['info', `${path}.none`], 'No such file or directory'],
      [['info', '--frob', path], "'--frob'"],
      [['info', '--output=xml', path], 'human or json'],
      [['info'], 'Expecting one image file name'],
      [['info', path, path], 'Unexpected argument'],
      [['frobnicate'], "no command 'frobnicate'"],
    ] as const) {
      const { code, stdout, stderr } = await img(...args);
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
      expect(stderr).toContain(text);
    }
  });
});

describe('diskferry img map', () => {
  it('shows the extents that qemu-img shows', async () => {
    const scope = testScope();
    const path = await sparseImage(join(await scope.tempDir(), 'a.img'));
    expect((await img('map', path)).stdout).toBe((await qemuImg('map', path)).stdout);
    for (const range of [[], ['--start-offset=3000k', '--max-length=512k']]) {
      const ours = JSON.parse((await img('map', '--output=json', ...range, path)).stdout);
      const theirs = JSON.parse((await qemuImg('map', '--output=json', ...range, path)).stdout);
      const plain = ours.map(({ compressed, ...entry }: { compressed: boolean }) => entry);
      expect(ours.every(({ compressed }: { compressed: boolean }) => !compressed)).toBe(true);
      expect(plain).toEqual(theirs);
    }
  });
});

describe('diskferry img compare', () => {
  it('finds what qemu-img finds, with the same words and status', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const [a, equal, other, longer, none] = ['a', 'equal', 'other', 'longer', 'none'].map((name) =>
      join(dir, name),
    ) as [string, string, string, string, string];
    await sparseImage(a);
    await writeFile(equal, await readFile(a)); // the same bytes without holes
    await copyFile(a, other);
    const file = await open(other, 'r+');
    await file.write(Buffer.from([1]), 0, 1, 7 * MIB + 777);
    await file.close();
    await copyFile(a, longer);
    await truncate(longer, 9 * MIB);
    for (const words of [
      [a, a],
      [a, equal],
      [a, other],
      [other, a],
      [a, longer],
      [longer, a],
      [other, longer],
      ['-s', a, longer],
      ['-q', a, other],
      [a, none],
    ]) {
      const options = ['compare', '-f', 'raw', '-F', 'raw', ...words];
      const theirs = await qemuImg(...options);
      const ours = await img(...options);
      expect([words, ours.code, ours.stdout]).toEqual([words, theirs.code, theirs.stdout]);
    }
  });
});

describe('diskferry img resize', () => {
  it('grows and shrinks, absolutely and by so much', async () => {
    const scope = testScope();
    const path = await sparseImage(join(await scope.tempDir(), 'a.img'));
    const before = await readFile(path);
    for (const [size, options] of [
      ['+1M', []],
      ['20M', ['--preallocation=falloc']],
      ['-4M', ['--shrink']],
      ['8M', ['--shrink', '-q']],
    ] as const) {
      const { code, stderr } = await img('resize', '-f', 'raw', ...options, path, size);
      expect({ size, code, stderr }).toEqual({ size, code: 0, stderr: '' });
      const { size: bytes, blocks } = await stat(path);
      if (size === '+1M') expect(bytes).toBe(before.byteLength + MIB);
      if (size === '20M') expect([bytes, blocks * 512 > 10 * MIB]).toEqual([20 * MIB, true]);
      if (size === '-4M') expect(bytes).toBe(16 * MIB);
    }
    const after = await readFile(path);
    expect(after.equals(before.subarray(0, 8 * MIB))).toBe(true);
    const refused = await img('resize', '-f', 'raw', path, '1M');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('--shrink');
    expect((await stat(path)).size).toBe(8 * MIB);
  });
});

describe('diskferry img create', () => {
  it('makes raw images of a size, with their space taken where that is asked for', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const plain = join(dir, 'plain');
    const made = await img('create', '-f', 'raw', plain, '3M');
    expect(made).toMatchObject({ code: 0, stderr: '' });
    expect(await stat(plain)).toMatchObject({ size: 3 * MIB, blocks: 0 });
    const full = join(dir, 'full');
    await img('create', '-q', '-o', 'preallocation=falloc', full, '3M');
    expect((await stat(full)).blocks * 512).toBeGreaterThanOrEqual(3 * MIB);
  });

  it('refuses what it does not know before it makes anything', async () => {
    const scope = testScope();
    const path = join(await scope.tempDir(), 'a.img');
    for (const [args, text] of [
      [['-o', 'cluster_size=4k', path, '1M'], 'cluster-size'],
      [['-f', 'vdi', path, '1M'], "Unknown file format 'vdi'"],
      [['-b', '/x', '-F', 'raw', path, '1M'], '/x'],
      [[path], 'needs a size'],
      [[path, '-1'], "'-1'"],
    ] as const) {
      const { code, stderr } = await img('create', ...args);
      expect(code).toBe(1);
      expect(stderr).toContain(text);
      await expect(stat(path)).rejects.toThrow('ENOENT');
    }
  });
});

describe('diskferry img convert', () => {
  it('copies the content, and leaves holes where there are zeroes', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const source = await sparseImage(join(dir, 'a.img'));
    const dense = join(dir, 'dense.img');
    await writeFile(dense, await readFile(source)); // zeroes where the other has holes
    for (const from of [source, dense]) {
      const to = `${from}.out`;
      const theirs = `${from}.ref`;
      expect(await img('convert', '-f', 'raw', '-O', 'raw', from, to)).toMatchObject({ code: 0 });
      await qemuImg('convert', '-f', 'raw', '-O', 'raw', from, theirs);
      expect((await readFile(to)).equals(await readFile(source))).toBe(true);
      expect((await stat(to)).blocks).toBeLessThanOrEqual((await stat(theirs)).blocks);
    }
    const filled = join(dir, 'filled.img');
    await img('convert', '-S', '0', source, filled);
    expect((await readFile(filled)).equals(await readFile(source))).toBe(true);
    expect((await stat(filled)).blocks * 512).toBeGreaterThanOrEqual(8 * MIB);
  });

  it('writes into exports, and over what an image had before', async () => {
    const scope = testScope();
    const target = await serveImage(scope, {
      size: 8 * MIB + 1536,
      data: [{ offset: MIB, length: 6 * MIB }],
    });
    const source = await sparseImage(join(target.dir, 'a.img'));
    const done = await img('convert', '-n', '-O', 'raw', source, target.uri);
    expect(done).toMatchObject({ code: 0, stderr: '' });
    expect((await readFile(target.path)).equals(await readFile(source))).toBe(true);
  });

  it('refuses a target that is too small, and one that is the source', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const source = await sparseImage(join(dir, 'a.img'));
    const before = await readFile(source);
    const small = join(dir, 'small.img');
    await img('create', '-q', small, '1M');
    const refused = await img('convert', '-n', source, small);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('smaller');
    const itself = await img('convert', source, source);
    expect(itself.code).toBe(1);
    expect((await readFile(source)).equals(before)).toBe(true);
  });
});

describe('diskferry img dd', () => {
  it('copies the blocks that qemu-img copies', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const source = await sparseImage(join(dir, 'a.img'));
    for (const words of [
      [],
      ['bs=1M', 'count=4', 'skip=3'],
      ['bs=700', 'skip=5'],
      ['bs=64k', 'count=1000'],
      ['bs=1M', 'skip=100'],
      ['bs=1M', 'count=1', 'skip=2'],
    ]) {
      const ours = join(dir, `ours${words.join('')}`);
      const theirs = join(dir, `theirs${words.join('')}`);
      const options = ['dd', '-f', 'raw', '-O', 'raw', ...words, `if=${source}`];
      const { stderr } = await qemuImg(...options, `of=${theirs}`);
      const said = stderr.replace('qemu-img:', 'diskferry:');
      expect(await img(...options, `of=${ours}`)).toMatchObject({ code: 0, stderr: said });
      // qemu-img makes the target a whole number of sectors.
      const reference = (await readFile(theirs)).subarray(0, (await stat(ours)).size);
      expect((await readFile(ours)).equals(reference)).toBe(true);
      expect((await stat(theirs)).size - reference.byteLength).toBeLessThan(512);
    }
  });
});
