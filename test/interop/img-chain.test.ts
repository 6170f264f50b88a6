// SPDX-License-Identifier: MIT
/** `diskferry img rebase`, `commit` and `convert` on chains that qemu-img made, and asked again. */
import { copyFile, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { diskferry } from '../support/diskferry.js';
import { tryPeer } from '../support/peers.js';
import { testScope } from '../support/temp.js';

async function qemu(tool: 'qemu-img' | 'qemu-io', ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await tryPeer(tool, args);
  expect({ args, code, stderr }).toEqual({ args, code: 0, stderr: '' });
  return stdout;
}

async function ours(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await diskferry(['img', ...args]);
  expect({ args, code, stderr }).toEqual({ args, code: 0, stderr: '' });
  return stdout;
}

const io = (path: string, ...commands: string[]) =>
  qemu('qemu-io', ...commands.flatMap((command) => ['-c', command]), path);

interface Chain {
  readonly at: (name: string) => string;
  /** The content of c.qcow2, at the start. */
  readonly content: Buffer;
}

/** c on b on a, each of another size; n is like a, here and there. */
async function makeChain(options = 'cluster_size=64k'): Promise<Chain> {
  const dir = await testScope().tempDir();
  const at = (name: string): string => join(dir, name);
  const make = (...args: string[]) => qemu('qemu-img', 'create', '-q', '-f', 'qcow2', ...args);
  const below = (name: string): string[] => ['-b', at(name), '-F', 'qcow2', '-o', options];
  await make(at('a.qcow2'), '20M');
  await io(at('a.qcow2'), 'write -P 1 0 5M', 'write -P 2 18M 1M');
  await make(...below('a.qcow2'), at('b.qcow2'), '16M');
  await io(at('b.qcow2'), 'write -P 3 1M 100k', 'write -z 2M 1M', 'write -P 5 12M 3k');
  await make(...below('b.qcow2'), at('c.qcow2'), '24M');
  await io(at('c.qcow2'), 'write -P 6 4M 64k', 'write -P 4 23M 64k', 'write -z 0 4k');
  await make(at('n.qcow2'), '22M');
  await io(at('n.qcow2'), 'write -P 1 0 3M', 'write -P 9 10M 1000k', 'write -P 7 17M 1M');
  await qemu('qemu-img', 'convert', '-O', 'raw', at('c.qcow2'), at('c.raw'));
  return { at, content: await readFile(at('c.raw')) };
}

async function contentOf(path: string): Promise<Buffer> {
  await qemu('qemu-img', 'convert', '-O', 'raw', path, `${path}.now`);
  return readFile(`${path}.now`);
}

const backingOf = async (path: string): Promise<unknown> =>
  (JSON.parse(await qemu('qemu-img', 'info', '--output=json', path)) as Record<string, unknown>)[
    'backing-filename'
  ];

const FORMATS = ['cluster_size=64k', 'cluster_size=512', 'extended_l2=on', 'compat=0.10'];

describe('diskferry img rebase', () => {
  it.each(FORMATS)('keeps the content on another backing file: %s', async (options) => {
    const { at, content } = await makeChain(options);
    const c = at('c.qcow2');
    for (const base of [at('n.qcow2'), at('a.qcow2'), '']) {
      await ours('rebase', '-b', base, ...(base === '' ? [] : ['-F', 'qcow2']), c);
      expect((await contentOf(c)).equals(content)).toBe(true);
      expect(await backingOf(c)).toBe(base === '' ? undefined : base);
      await qemu('qemu-img', 'check', c);
    }
  });

  it('writes nothing where the new backing file is in the chain already, and shows the same', async () => {
    const { at, content } = await makeChain();
    await ours('rebase', '-b', at('a.qcow2'), '-F', 'qcow2', at('b.qcow2'));
    await copyFile(at('a.qcow2'), at('same.qcow2'));
    const before = await stat(at('b.qcow2'));
    await ours('rebase', '-b', at('same.qcow2'), '-F', 'qcow2', at('b.qcow2'));
    expect((await stat(at('b.qcow2'))).size).toBe(before.size);
    expect((await contentOf(at('c.qcow2'))).equals(content)).toBe(true);
  });

  it('changes the name alone with -u, though the old file is gone', async () => {
    const { at } = await makeChain();
    await ours('rebase', '-u', '-b', '/nowhere/x.qcow2', '-F', 'qcow2', at('c.qcow2'));
    expect(await backingOf(at('c.qcow2'))).toBe('/nowhere/x.qcow2');
    await ours('rebase', '-u', at('c.qcow2'));
    expect(await backingOf(at('c.qcow2'))).toBeUndefined();
  });

  it('refuses what qemu-img refuses, and leaves all as it was', async () => {
    const { at } = await makeChain();
    const c = at('c.qcow2');
    const bytes = await readFile(c);
    for (const args of [
      [c],
      ['-b', at('n.qcow2'), c],
      ['-b', at('absent.qcow2'), '-F', 'qcow2', c],
      ['-b', at('n.qcow2'), '-F', 'nothing', c],
      ['-b', c, '-F', 'qcow2', c],
      ['-b', at('n.qcow2'), '-F', 'qcow2', at('c.raw')],
    ]) {
      const refused = await diskferry(['img', 'rebase', ...args]);
      expect({ args, code: refused.code, stdout: refused.stdout }).toEqual({
        args,
        code: 1,
        stdout: '',
      });
      expect((await readFile(c)).equals(bytes)).toBe(true);
    }
  });
});

describe('diskferry img commit', () => {
  it.each(FORMATS)('brings all down and empties the image: %s', async (options) => {
    const { at, content } = await makeChain(options);
    expect(await ours('commit', at('c.qcow2'))).toBe('Image committed.\n');
    expect((await contentOf(at('c.qcow2'))).equals(content)).toBe(true);
    expect((await contentOf(at('b.qcow2'))).equals(content)).toBe(true);
    const map = await qemu('qemu-img', 'map', '--output=json', at('c.qcow2'));
    expect((JSON.parse(map) as { depth: number }[]).every(({ depth }) => depth > 0)).toBe(true);
    for (const name of ['b.qcow2', 'c.qcow2']) await qemu('qemu-img', 'check', at(name));
  });

  it('leaves the image as it is with -d', async () => {
    const { at, content } = await makeChain();
    const bytes = await readFile(at('c.qcow2'));
    await ours('commit', '-q', '-d', at('c.qcow2'));
    expect((await readFile(at('c.qcow2'))).equals(bytes)).toBe(true);
    expect((await contentOf(at('b.qcow2'))).equals(content)).toBe(true);
  });

  it('brings several layers down into one that is named', async () => {
    const { at, content } = await makeChain();
    await ours('commit', '-b', at('a.qcow2'), at('c.qcow2'));
    expect((await contentOf(at('a.qcow2'))).equals(content)).toBe(true);
    expect((await contentOf(at('c.qcow2'))).equals(content)).toBe(true);
    await qemu('qemu-img', 'check', at('a.qcow2'));
  });

  it('keeps what snapshots inside the image have', async () => {
    const { at, content } = await makeChain();
    await qemu('qemu-img', 'snapshot', '-c', 'one', at('c.qcow2'));
    await io(at('c.qcow2'), 'write -P 8 5M 1M');
    await ours('commit', at('c.qcow2'));
    await qemu('qemu-img', 'check', at('c.qcow2'));
    expect(content.subarray(0, 4096).equals(Buffer.alloc(4096))).toBe(true);
    await ours('convert', '-l', 'one', '-O', 'raw', at('c.qcow2'), at('one.raw'));
    const one = await readFile(at('one.raw'));
    // What the snapshot had itself; the layer below has changed.
    for (const [from, to] of [
      [0, 4096],
      [0x400000, 0x410000],
      [0x1700000, 0x1710000],
    ] as const) {
      expect(one.subarray(from, to).equals(content.subarray(from, to))).toBe(true);
    }
  });

  it('refuses an image without a backing file, and a base that is not below', async () => {
    const { at } = await makeChain();
    const cases = [
      [[at('a.qcow2')], 'Image does not have a backing file'],
      [['-b', at('n.qcow2'), at('c.qcow2')], 'Did not find'],
    ] as const;
    for (const [args, text] of cases) {
      const refused = await diskferry(['img', 'commit', ...args]);
      expect({ code: refused.code, stdout: refused.stdout }).toEqual({ code: 1, stdout: '' });
      expect(refused.stderr).toContain(text);
      expect((await tryPeer('qemu-img', ['commit', ...args])).code).toBe(1);
    }
  });
});

describe('diskferry img convert', () => {
  it('leaves to the backing file of the new image what only that of the old one has', async () => {
    const { at, content } = await makeChain();
    const target = at('new.qcow2');
    await ours('convert', '-O', 'qcow2', '-B', at('b.qcow2'), '-F', 'qcow2', at('c.qcow2'), target);
    expect((await contentOf(target)).equals(content)).toBe(true);
    expect(await backingOf(target)).toBe(at('b.qcow2'));
    expect((await stat(target)).size).toBeLessThan(1_000_000);
    await qemu('qemu-img', 'check', target);
  });

  it('reads a snapshot inside an image, by name, id, or both', async () => {
    const { at } = await makeChain();
    const a = at('a.qcow2');
    const before = await contentOf(a);
    await qemu('qemu-img', 'snapshot', '-c', 'one', a);
    await io(a, 'write -P 9 0 10M');
    for (const which of ['one', '1', 'snapshot.name=one', 'snapshot.id=1,snapshot.name=one']) {
      await ours('convert', '-O', 'raw', '-l', which, a, at('one.raw'));
      expect((await readFile(at('one.raw'))).equals(before)).toBe(true);
    }
    const absent = await diskferry(['img', 'convert', '-l', 'two', a, at('two.raw')]);
    expect(absent.code).toBe(1);
    expect(absent.stderr).toContain("Failed to load snapshot: Can't find snapshot");
    expect(await readdir(join(a, '..'))).not.toContain('two.raw');
  });

  it('joins several images into one, as qemu-img does', async () => {
    const { at } = await makeChain();
    await writeFile(at('odd.raw'), Buffer.alloc(70_000 * 512, 'odd'));
    const inputs = [at('n.qcow2'), at('odd.raw'), at('c.qcow2')];
    await ours('convert', '-O', 'qcow2', ...inputs, at('ours.qcow2'));
    await qemu('qemu-img', 'convert', '-O', 'raw', ...inputs, at('theirs.raw'));
    await qemu(
      'qemu-img',
      'compare',
      '-f',
      'qcow2',
      '-F',
      'raw',
      at('ours.qcow2'),
      at('theirs.raw'),
    );
  });

  it('saves what can be read of a broken image with --salvage, as qemu-img does', async () => {
    const { at } = await makeChain();
    const path = at('broken.qcow2');
    await qemu('qemu-img', 'convert', '-c', '-O', 'qcow2', at('a.qcow2'), path);
    const bytes = await readFile(path);
    const l2 = Number(
      bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0xff_ffff_ffff_fe00n,
    );
    bytes.writeBigUInt64BE((bytes.readBigUInt64BE(l2 + 24) & ~0x3f_ffff_ffffn) | 100n, l2 + 24);
    await writeFile(path, bytes);
    const target = at('saved.raw');
    expect((await diskferry(['img', 'convert', '-O', 'raw', path, target])).code).toBe(1);
    const saved = await diskferry(['img', 'convert', '--salvage', '-O', 'raw', path, target]);
    expect(saved.code).toBe(0);
    expect(saved.stderr).toContain('warning: error while reading offset 196608: ');
    const theirs = await tryPeer('qemu-img', [
      'convert',
      '--salvage',
      '-O',
      'raw',
      path,
      at('q.raw'),
    ]);
    expect(theirs.code).toBe(0);
    expect((await readFile(target)).equals(await readFile(at('q.raw')))).toBe(true);
  });
});
