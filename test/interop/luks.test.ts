// SPDX-License-Identifier: MIT
/** Encrypted images that QEMU made are ours to read and write, and ours are QEMU's. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { LuksFormatOptions } from '../../src/block/crypto/luks-volume.js';
import { createLuksDriver } from '../../src/block/driver/luks.js';
import { expectSame, readBack } from '../suite/block-driver.suite.js';
import { startDaemon } from '../support/daemon.js';
import { diskferry } from '../support/diskferry.js';
import { KIB, patternBytes } from '../support/images.js';
import { luksFile, PASSPHRASE, secretsWith } from '../support/luks.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { testScope } from '../support/temp.js';
import { localGraph, useNode } from '../unit/block/driver/test-graph.js';

const SIZE = 512 * KIB;
const SECRET = ['--object', `secret,id=s,data=${PASSPHRASE}`];

const imageOpts = (filename: string): string =>
  `driver=luks,key-secret=s,file.driver=file,file.filename=${filename}`;

/** The whole content, as qemu-img decrypts it. */
async function qemuContent(filename: string): Promise<Buffer> {
  const raw = `${filename}.raw`;
  const args = ['convert', ...SECRET, '--image-opts', imageOpts(filename), '-O', 'raw', raw];
  await runPeer('qemu-img', args);
  const { stdoutBytes } = await runPeer('cat', [raw]);
  return stdoutBytes;
}

async function qemuWrites(filename: string, content: Buffer): Promise<void> {
  const raw = `${filename}.in`;
  await writeFile(raw, content);
  const into = ['--target-image-opts', imageOpts(filename)];
  await runPeer('qemu-img', ['convert', ...SECRET, '-n', '-f', 'raw', raw, ...into]);
}

async function ours(filename: string) {
  const graph = localGraph();
  graph.drivers.register(createLuksDriver(await secretsWith({ s: PASSPHRASE })));
  const file = { driver: 'file', filename };
  return useNode({ driver: 'luks', 'key-secret': 's', file }, undefined, graph);
}

type Options = Omit<LuksFormatOptions, 'passphrase' | 'iterTimeMs'>;
const COMBINATIONS: readonly Options[] = [
  {},
  { algorithm: 'aes-128', hash: 'sha1' },
  { algorithm: 'aes-192', ivGenerator: 'plain', hash: 'sha512' },
  { algorithm: 'aes-256', ivGenerator: 'essiv', ivHash: 'sha256', hash: 'sha256' },
  { algorithm: 'aes-128', mode: 'cbc', ivGenerator: 'plain64', hash: 'sha256' },
  { algorithm: 'aes-256', mode: 'cbc', ivGenerator: 'plain', hash: 'sha512' },
  { algorithm: 'aes-256', mode: 'cbc', ivGenerator: 'essiv', ivHash: 'sha256', hash: 'sha1' },
  { algorithm: 'aes-128', mode: 'cbc', ivGenerator: 'essiv', ivHash: 'md5', hash: 'ripemd160' },
];

function qemuOptions(options: Options): string {
  const named = {
    'cipher-alg': options.algorithm,
    'cipher-mode': options.mode,
    'ivgen-alg': options.ivGenerator,
    'ivgen-hash-alg': options.ivHash,
    'hash-alg': options.hash,
  };
  const given = Object.entries(named).flatMap(([key, value]) => (value ? [`${key}=${value}`] : []));
  return ['key-secret=s', 'iter-time=10', ...given].join(',');
}

async function qemuCreates(filename: string, options: Options): Promise<void> {
  const create = ['create', '-q', '-f', 'luks', ...SECRET, '-o', qemuOptions(options)];
  await runPeer('qemu-img', [...create, filename, String(SIZE)]);
}

describe.each(COMBINATIONS)('%j', (options) => {
  it("made by qemu-img: each reads the other's writes", { timeout: 120_000 }, async () => {
    const filename = join(await testScope().tempDir(), 'disk.luks');
    await qemuCreates(filename, options);
    const theirs = patternBytes(SIZE, 1);
    await qemuWrites(filename, theirs);
    const used = await ours(filename);
    try {
      expect(used.node.size).toBe(SIZE);
      expectSame(await readBack(used.node, 0, SIZE), theirs);
      await used.node.write(1000, patternBytes(70_000, 2));
      await used.node.flush();
    } finally {
      await used.close();
    }
    patternBytes(70_000, 2).copy(theirs, 1000);
    expectSame(await qemuContent(filename), theirs);
  });

  it("made here: each reads the other's writes", { timeout: 120_000 }, async () => {
    const filename = await luksFile(testScope(), { ...options, size: SIZE });
    const mine = patternBytes(SIZE, 3);
    const used = await ours(filename);
    await used.node.write(0, mine);
    await used.node.flush();
    await used.close();
    expectSame(await qemuContent(filename), mine);
    const theirs = patternBytes(SIZE, 4);
    await qemuWrites(filename, theirs);
    const again = await ours(filename);
    try {
      expectSame(await readBack(again.node, 0, SIZE), theirs);
    } finally {
      await again.close();
    }
  });
});

