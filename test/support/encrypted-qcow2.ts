// SPDX-License-Identifier: MIT
/** Encrypted qcow2 images: made, read and judged by QEMU's tools, used through our nodes. */
import { readFile, writeFile } from 'node:fs/promises';
import { expect } from 'vitest';
import { createQcow2, type Qcow2CreateOptions } from '../../src/block/driver/qcow2/create.js';
import type { Permissions } from '../../src/block/permissions.js';
import { localGraph, RESIZER, type UsedNode, useNode } from '../unit/block/driver/test-graph.js';
import { PASSPHRASE, secretsWith } from './luks.js';
import { runPeer, tryPeer } from './peers.js';
import { MIB } from './qcow2.js';

export type Format = 'aes' | 'luks';
export const FORMATS = ['aes', 'luks'] as const;
/** For commands of QEMU's and ours. */
export const SECRET = ['--object', `secret,id=s,data=${PASSPHRASE}`];

export const imageOpts = (filename: string): string =>
  `driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename=${filename}`;

/** Makes an image with qemu-img. @param more `-o` options, comma-separated */
export async function qemuCreates(
  path: string,
  size: number,
  format: Format,
  more: readonly string[] = [],
): Promise<void> {
  const quick = format === 'luks' ? ['encrypt.iter-time=10'] : [];
  const options = [`encrypt.format=${format}`, 'encrypt.key-secret=s', ...quick, ...more].join(',');
  const args = ['create', '-q', '-f', 'qcow2', ...SECRET, '-o', options, path, String(size)];
  await runPeer('qemu-img', args);
}

/** Runs qemu-io commands on an image. */
export async function qemuIo(path: string, ...commands: string[]): Promise<void> {
  const args = [...SECRET, '--image-opts', imageOpts(path), ...commands.flatMap((c) => ['-c', c])];
  const { stdout } = await runPeer('qemu-io', args);
  expect(stdout).not.toMatch(/failed|error/i);
}

/** The whole content, as qemu-img decrypts it. */
export async function qemuContent(path: string, more: readonly string[] = []): Promise<Buffer> {
  const raw = `${path}.raw`;
  const source = ['--image-opts', imageOpts(path)];
  await runPeer('qemu-img', ['convert', ...SECRET, ...more, ...source, '-O', 'raw', raw]);
  return readFile(raw);
}

export async function qemuWrites(path: string, content: Buffer): Promise<void> {
  const raw = `${path}.in`;
  await writeFile(raw, content);
  const into = ['--target-image-opts', imageOpts(path)];
  await runPeer('qemu-img', ['convert', ...SECRET, '-n', '-f', 'raw', raw, ...into]);
}

/** Fails, with its output, when qemu-img finds anything wrong: leaks too. */
export async function expectSound(path: string): Promise<void> {
  const args = ['check', ...SECRET, '--image-opts', imageOpts(path)];
  const { code, stdout, stderr } = await tryPeer('qemu-img', args);
  expect({ code, stdout: code === 0 ? '' : stdout, stderr }).toEqual({
    code: 0,
    stdout: '',
    stderr: '',
  });
}

/** A node of ours on an image. @param options instead of and besides those that open it */
export async function ours(
  filename: string,
  options: object = {},
  permissions: Permissions = RESIZER,
): Promise<UsedNode> {
  const graph = localGraph(await secretsWith({ s: PASSPHRASE, wrong: 'wrong' }));
  const file = { driver: 'file', filename };
  const given = { driver: 'qcow2', discard: 'unmap', encrypt: { 'key-secret': 's' }, file };
  return useNode({ ...given, ...options }, permissions, graph);
}

/** A new image of ours; unlocking it is quick. */
export async function weCreate(
  path: string,
  format: Format,
  options: Partial<Qcow2CreateOptions> = {},
): Promise<void> {
  await writeFile(path, '');
  const used = await useNode({ driver: 'file', filename: path }, RESIZER);
  try {
    const passphrase = Buffer.from(PASSPHRASE);
    const encryption =
      format === 'aes' ? { format, passphrase } : { format, passphrase, iterTimeMs: 1 };
    await createQcow2(used.backend, { size: 2 * MIB, encryption, ...options });
  } finally {
    await used.close();
  }
}
