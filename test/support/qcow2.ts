// SPDX-License-Identifier: MIT
/** qcow2 images: made and judged by QEMU's tools, used through our nodes. */
import { readFile } from 'node:fs/promises';
import { expect } from 'vitest';
import type { Permissions } from '../../src/block/permissions.js';
import type { NodeLike } from '../suite/block-driver.suite.js';
import { type UsedNode, useNode, WRITER } from '../unit/block/driver/test-graph.js';
import { runPeer, tryPeer } from './peers.js';

export { pattern } from './pattern.js';

export const KIB = 1024;
export const MIB = 1024 * KIB;

/** Makes an image with qemu-img. @param options `-o` options, comma-separated */
export async function createImage(
  path: string,
  size: number,
  options = '',
  more: readonly string[] = [],
): Promise<void> {
  const given = options === '' ? [] : ['-o', options];
  await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', ...given, ...more, path, String(size)]);
}

/** Runs qemu-io commands on an image. */
export async function qemuIo(path: string, commands: readonly string[]): Promise<void> {
  const args = commands.flatMap((command) => ['-c', command]);
  const { stdout } = await runPeer('qemu-io', ['-f', 'qcow2', ...args, path]);
  expect(stdout).not.toMatch(/failed|error/i);
}

/** A node on an image that takes reads and writes. */
export function openImage(
  filename: string,
  options: object = {},
  permissions: Permissions = WRITER,
): Promise<UsedNode> {
  return useNode(
    {
      driver: 'qcow2',
      discard: 'unmap',
      file: { driver: 'file', filename },
      ...options,
    },
    permissions,
  );
}

/** All bytes, read in pieces. */
export async function contentOf(node: NodeLike, piece = 256 * KIB): Promise<Buffer> {
  const content = Buffer.alloc(node.size, 0xee);
  for (let at = 0; at < node.size; at += piece) {
    await node.read(at, content.subarray(at, Math.min(at + piece, node.size)));
  }
  return content;
}

/** What qemu-img takes the image to hold. */
export async function qemuContent(path: string, scratch: string): Promise<Buffer> {
  await runPeer('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', path, scratch]);
  return readFile(scratch);
}

/** Fails, with its output, when qemu-img finds anything wrong: leaks too. */
export async function expectSound(path: string): Promise<void> {
  const { code, stdout, stderr } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', path]);
  expect({ code, stdout: code === 0 ? '' : stdout, stderr }).toEqual({
    code: 0,
    stdout: '',
    stderr: '',
  });
}

/** Compares without printing megabytes. */
export function expectEqual(actual: Buffer, expected: Buffer): void {
  expect(actual.byteLength).toBe(expected.byteLength);
  if (actual.equals(expected)) return;
  let at = 0;
  while (actual[at] === expected[at]) at++;
  expect({ at, byte: actual[at] }).toEqual({ at, byte: expected[at] });
}