it('qemu-img refuses another passphrase for an image of ours', async () => {
  const filename = await luksFile(testScope(), { size: SIZE });
  const wrong = ['--object', 'secret,id=s,data=wrong'];
  const args = ['-r', ...wrong, '--image-opts', imageOpts(filename), '-c', 'read 0 512'];
  const { code, stderr } = await tryPeer('qemu-io', args);
  expect(code).not.toBe(0);
  expect(stderr).toContain('Invalid password, cannot unlock any keyslot');
});

it('diskferry img opens it with --object, and says what qemu-img says', async () => {
  const filename = await luksFile(testScope(), { size: SIZE });
  const info = ['info', ...SECRET, '--output=json', '--image-opts', imageOpts(filename)];
  const { stdout } = await diskferry(['img', ...info]);
  const reference = await runPeer('qemu-img', info);
  const { filename: theirs, ...expected } = JSON.parse(reference.stdout);
  const { filename: ours, ...told } = JSON.parse(stdout);
  expect(told).toEqual(expected);
  const description = (text: string) => JSON.parse(text.replace(/^json:/, ''));
  expect(description(ours)).toEqual(description(theirs));
  const people = await diskferry(['img', 'info', ...SECRET, '--image-opts', imageOpts(filename)]);
  expect(people.stdout).toContain('\nencrypted: yes\n');
});

it('diskferry img makes it, and copies zeroes into it too', async () => {
  const filename = join(await testScope().tempDir(), 'disk.luks');
  const raw = `${filename}.source`;
  const content = Buffer.alloc(SIZE);
  patternBytes(8192, 6).copy(content, 65_536);
  await writeFile(raw, content);
  const options = ['-o', 'key-secret=s,iter-time=10'];
  const create = await diskferry([
    'img',
    'create',
    '-q',
    ...SECRET,
    '-f',
    'luks',
    ...options,
    filename,
    '512k',
  ]);
  expect(create).toMatchObject({ code: 0 });
  const into = ['-n', '--target-image-opts', imageOpts(filename)];
  expect(await diskferry(['img', 'convert', ...SECRET, '-f', 'raw', raw, ...into])).toMatchObject({
    code: 0,
  });
  expectSame(await qemuContent(filename), content);
});

describe('the daemon', () => {
  it('serves an encrypted disk in clear, and tells of it what qemu-img does', async () => {
    const scope = testScope();
    const filename = await luksFile(scope, { size: SIZE });
    const daemon = await startDaemon(scope, []);
    const qmp = await daemon.qmp(scope);
    await qmp.execute('object-add', { 'qom-type': 'secret', id: 's', data: PASSPHRASE });
    const file = { driver: 'file', filename };
    await qmp.execute('blockdev-add', {
      driver: 'luks',
      'node-name': 'disk',
      'key-secret': 's',
      file,
    });
    await qmp.execute('object-del', { id: 's' });
    const path = join(daemon.dir, 'nbd.sock');
    await qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
    const options = { type: 'nbd', id: 'e', 'node-name': 'disk', writable: true };
    await qmp.execute('block-export-add', options);
    const uri = `nbd+unix:///disk?socket=${path}`;
    const commands = ['write -P 0x5a 100 70000', 'read -P 0x5a 100 70000', 'flush'];
    await runPeer('qemu-io', ['-f', 'raw', ...commands.flatMap((text) => ['-c', text]), uri]);
    const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
    await qmp.execute('block-export-del', { id: 'e' });
    await qmp.execute('blockdev-del', { 'node-name': 'disk' });
    expect((await qemuContent(filename)).subarray(100, 70_100)).toEqual(Buffer.alloc(70_000, 0x5a));
    const told = (nodes as { 'node-name': string; encrypted: boolean; image: object }[]).find(
      (node) => node['node-name'] === 'disk',
    );
    const info = ['info', '--output=json', '--image-opts', imageOpts(filename)];
    const { stdout } = await runPeer('qemu-img', [...info, ...SECRET]);
    const theirs = JSON.parse(stdout) as { 'format-specific': object; filename: string };
    expect(told?.encrypted).toBe(true);
    expect(told?.image).toMatchObject({
      encrypted: true,
      'format-specific': theirs['format-specific'],
    });
  });
});
