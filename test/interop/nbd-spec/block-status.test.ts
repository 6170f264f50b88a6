// SPDX-License-Identifier: MIT
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  blockSizes,
  CHUNK,
  CMD,
  CMD_FLAG,
  type Descriptor,
  ERROR,
  INFO,
  statusOf,
} from '../../support/nbd-wire.js';
import {
  DISK_SIZE,
  MIB,
  ODD_SIZE,
  open,
  type SpecServer,
  startOwnServer,
  startSpecServer,
} from './fixture.js';

let server: SpecServer;
beforeAll(async () => {
  server = await startSpecServer();
});
afterAll(() => server?.close());

const BASE = 'base:allocation';
const DEPTH = 'qemu:allocation-depth';
const [HOLE, ZERO] = [1, 2];

async function query(
  name: string,
  options: { offset?: number; length: number; flags?: number },
): Promise<Descriptor[]> {
  const { client } = await open(server, name, { structured: true, contexts: [BASE] });
  const [reply] = await client.call({ type: CMD.BLOCK_STATUS, ...options });
  if (reply === undefined) throw new Error('no reply');
  return statusOf(reply).descriptors;
}

it('answers BLOCK_STATUS with one structured chunk for each selected context', async () => {
  const own = await startOwnServer((dir) => [
    ...['--blockdev', `driver=file,node-name=disk,filename=${dir}/disk.raw`],
    ...['--export', 'type=nbd,id=e,node-name=disk,allocation-depth=on'],
  ]);
  for (const contexts of [[BASE], [BASE, DEPTH]]) {
    const { client, contexts: selected } = await open(own, 'disk', { structured: true, contexts });
    const replies = await client.call({ type: CMD.BLOCK_STATUS, length: DISK_SIZE });
    const status = replies.filter(({ type }) => type === CHUNK.BLOCK_STATUS);
    expect(status.every(({ form }) => form === 'structured')).toBe(true);
    const ids = status.map((reply) => statusOf(reply).context);
    expect(ids.sort()).toEqual([...selected.keys()].sort());
    expect(replies.at(-1)?.flags).toBe(1);
  }
});

it('gives a status chunk the ID and whole descriptors, none of them empty', async () => {
  const { client } = await open(server, 'ro', { structured: true, contexts: [BASE] });
  for (const [offset, length] of [
    [0, DISK_SIZE],
    [100, 100],
    [MIB - 512, 1024],
  ] as const) {
    for (const reply of await client.call({ type: CMD.BLOCK_STATUS, offset, length })) {
      if (reply.type !== CHUNK.BLOCK_STATUS) continue;
      expect((reply.payload.length - 4) % 8).toBe(0);
      const { descriptors } = statusOf(reply);
      expect(descriptors.length).toBeGreaterThanOrEqual(1);
      expect(descriptors.every((descriptor) => descriptor.length > 0)).toBe(true);
    }
  }
});

it('sends one descriptor, within the request, for REQ_ONE', async () => {
  for (const length of [1, 512, MIB - 1, MIB + 1, DISK_SIZE]) {
    const descriptors = await query('ro', { length, flags: CMD_FLAG.REQ_ONE });
    expect(descriptors).toHaveLength(1);
    expect(descriptors[0]?.length).toBeLessThanOrEqual(length);
  }
});

it('begins no descriptor past the end of the request', async () => {
  for (const length of [1, 512, MIB, MIB + 512, DISK_SIZE]) {
    const descriptors = await query('ro', { length });
    const before = descriptors.slice(0, -1).reduce((sum, { length: one }) => sum + one, 0);
    expect(before).toBeLessThan(length);
  }
});

it('describes no part twice with the same status in a row', async () => {
  const descriptors = await query('ro', { length: DISK_SIZE });
  for (const [at, { status }] of descriptors.entries()) {
    expect(status).not.toBe(descriptors[at - 1]?.status);
  }
});

it('tells data from holes, and sets no reserved status bit', async () => {
  const descriptors = await query('ro', { length: DISK_SIZE });
  expect(descriptors.map(({ status }) => status)).toEqual([0, HOLE | ZERO, 0, HOLE | ZERO]);
  expect(descriptors.map(({ length }) => length)).toEqual([MIB, MIB, MIB, MIB]);
});

it('cuts descriptors at multiples of 512 bytes and of the block size', async () => {
  for (const name of ['ro', 'odd', 'vast']) {
    const { client, info } = await open(server, name, {
      structured: true,
      contexts: [BASE],
      infos: [INFO.BLOCK_SIZE],
    });
    const min = Math.max(blockSizes(info)?.[0] ?? 1, 512);
    const length = Math.min(Number(info.size), 1024 * MIB);
    const [reply] = await client.call({ type: CMD.BLOCK_STATUS, length });
    const descriptors = reply === undefined ? [] : statusOf(reply).descriptors;
    let at = 0;
    for (const descriptor of descriptors) {
      at += descriptor.length;
      if (at !== Number(info.size) && at !== ODD_SIZE) expect(at % min).toBe(0);
    }
  }
});

it('sends at most 2^20 descriptors in a chunk', async () => {
  const descriptors = await query('vast', { length: 0xffff_f000 });
  expect(descriptors.length).toBeLessThanOrEqual(2 ** 20);
});

it('refuses BLOCK_STATUS past the end with EINVAL in an error chunk', async () => {
  const { client } = await open(server, 'odd', { structured: true, contexts: [BASE] });
  for (const [offset, length] of [
    [ODD_SIZE + 512, 1],
    [ODD_SIZE - 1, 4096],
    [2 ** 45, 512],
  ] as const) {
    const replies = await client.call({ type: CMD.BLOCK_STATUS, offset, length });
    expect(replies.find(({ error }) => error !== 0)?.error).toBe(ERROR.EINVAL);
    expect(replies.some(({ type }) => type === CHUNK.BLOCK_STATUS)).toBe(false);
  }
});

it('survives a BLOCK_STATUS of length 0', async () => {
  const { client } = await open(server, 'ro', { structured: true, contexts: [BASE] });
  await client.call({ type: CMD.BLOCK_STATUS, length: 0 });
  expect(await client.callError({ type: CMD.BLOCK_STATUS, length: 512 })).toBe(0);
});

it('never fails a write over what it calls allocated for want of space', async () => {
  const { client } = await open(server, 'disk', { structured: true, contexts: [BASE] });
  const [reply] = await client.call({ type: CMD.BLOCK_STATUS, length: DISK_SIZE });
  const descriptors = reply === undefined ? [] : statusOf(reply).descriptors;
  let offset = 0;
  for (const { length, status } of descriptors) {
    if ((status & HOLE) === 0) {
      const data = Buffer.alloc(length, 0x21);
      expect(await client.callError({ type: CMD.WRITE, offset, data })).toBe(0);
    }
    offset += length;
  }
});
