// SPDX-License-Identifier: MIT
/** `diskferry img measure` and `qemu-img measure` asked the same. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { diskferry } from '../support/diskferry.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { Scope } from '../support/temp.js';

const SECRET = ['--object', 'secret,id=s,data=abc', '-o', 'key-secret=s,iter-time=10'];

/** FILE stands for a qcow2 image with a snapshot and a bitmap, RAW for a file of an odd length. */
const CASES: readonly (readonly string[])[] = [
  ['--size', '1G'],
  ['--size', '100000'],
  ['-O', 'qcow2', '--size', '1G'],
  ['-O', 'qcow2', '--size', '64T'],
  ['-O', 'qcow2', '-o', 'cluster_size=512,refcount_bits=64', '--size', '100G'],
  ['-O', 'qcow2', '-o', 'extended_l2=on', '--size', '10G'],
  ['-O', 'qcow2', '-o', 'preallocation=full', '--size', '10G'],
  ['-O', 'qcow2', '-o', 'preallocation=metadata', 'FILE'],
  ['-O', 'luks', ...SECRET, '--size', '1G'],
  ['-O', 'luks', ...SECRET, 'FILE'],
  ['FILE'],
  ['RAW'],
  ['-O', 'qcow2', 'FILE'],
  ['-O', 'qcow2', 'RAW'],
  ['-O', 'qcow2', '-o', 'cluster_size=2M', 'RAW'],
  ['-O', 'qcow2', '-o', 'compat=0.10', 'FILE'],
  ['-O', 'qcow2', '-o', 'backing_file=x', 'FILE'],
  ['-O', 'qcow2', '-l', 'one', 'FILE'],
  ['-O', 'qcow2', '-l', 'snapshot.name=one', 'FILE'],
];
const REFUSED: readonly (readonly string[])[] = [
  [],
  ['--size', '1G', 'RAW'],
  ['-l', 'one'],
  ['-O', 'qcow2', '-l', 'two', 'FILE'],
  ['-O', 'nothing', '--size', '1M'],
  ['-O', 'qcow2', '-o', 'cluster_size=512', '--size', '1T'],
  ['-O', 'qcow2', '-o', 'cluster_size=3k', '--size', '1G'],
];

const scope = new Scope();
let file = '';
let raw = '';

beforeAll(async () => {
  const dir = await scope.tempDir();
  file = join(dir, 'a.qcow2');
  raw = join(dir, 'a.raw');
  await writeFile(raw, Buffer.concat([Buffer.alloc(3_000_000), Buffer.from('end')]));
  const steps: readonly (readonly string[])[] = [
    ['qemu-img', 'create', '-q', '-f', 'qcow2', file, '300M'],
    ['qemu-io', '-c', 'write 1M 3M', '-c', 'write 100M 64k', '-c', 'write -z 7M 1M', file],
    ['qemu-img', 'bitmap', '--add', file, 'b0'],
    ['qemu-img', 'snapshot', '-c', 'one', file],
    ['qemu-io', '-c', 'write 200M 9M', file],
  ];
  for (const [program = '', ...args] of steps) {
    expect((await tryPeer(program, args)).code).toBe(0);
  }
});
afterAll(() => scope.close());

const named = (args: readonly string[]): string[] =>
  args.map((word) => (word === 'FILE' ? file : word === 'RAW' ? raw : word));

describe('diskferry img measure', () => {
  it.each(CASES)('tells the numbers that qemu-img tells: %s %s %s %s %s', async (...args) => {
    for (const more of [[], ['--output=json']]) {
      const words = ['measure', ...more, ...named(args)];
      const theirs = await runPeer('qemu-img', words);
      const ours = await diskferry(['img', ...words]);
      expect({ code: ours.code, stderr: ours.stderr }).toEqual({ code: 0, stderr: '' });
      if (more.length === 0) expect(ours.stdout).toBe(theirs.stdout);
      else expect(JSON.parse(ours.stdout)).toEqual(JSON.parse(theirs.stdout));
    }
  });

  it.each(REFUSED)('refuses what qemu-img refuses: %s %s %s %s', async (...args) => {
    const words = ['measure', ...named(args)];
    const theirs = await tryPeer('qemu-img', words);
    const ours = await diskferry(['img', ...words]);
    expect({ code: ours.code, stdout: ours.stdout }).toEqual({ code: theirs.code, stdout: '' });
    const said = theirs.stderr.replace('qemu-img: ', '').trim();
    expect(ours.stderr).toContain(said);
  });
});
