// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  STATUS_ALLOCATED,
  STATUS_COMPRESSED,
  STATUS_DATA,
  STATUS_OFFSET_VALID,
  STATUS_ZERO,
} from '../../src/block/block-driver.js';
import type { BlockNode } from '../../src/block/node.js';
import { runPeer, runPeerJson } from '../support/peers.js';
import { createImage, MIB, openImage, qemuIo } from '../support/qcow2.js';
import { testScope } from '../support/temp.js';
import { READER } from '../unit/block/driver/test-graph.js';

interface Extent {
  readonly start: number;
  readonly length: number;
  readonly data: boolean;
  readonly zero: boolean;
  readonly offset?: number;
}

const SIZE = 8 * MIB;

/** What our node says of its own layer, neighbours of one kind joined, as qemu-img does it. */
async function ours(node: BlockNode): Promise<Extent[]> {
  const extents: Extent[] = [];
  for (let at = 0; at < node.size; ) {
    const { length, flags, hostOffset } = await node.blockStatus(at, node.size - at);
    const unallocated = (flags & STATUS_ALLOCATED) === 0;
    const extent = {
      start: at,
      length,
      data: (flags & STATUS_DATA) !== 0,
      zero: unallocated || (flags & STATUS_ZERO) !== 0,
      ...((flags & STATUS_OFFSET_VALID) !== 0 && hostOffset !== undefined
        ? { offset: hostOffset }
        : {}),
    };
    const last = extents.at(-1);
    if (last !== undefined && follows(last, extent)) {
      extents[extents.length - 1] = { ...last, length: last.length + length };
    } else extents.push(extent);
    at += length;
  }
  return extents;
}

function follows(last: Extent, next: Extent): boolean {
  if (last.data !== next.data || last.zero !== next.zero) return false;
  return last.offset === undefined
    ? next.offset === undefined
    : next.offset === last.offset + last.length;
}

async function theirs(path: string): Promise<Extent[]> {
  const map = await runPeerJson<Extent[]>('qemu-img', [
    ...['map', '-f', 'qcow2', '--output=json', path],
  ]);
  const extents: Extent[] = [];
  for (const { start, length, data, zero, offset } of map) {
    // A zero cluster that keeps its place has an offset there.
    const place = data && offset !== undefined ? { offset } : {};
    const extent = { start, length, data, zero, ...place };
    const last = extents.at(-1);
    if (last !== undefined && follows(last, extent)) {
      extents[extents.length - 1] = { ...last, length: last.length + length };
    } else extents.push(extent);
  }
  return extents;
}

describe('block status of images made by qemu-io', () => {
  for (const options of [
    'cluster_size=512',
    'cluster_size=64k',
    'cluster_size=2M',
    'cluster_size=16k,extended_l2=on',
    'compat=0.10',
  ]) {
    it(`is that of qemu-img map: ${options}`, async () => {
      const scope = testScope();
      const path = join(await scope.tempDir(), 'image');
      await createImage(path, SIZE, options);
      await qemuIo(path, [
        'write -P 1 3M 1M',
        'write -P 2 0 100k',
        'write -P 3 70k 5k',
        'write -P 4 6M 3k',
        ...(options.startsWith('compat') ? [] : ['write -z 3200k 300k', 'write -z -u 0 32k']),
        'write -P 4 7M 900k',
      ]);
      const { node, close } = await openImage(path, { 'read-only': true }, READER);
      scope.defer(close);
      expect(await ours(node)).toEqual(await theirs(path));
    });
  }

  it('tells compressed clusters, and leaves the rest to the backing file', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const [plain, packed] = [join(dir, 'plain'), join(dir, 'packed')];
    await createImage(plain, 1 * MIB);
    await qemuIo(plain, ['write -P 1 256k 128k']);
    await runPeer('qemu-img', ['convert', '-c', '-f', 'qcow2', '-O', 'qcow2', plain, packed]);
    const { node, close } = await openImage(packed, { 'read-only': true }, READER);
    scope.defer(close);
    expect(await node.blockStatus(0, 1 * MIB)).toEqual({ length: 262144, flags: 0 });
    const { length, flags } = await node.blockStatus(262144, 1 * MIB - 262144);
    expect(length).toBe(131072);
    expect(flags).toBe(STATUS_DATA | STATUS_ALLOCATED | STATUS_COMPRESSED);
  });
});
