// SPDX-License-Identifier: MIT
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { runPeer, spawnTracked } from '../../../support/peers.js';
import { testScope } from '../../../support/temp.js';
import { filterGraph, memoryOf } from './filter-graph.js';

const SIZE = 1024 * 1024;

async function logged(options: Record<string, unknown> = {}, log: Buffer = Buffer.alloc(0)) {
  const filters = filterGraph();
  const logNode = await filters.add({ driver: 'growing', 'node-name': 'log', size: 0 });
  memoryOf(logNode).data = log;
  const node = await filters.add({
    driver: 'blklogwrites',
    'node-name': 'w',
    discard: 'unmap',
    ...options,
    file: { driver: 'memory', size: SIZE },
    log: 'log',
  });
  await filters.use(node);
  return { ...filters, node, log: memoryOf(logNode) };
}

function superblock(entries: number, sectorSize: number): Buffer {
  const block = Buffer.alloc(sectorSize);
  Buffer.from('7268737766736a00' + '0100000000000000', 'hex').copy(block);
  block.writeBigUInt64LE(BigInt(entries), 16);
  block.writeUInt32LE(sectorSize, 24);
  return block;
}

/** Sector, number of sectors and flags of each entry, and the data after it; flushes in a row are one. */
function entriesOf(log: Buffer, sectorSize: number): string[] {
  const entries: string[] = [];
  for (let at = sectorSize; at < log.byteLength; ) {
    const [sector, sectors, flags] = [0, 8, 16].map((field) => log.readBigUInt64LE(at + field));
    const length = flags === 4n ? 0 : Number(sectors) * sectorSize;
    const data = log.subarray(at + sectorSize, at + sectorSize + length);
    const bytes = [...new Set(data)].join();
    const entry = `${sector} ${sectors} ${flags} ${data.byteLength} of ${bytes}`;
    if (flags !== 1n || entry !== entries.at(-1)) entries.push(entry);
    at += sectorSize + length;
  }
  return entries;
}

it('logs data, zeroes, discards and flushes in the order in which they were done', async () => {
  const { node, log } = await logged();
  await node.write(512, Buffer.alloc(1024, 0xab));
  await node.writeZeroes(4096, 512);
  await node.discard(8192, 4096);
  await node.flush();
  expect(entriesOf(log.data, 512)).toEqual([
    '1 2 0 1024 of 171',
    '8 1 0 512 of 0',
    '16 8 4 0 of ',
    '0 0 1 0 of ',
  ]);
  expect(log.data.subarray(0, 512)).toEqual(superblock(4, 512));
});

it('writes the log that qemu-storage-daemon writes for the same requests', async () => {
  const scope = testScope();
  const folder = await scope.tempDir();
  await writeFile(join(folder, 'disk'), Buffer.alloc(SIZE));
  await writeFile(join(folder, 'log'), '');
  const peer = spawnTracked('qemu-storage-daemon', [
    ...['--blockdev', `driver=file,node-name=f,filename=${folder}/disk`],
    ...['--blockdev', `driver=file,node-name=l,filename=${folder}/log`],
    ...['--blockdev', 'driver=blklogwrites,node-name=w,file=f,log=l,log-sector-size=4096'],
    ...['--nbd-server', `addr.type=unix,addr.path=${folder}/nbd`],
    ...['--export', 'nbd,id=e,node-name=w,name=w,writable=on'],
    ...['--pidfile', join(folder, 'pid'), '--daemonize'],
  ]);
  await new Promise((resolve) => peer.once('close', resolve));
  const pid = Number(await readFile(join(folder, 'pid'), 'utf8'));
  scope.defer(() => process.kill(pid));
  const commands = [
    'write -P 0xab 4096 8192',
    'write -z 65536 4096',
    'flush',
    'write -P 1 0 4096',
    'flush',
  ];
  await runPeer('qemu-io', [
    ...['-f', 'raw', `nbd+unix:///w?socket=${folder}/nbd`],
    ...commands.flatMap((command) => ['-c', command]),
  ]);
  const { node, log } = await logged({ 'log-sector-size': 4096 });
  await node.write(4096, Buffer.alloc(8192, 0xab));
  await node.writeZeroes(65536, 4096);
  await node.flush();
  await node.write(0, Buffer.alloc(4096, 1));
  await node.flush();
  const theirs = await readFile(join(folder, 'log'));
  expect(entriesOf(log.data, 4096)).toEqual(entriesOf(theirs, 4096));
  // It may flush more often, and then counts more entries.
  theirs.copy(log.data, 16, 16, 24);
  expect(log.data.subarray(0, 4096).equals(theirs.subarray(0, 4096))).toBe(true);
});

it('goes on with an old log where it ends', async () => {
  const first = await logged({ 'log-sector-size': 4096 });
  await first.node.write(4096, Buffer.alloc(4096, 1));
  await first.node.flush();
  const second = await logged({ 'log-append': true }, first.log.data);
  expect(second.node.limits.requestAlignment).toBe(4096);
  await second.node.write(0, Buffer.alloc(4096, 2));
  await second.node.flush();
  expect(second.log.data.subarray(0, 4096)).toEqual(superblock(4, 4096));
  expect(second.log.data[5 * 4096]).toBe(2);
});

it('updates the superblock at the interval too', async () => {
  const { node, log } = await logged({ 'log-super-update-interval': 2 });
  await node.write(0, Buffer.alloc(512));
  expect(log.data.readBigUInt64LE(0)).toBe(0n);
  await node.write(0, Buffer.alloc(512));
  expect(log.data.subarray(0, 512)).toEqual(superblock(2, 512));
});

it('pads requests to the sector size', async () => {
  const { node, log } = await logged({ 'log-sector-size': 4096 });
  await node.write(100, Buffer.from('x'));
  expect(log.data.readBigUInt64LE(4096 + 8)).toBe(1n);
  expect(log.data[8192 + 100]).toBe('x'.charCodeAt(0));
});

const flagged = Buffer.concat([superblock(1, 512), Buffer.alloc(512)]);
flagged.writeBigUInt64LE(0x40n, 512 + 16);
const overlong = Buffer.concat([superblock(2, 512), Buffer.alloc(512)]);
overlong.writeBigUInt64LE(2n ** 60n, 512 + 8);

it.each<[Record<string, unknown>, Buffer, string]>([
  [
    { 'log-append': true, 'log-sector-size': 512 },
    Buffer.alloc(0),
    'log-append and log-sector-size are mutually exclusive',
  ],
  [{ 'log-sector-size': 1000 }, Buffer.alloc(0), 'Invalid log sector size 1000'],
  [{ 'log-sector-size': 16 }, Buffer.alloc(0), 'Invalid log sector size 16'],
  [{ 'log-super-update-interval': 0 }, Buffer.alloc(0), 'Invalid log superblock update interval 0'],
  [{ 'log-append': true }, Buffer.alloc(10), 'Could not read log superblock'],
  [{ 'log-append': true }, Buffer.alloc(512), 'Invalid log superblock magic'],
  [{ 'log-append': true }, flagged, 'Invalid flags 0x40 in log entry 0'],
  [{ 'log-append': true }, overlong, 'Failed to read log entry 1'],
  [{ 'log-append': true }, superblock(2 ** 40, 512), 'Failed to read log entry 0'],
])('refuses %j over a log that does not fit', async (options, log, message) => {
  await expect(logged(options, log)).rejects.toThrow(message);
});
