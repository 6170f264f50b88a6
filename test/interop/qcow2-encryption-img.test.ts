// SPDX-License-Identifier: MIT
/** `diskferry img` and encrypted qcow2 images, beside qemu-img; chains and snapshots; hostile images. */
import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { diskferry } from '../support/diskferry.js';
import {
  expectSound,
  FORMATS,
  imageOpts,
  ours,
  qemuContent,
  SECRET,
  weCreate,
} from '../support/encrypted-qcow2.js';
import { PASSPHRASE } from '../support/luks.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { contentOf, expectEqual, KIB, MIB, pattern } from '../support/qcow2.js';
import { testScope } from '../support/temp.js';

const SIZE = 2 * MIB;
const image = async (): Promise<string> => join(await testScope().tempDir(), 'disk.qcow2');

async function img(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await diskferry(['img', ...args]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return stdout;
}

async function source(path: string): Promise<Buffer> {
  const content = Buffer.alloc(SIZE);
  pattern(900 * KIB, 7).copy(content, 200 * KIB);
  await writeFile(path, content);
  return content;
}

describe.each(FORMATS)('%s', (format) => {
  const options = [
    `encrypt.format=${format},encrypt.key-secret=s`,
    ...(format === 'luks' ? ['encrypt.iter-time=10'] : []),
  ].flatMap((text) => ['-o', text]);

  it('convert makes an image that qemu-img reads, and reads it back', async () => {
    const path = await image();
    const content = await source(`${path}.source`);
    await img('convert', ...SECRET, '-f', 'raw', '-O', 'qcow2', ...options, `${path}.source`, path);
    await expectSound(path);
    expectEqual(await qemuContent(path), content);
    const back = `${path}.back`;
    await img('convert', ...SECRET, '--image-opts', imageOpts(path), '-O', 'raw', back);
    expectEqual(await readFile(back), content);
    const raw = `driver=raw,file.driver=file,file.filename=${path}.source`;
    const same = await img('compare', ...SECRET, '--image-opts', imageOpts(path), raw);
    expect(same).toBe('Images are identical.\n');
    await img('dd', ...SECRET, '--image-opts', 'bs=64k', `if=${imageOpts(path)}`, `of=${back}`);
    expectEqual(await readFile(back), content);
    // What the source has as zeroes is not allocated.
    const map = ['map', ...SECRET, '--output=json', '--image-opts', imageOpts(path)];
    const theirs = JSON.parse((await runPeer('qemu-img', map)).stdout);
    expect(JSON.parse(await img(...map))).toMatchObject(theirs);
  });

  it('info says what qemu-img says, without the key too', async () => {
    const path = await image();
    await weCreate(path, format);
    const given = [
      ['-f', 'qcow2', path],
      [...SECRET, '--image-opts', imageOpts(path)],
    ];
    for (const how of given) {
      const info = ['info', '--output=json', ...how];
      const theirs = JSON.parse((await runPeer('qemu-img', info)).stdout);
      const said = JSON.parse(await img(...info));
      const describe = (text: string) =>
        text.startsWith('json:') ? JSON.parse(text.slice('json:'.length)) : text;
      expect(describe(said.filename)).toEqual(describe(theirs.filename));
      expect({ ...said, filename: '' }).toEqual({ ...theirs, filename: '' });
    }
    expect(await img('info', path)).toContain('\nencrypted: yes\n');
  });

  it('measure, resize and check go as with qemu-img', async () => {
    const path = await image();
    await weCreate(path, format);
    const measure = ['measure', ...SECRET, '--size=5M', '-O', 'qcow2', ...options];
    expect(await img(...measure)).toBe((await runPeer('qemu-img', measure)).stdout);
    await img('resize', ...SECRET, '-q', '--image-opts', imageOpts(path), '7M');
    const check = ['check', ...SECRET, '--output=json', '--image-opts', imageOpts(path)];
    const theirs = JSON.parse((await runPeer('qemu-img', check)).stdout);
    const found = JSON.parse(await img(...check));
    expect({ ...found, filename: '' }).toEqual({ ...theirs, filename: '' });
    expect((await qemuContent(path)).byteLength).toBe(7 * MIB);
  });

  it('nothing is made or read without the secret, in the words of qemu-img', async () => {
    const path = await image();
    const create = ['create', '-q', '-f', 'qcow2', '-o', `encrypt.format=${format}`, path, '1M'];
    const text = "Parameter 'encrypt.key-secret' is required for cipher";
    expect((await tryPeer('qemu-img', create)).stderr).toContain(text);
    expect((await diskferry(['img', ...create])).stderr).toContain(text);
    await weCreate(path, format);
    for (const args of [
      ['convert', '-O', 'raw', path, `${path}.raw`],
      ['map', path],
    ]) {
      expect((await tryPeer('qemu-img', args)).stderr).toContain(text);
      expect((await diskferry(['img', ...args])).stderr).toContain(text);
    }
  });

  it('each layer of a chain has its own key', async () => {
    const dir = await testScope().tempDir();
    const [base, top] = [join(dir, 'base'), join(dir, 'top')];
    await weCreate(base, 'luks');
    const below = await ours(base);
    const content = pattern(SIZE, 3);
    await below.node.write(0, content);
    await below.close();
    await weCreate(top, format, { backingFile: 'base', backingFormat: 'qcow2' });
    await expect(ours(top)).rejects.toThrow(
      "Could not open backing file: Parameter 'encrypt.key-secret' is required for cipher",
    );
    const file = { driver: 'file', filename: base };
    const backing = { driver: 'qcow2', encrypt: { format: 'luks', 'key-secret': 's' }, file };
    const used = await ours(top, { backing });
    try {
      await used.node.write(100_000, Buffer.alloc(3000, 9));
      content.fill(9, 100_000, 103_000);
      expectEqual(await contentOf(used.node), content);
    } finally {
      await used.close();
    }
    const opened = `${imageOpts(top)},backing.driver=qcow2,backing.encrypt.key-secret=s`;
    const raw = `${top}.raw`;
    const chain = `${opened},backing.file.driver=file,backing.file.filename=${base}`;
    await runPeer('qemu-img', ['convert', ...SECRET, '--image-opts', chain, '-O', 'raw', raw]);
    expectEqual(await readFile(raw), content);
    await img('convert', ...SECRET, '--image-opts', chain, '-O', 'raw', raw);
    expectEqual(await readFile(raw), content);
  });

  it('snapshots keep to the key, and nothing is in the file as it was written', async () => {
    const path = await image();
    await weCreate(path, format);
    const { graph, node, close } = await ours(path);
    const content = pattern(SIZE, 5);
    try {
      await node.write(0, content);
      const date = { dateSeconds: 1, dateNanoseconds: 0 };
      await node.driver.snapshots?.create({ name: 'then', ...date });
      await node.write(10_000, Buffer.alloc(90_000, 1));
      expect(node.limits.compressedUnit).toBe(0);
      await node.driver.snapshots?.apply('then');
      expectEqual(await contentOf(node), content);
      expect(graph.get(node.name).driver.encrypted).toBe(true);
    } finally {
      await close();
    }
    await expectSound(path);
    expectEqual(await qemuContent(path), content);
    const bytes = await readFile(path);
    expect(bytes.includes(content.subarray(4096, 4096 + 64))).toBe(false);
    expect(bytes.includes(Buffer.from(PASSPHRASE))).toBe(false);
  });

  it('data in an external file is encrypted as qemu-img does it', async () => {
    const dir = await testScope().tempDir();
    const path = join(dir, 'disk.qcow2');
    const make = ['create', '-q', ...SECRET, '-f', 'qcow2', ...options];
    const data = join(dir, 'data');
    for (let tries = 0; tries < 50; tries++) {
      const made = await tryPeer('qemu-img', [...make, '-o', `data_file=${data}`, path, '2M']);
      if (made.code === 0) break;
    }
    const content = pattern(SIZE, 8);
    const used = await ours(path);
    await used.node.write(0, content);
    await used.close();
    expectEqual(await qemuContent(path), content);
    expect((await readFile(data)).includes(content.subarray(0, 64))).toBe(false);
  });
});

describe('a header that lies', () => {
  /** Finds the extension that tells where the keys are, and writes over the image. */
  async function damaged(change: (at: number, bytes: Buffer) => void): Promise<string> {
    const path = await image();
    await weCreate(path, 'luks');
    const bytes = await readFile(path);
    const at = bytes.indexOf(Buffer.from('0537be77', 'hex'));
    change(at, bytes);
    const file = await open(path, 'r+');
    await file.write(bytes, 0, bytes.byteLength, 0);
    await file.close();
    return path;
  }

  const cases: readonly (readonly [string, (at: number, bytes: Buffer) => void, string])[] = [
    ['no extension', (at, b) => b.writeUInt32BE(1, at), 'Missing CRYPTO header for crypt method 2'],
    ['another length', (at, b) => b.writeUInt32BE(24, at + 4), 'CRYPTO header extension size 24'],
    ['an odd place', (at, b) => b.writeBigUInt64BE(3n, at + 8), "offset '3' is not a multiple"],
    ['a place behind the end', (at, b) => b.writeBigUInt64BE(1n << 40n, at + 8), 'is not within'],
    ['a place past 2^63', (at, b) => b.writeBigUInt64BE(1n << 63n, at + 8), 'is not within'],
    ['place 0', (at, b) => b.writeBigUInt64BE(0n, at + 8), 'is not within'],
    ['a huge length', (at, b) => b.writeBigUInt64BE(2n ** 64n - 1n, at + 16), 'is not within'],
    ['a short length', (at, b) => b.writeBigUInt64BE(600n, at + 16), 'past the end at 600'],
    ['no length', (at, b) => b.writeBigUInt64BE(0n, at + 16), 'Volume is not in LUKS format'],
    ['method 3', (_at, b) => b.writeUInt32BE(3, 32), 'Unsupported encryption method 3'],
    ['method 1', (_at, b) => b.writeUInt32BE(1, 32), 'only expected with LUKS encryption method'],
    ['method 0', (_at, b) => b.writeUInt32BE(0, 32), 'only expected with LUKS encryption method'],
    [
      'a bomb of iterations',
      (at, b) => b.writeUInt32BE(0xffff_ffff, Number(b.readBigUInt64BE(at + 8)) + 212),
      'asks for 4294967295 iterations',
    ],
  ];

  it.each(cases)('is refused: %s', async (_what, change, message) => {
    const path = await damaged(change);
    await expect(ours(path)).rejects.toThrow(message);
  });
});
