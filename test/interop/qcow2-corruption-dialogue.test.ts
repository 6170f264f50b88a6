// SPDX-License-Identifier: MIT
/** What is told of a corrupt image, and done to it, is what qemu-storage-daemon tells and does. */
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { tryPeer } from '../support/peers.js';
import { createImage, MIB, qemuIo } from '../support/qcow2.js';
import type { Scope } from '../support/temp.js';

/** Where an image has its tables, bytes. */
interface Places {
  readonly l1: number;
  readonly l2: number;
  readonly refcountTable: number;
  readonly refcountBlock: number;
}

/** An entry of 64 bits, or two bytes of a refcount block, that is put in place of what was there. */
type Change = readonly [at: number, value: bigint, length?: 2 | 8];

const COPIED = 1n << 63n;

const CASES: readonly (readonly [what: string, change: (places: Places) => Change, io: string])[] =
  [
    ['a cluster between clusters, read', ({ l2 }) => [l2, COPIED | 0x50200n], 'read 0 512'],
    ['a cluster between clusters, written', ({ l2 }) => [l2, COPIED | 0x50200n], 'write 0 512'],
    ['a zero cluster between clusters', ({ l2 }) => [l2, COPIED | 0x50201n], 'write 0 512'],
    ['a table between clusters, read', ({ l1 }) => [l1, COPIED | 0x40200n], 'read 0 512'],
    ['a table between clusters, written', ({ l1 }) => [l1, COPIED | 0x40200n], 'write 0 512'],
    [
      'a refcount block between clusters',
      ({ refcountTable }) => [refcountTable, 0x20200n],
      'write 1M 64k',
    ],
    ['data on the L1 table', ({ l1, l2 }) => [l2, COPIED | BigInt(l1)], 'write 0 512'],
    ['data on its L2 table', ({ l2 }) => [l2, COPIED | BigInt(l2)], 'write 0 512'],
    [
      'data on the refcount table',
      ({ l2, refcountTable }) => [l2, COPIED | BigInt(refcountTable)],
      'write 0 512',
    ],
    [
      'data on a refcount block',
      ({ l2, refcountBlock }) => [l2, COPIED | BigInt(refcountBlock)],
      'write 0 512',
    ],
    ['a header that counts as free', ({ refcountBlock }) => [refcountBlock, 0n, 2], 'write 1M 64k'],
    [
      'an L1 table that counts as free',
      ({ refcountBlock, l1 }) => [refcountBlock + 2 * (l1 / 65536), 0n, 2],
      'write 1M 64k',
    ],
  ];

function placesOf(content: Buffer): Places {
  const number = (at: number): number =>
    Number(content.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n);
  const [l1, refcountTable] = [number(40), number(48)];
  return { l1, refcountTable, l2: number(l1), refcountBlock: number(refcountTable) };
}

async function patch(path: string, [at, value, length = 8]: Change): Promise<void> {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  const file = await open(path, 'r+');
  await file.write(bytes.subarray(8 - length), 0, length, at);
  await file.close();
}

/** For writes QEMU tells the guest's offset, here the entry's place is told as for reads. */
const alike = (message: string, io: string): string =>
  io.startsWith('write')
    ? message.replace(/^(Data cluster|Cluster allocation) (.*) \(.*|(Prea.*) \(.*/, '$2$3')
    : message;

for (const [what, change, io] of CASES) {
  it(what, async () => {
    const make = async (scope: Scope) => {
      const dir = await scope.tempDir();
      const path = join(dir, 'image');
      await createImage(path, 64 * MIB);
      await qemuIo(path, ['write -P 1 0 64k']);
      await patch(path, change(placesOf(await readFile(path))));
      const args = [
        ...['--blockdev', `file,node-name=f,filename=${path}`],
        ...['--blockdev', 'qcow2,node-name=disk,file=f'],
        ...['--nbd-server', `addr.type=unix,addr.path=${join(dir, 'nbd')}`],
        ...['--export', 'nbd,id=e,node-name=disk,name=disk,writable=on'],
      ];
      return { dir, args };
    };
    const told = await sayToBoth(make, async ({ qmp, dir }: Talk) => {
      const url = `nbd+unix:///disk?socket=${join(dir, 'nbd')}`;
      const { stdout } = await tryPeer('qemu-io', ['-f', 'raw', '-c', io, '-c', 'flush', url]);
      const { data } = await qmp.event('BLOCK_IMAGE_CORRUPTED');
      const again = await tryPeer('qemu-io', ['-f', 'raw', '-c', 'read 2M 512', url]);
      const header = await readFile(join(dir, 'image'));
      return {
        io: /(failed.*)/.exec(stdout)?.[1],
        // QEMU has closed the image, and says EINVAL from then on.
        again: again.stdout.includes('failed'),
        data: { ...data, msg: alike(String(data?.msg), io) },
        features: header.readBigUInt64BE(72),
      };
    });
    expect(told.features & 2n).toBe(2n);
  });
}
