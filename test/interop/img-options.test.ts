// SPDX-License-Identifier: MIT
/** Options of `diskferry img` that new and existing images have in common with qemu-img's. */
import { mkdir, readdir, readFile, rename, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { diskferry } from '../support/diskferry.js';
import { tryPeer } from '../support/peers.js';
import { createImage, KIB, MIB, qemuContent, qemuIo } from '../support/qcow2.js';
import { testScope } from '../support/temp.js';

const img = (...args: string[]) => diskferry(['img', ...args]);
const qemuImg = (...args: string[]) => tryPeer('qemu-img', args);
const infoOf = async (path: string) =>
  JSON.parse((await tryPeer('qemu-img', ['info', '-U', '--output=json', path])).stdout);

async function folders(): Promise<{ ours: string; theirs: string }> {
  const dir = await testScope().tempDir();
  const [ours, theirs] = [join(dir, 'ours'), join(dir, 'theirs')];
  await mkdir(ours);
  await mkdir(theirs);
  return { ours, theirs };
}

describe('sizes', () => {
  for (const size of ['513', '1.3M', '+1k', ' 0x1000']) {
    it(`are what qemu-img takes them for: '${size}'`, async () => {
      const { ours, theirs } = await folders();
      for (const format of ['raw', 'qcow2']) {
        const made = await img('create', '-f', format, join(ours, format), size);
        await tryPeer('qemu-img', ['create', '-f', format, join(theirs, format), size]);
        expect(made).toMatchObject({ code: 0, stderr: '' });
        const [a, b] = [await infoOf(join(ours, format)), await infoOf(join(theirs, format))];
        expect(a['virtual-size']).toBe(b['virtual-size']);
      }
    });
  }

  it('of a file that ends within a sector become whole in a format that counts sectors', async () => {
    const dir = await testScope().tempDir();
    const source = join(dir, 'source');
    const content = Buffer.alloc(5_001_000, 7);
    await writeFile(source, content);
    for (const args of [
      ['convert', '-f', 'raw', '-O', 'qcow2', source, join(dir, 'a')],
      ['convert', '-c', '-f', 'raw', '-O', 'qcow2', source, join(dir, 'a')],
      [
        'dd',
        '-f',
        'raw',
        '-O',
        'qcow2',
        'bs=1000',
        'count=5001',
        `if=${source}`,
        `of=${join(dir, 'a')}`,
      ],
    ]) {
      expect(await img(...args)).toMatchObject({ code: 0, stderr: '' });
      const expected = Buffer.concat([content, Buffer.alloc(216)]);
      expect((await qemuContent(join(dir, 'a'), join(dir, 'raw'))).equals(expected)).toBe(true);
    }
  });

  it('can not become nothing by resize, however that is said', async () => {
    const dir = await testScope().tempDir();
    const path = join(dir, 'a');
    await createImage(path, MIB);
    for (const size of ['0', '-1M', '-2M']) {
      const { code, stderr } = await img('resize', '--shrink', path, size);
      expect([code, stderr]).toEqual([1, expect.stringContaining('must be positive')]);
    }
    expect((await infoOf(path))['virtual-size']).toBe(MIB);
  });
});

describe('options of a new image', () => {
  it('make and fill an external data file', async () => {
    const dir = await testScope().tempDir();
    const base = join(dir, 'base');
    await createImage(base, 4 * MIB);
    await qemuIo(base, ['write -P 5 1M 1M']);
    const expected = await qemuContent(base, join(dir, 'raw'));
    for (const raw of ['off', 'on']) {
      const [path, data] = [join(dir, `a${raw}`), join(dir, `data${raw}`)];
      const option = `data_file=${data},data_file_raw=${raw}`;
      const done = await img('convert', '-O', 'qcow2', '-o', option, base, path);
      expect(done).toMatchObject({ code: 0, stderr: '' });
      const { data: specific } = (await infoOf(path))['format-specific'];
      expect(specific).toMatchObject({ 'data-file': data, 'data-file-raw': raw === 'on' });
      expect((await qemuContent(path, join(dir, 'raw'))).equals(expected)).toBe(true);
      if (raw === 'on') expect((await readFile(data)).equals(expected)).toBe(true);
      expect((await qemuImg('check', path)).code).toBe(0);
    }
  });

  it('of convert may name the backing file, whose data does not show through zeroes', async () => {
    const dir = await testScope().tempDir();
    const [low, mid, top] = [join(dir, 'low'), join(dir, 'mid'), join(dir, 'top')];
    await createImage(low, 2 * MIB);
    await qemuIo(low, ['write -P 1 0 2M']);
    await createImage(mid, 2 * MIB, 'cluster_size=64k', ['-b', low, '-F', 'qcow2']);
    await createImage(top, 2 * MIB, 'cluster_size=64k', ['-b', mid, '-F', 'qcow2']);
    await qemuIo(top, ['write -z 0 128k', 'write -P 2 1M 64k']);
    const target = join(dir, 'target');
    const option = `backing_file=${mid},backing_fmt=qcow2`;
    const done = await img('convert', '-O', 'qcow2', '-o', option, top, target);
    expect(done).toMatchObject({ code: 0, stderr: '' });
    const expected = await qemuContent(top, join(dir, 'raw'));
    expect((await qemuContent(target, join(dir, 'raw'))).equals(expected)).toBe(true);
    const twice = await img(
      'convert',
      '-O',
      'qcow2',
      '-B',
      mid,
      '-F',
      'qcow2',
      '-o',
      option,
      top,
      target,
    );
    expect(twice.code).toBe(1);
  });

  it('are told by help, and nothing is made', async () => {
    const dir = await testScope().tempDir();
    for (const help of ['help', '?', 'cluster_size=4k,help']) {
      const { code, stdout } = await img('create', '-f', 'qcow2', '-o', help, join(dir, 'a'), '1M');
      expect(code).toBe(0);
      for (const name of ['cluster_size=', 'data_file=', 'compat=', 'encrypt.']) {
        expect(stdout).toContain(name);
      }
    }
    const { stdout } = await img('convert', '-O', 'luks', '-o', 'help', 'x', join(dir, 'a'));
    expect(stdout).toContain('key-secret=');
    expect(await readdir(dir)).toEqual([]);
  });

  it('that are refused leave what was there as it was, and nothing new', async () => {
    const dir = await testScope().tempDir();
    const path = join(dir, 'a');
    await createImage(path, MIB);
    const before = await readFile(path);
    const [data, raw] = [`data_file=${path}`, 'data_file_raw=on'];
    for (const [option, more, text] of [
      ['cluster_size=3000', [], 'Cluster size must be a power of two'],
      ['compat=0.10,refcount_bits=8', [], 'Different refcount widths'],
      ['extended_l2=on,cluster_size=4k', [], 'Extended L2 entries'],
      [raw, [], 'data-file-raw requires data-file'],
      [`compat=0.10,data_file=${path}2`, [], 'External data files'],
      [data, [], 'same filename as its data file'],
      ['preallocation=metadata', ['-u', '-b', 'x', '-F', 'raw'], 'Backing file and preallocation'],
      ['encrypt.format=luks', [], "'encrypt.key-secret' is required"],
      ['encryption=on', [], "'encrypt.key-secret' is required"],
      ['encryption=maybe', [], "'encryption' expects"],
      ['size=2M', [], 'must be specified only once'],
      ['file=x', [], "'file' is unexpected"],
      ['foo=1', [], "'foo' is unexpected"],
      ['lazy_refcounts=off', ['-b', path, '-F', 'qcow2'], 'same filename as the backing file'],
      ['lazy_refcounts=off', ['-b', `${dir}/./a`, '-F', 'qcow2'], 'same filename as the backing'],
    ] as const) {
      const { code, stderr } = await img(
        'create',
        '-f',
        'qcow2',
        '-o',
        option,
        ...more,
        path,
        '1M',
      );
      expect({ option, code, stderr }).toEqual({
        option,
        code: 1,
        stderr: expect.stringContaining(text),
      });
      expect((await readFile(path)).equals(before)).toBe(true);
    }
    expect(await readdir(dir)).toEqual(['a']);
    const large = await img(
      'create',
      '-f',
      'qcow2',
      '-o',
      'cluster_size=512',
      join(dir, 'b'),
      '1P',
    );
    expect(large.code).toBe(1);
    expect(await readdir(dir)).toEqual(['a']);
  });

  it('of convert have to be of use', async () => {
    const dir = await testScope().tempDir();
    const [source, target] = [join(dir, 'a'), join(dir, 'b')];
    await createImage(source, MIB);
    await createImage(target, MIB);
    const before = await readFile(target);
    for (const [args, text] of [
      [['-n', '-O', 'qcow2', '-o', 'cluster_size=4k', source, target], '-o has no effect'],
      [['-O', 'qcow2', '-o', 'size=1M', source, target], 'size'],
      [['-t', 'wrong', '-O', 'qcow2', source, target], 'Invalid cache option: wrong'],
      [
        ['-n', '-O', 'qcow2', '--target-image-opts', source, `driver=raw,file.filename=${target}`],
        'only one',
      ],
    ] as const) {
      const { code, stderr } = await img('convert', ...args);
      expect([code, stderr]).toEqual([1, expect.stringContaining(text)]);
      expect((await readFile(target)).equals(before)).toBe(true);
    }
  });
});

describe('--image-opts and json:', () => {
  it('take a file name for what it means, as qemu-img', async () => {
    const dir = await testScope().tempDir();
    const path = join(dir, 'a');
    await createImage(path, MIB);
    for (const args of [
      ['--image-opts', `driver=qcow2,file.filename=${path}`],
      [`json:{"driver":"qcow2","file":{"filename":"${path}"}}`],
    ]) {
      const [ours, theirs] = [await img('info', ...args), await qemuImg('info', ...args)];
      expect(ours).toMatchObject({ code: 0, stdout: theirs.stdout });
    }
  });
});

describe('cache modes', () => {
  it('are all there, on either side', async () => {
    const dir = await testScope().tempDir();
    const source = join(dir, 'a');
    await createImage(source, 4 * MIB);
    await qemuIo(source, ['write -P 9 64k 1M', 'write -z 2M 64k', 'write -P 3 3M 4k']);
    const expected = await qemuContent(source, join(dir, 'raw'));
    for (const mode of ['none', 'writeback', 'writethrough', 'directsync', 'unsafe']) {
      const target = join(dir, mode);
      const args = ['convert', '-t', mode, '-T', mode, '-O', 'qcow2', source, target];
      expect(await img(...args)).toMatchObject({ code: 0, stderr: '' });
      expect((await qemuContent(target, join(dir, 'raw'))).equals(expected)).toBe(true);
    }
    expect((await img('compare', '-T', 'wrong', source, source)).code).toBe(2);
  });

  it('let zeroes be found in runs of up to 16 MiB', async () => {
    const dir = await testScope().tempDir();
    const [source, target] = [join(dir, 'a'), join(dir, 'b')];
    await writeFile(source, Buffer.alloc(4 * MIB, 1));
    const file = await readFile(source);
    file.fill(0, MIB, 2 * MIB);
    await writeFile(source, file);
    for (const [size, blocks] of [
      ['512k', 3 * MIB],
      ['2M', 4 * MIB],
    ] as const) {
      expect(await img('convert', '-f', 'raw', '-S', size, source, target)).toMatchObject({
        code: 0,
      });
      expect((await readFile(target)).equals(file)).toBe(true);
      expect((await stat(target)).blocks * 512).toBeLessThan(blocks + 64 * KIB);
      expect((await stat(target)).blocks * 512).toBeGreaterThanOrEqual(blocks);
    }
  });
});

describe('an image whose backing file is missing', () => {
  it('can be looked at', async () => {
    const dir = await testScope().tempDir();
    const [base, path] = [join(dir, 'base'), join(dir, 'a')];
    await createImage(base, MIB);
    await createImage(path, MIB, 'cluster_size=64k', ['-b', base, '-F', 'qcow2']);
    await rename(base, `${base}.gone`);
    for (const args of [['info'], ['info', '--output=json']]) {
      const [ours, theirs] = [await img(...args, path), await qemuImg(...args, path)];
      expect(ours.code).toBe(0);
      if (args.length === 1) expect(ours.stdout).toBe(theirs.stdout);
      else expect(JSON.parse(ours.stdout)).toEqual(JSON.parse(theirs.stdout));
    }
    expect((await img('info', '--backing-chain', path)).code).toBe(1);
  });
});

describe('map', () => {
  it('finds what no layer has where qemu-img finds it, in layers of different lengths', async () => {
    const dir = await testScope().tempDir();
    const [low, mid, top] = [join(dir, 'low'), join(dir, 'mid'), join(dir, 'top')];
    await createImage(low, 2 * MIB);
    await qemuIo(low, ['write -P 1 64k 1M']);
    await createImage(mid, 3 * MIB, 'cluster_size=64k', ['-b', low, '-F', 'qcow2']);
    await qemuIo(mid, ['write -P 2 1M 128k', 'write -z 2500k 64k']);
    await createImage(top, 4 * MIB, 'cluster_size=64k', ['-b', mid, '-F', 'qcow2']);
    await qemuIo(top, ['write -P 3 200k 10k']);
    const none = join(dir, 'none');
    await createImage(none, 0);
    await truncate(join(dir, 'none'), (await stat(none)).size);
    for (const args of [[top], ['-s', '100k', '-l', '1M', top], ['-s', '8M', top], [none], [low]]) {
      const ours = JSON.parse((await img('map', '--output=json', ...args)).stdout);
      const theirs = JSON.parse((await qemuImg('map', '--output=json', ...args)).stdout);
      const comparable = (entries: Record<string, unknown>[]) =>
        entries.map(({ compressed: _ours, offset, zero, ...entry }) => ({
          ...{ ...entry, zero },
          // Zeroes that have a cluster: qemu-img tells which.
          ...(zero === true ? {} : { offset }),
        }));
      expect(comparable(ours)).toEqual(comparable(theirs));
    }
  });
});
