// SPDX-License-Identifier: MIT
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  blockSizes,
  CHUNK,
  CMD,
  CMD_FLAG,
  contentOf,
  ERROR,
  encodeRequest,
  INFO,
  type Reply,
} from '../../support/nbd-wire.js';
import type { RawNbd } from '../../support/raw-nbd.js';
import {
  DISK_CONTENT,
  DISK_SIZE,
  MIB,
  open,
  type SpecServer,
  startSpecServer,
  VAST_SIZE,
} from './fixture.js';

let server: SpecServer;
beforeAll(async () => {
  server = await startSpecServer();
});
afterAll(() => server?.close());

const DONE = 1;
const CONTENT: readonly number[] = [CHUNK.OFFSET_DATA, CHUNK.OFFSET_HOLE];

/** Ranges that begin and end in data and in holes. */
const RANGES = [
  [0, 512],
  [0, DISK_SIZE],
  [MIB - 700, 1400],
  [MIB + 4096, 65_536],
  [2 * MIB - 65_536, 131_072],
  [DISK_SIZE - 1, 1],
] as const;

async function reads(
  client: RawNbd,
  flags = 0,
): Promise<{ replies: Reply[]; offset: number; length: number }[]> {
  const results = [];
  for (const [offset, length] of RANGES) {
    const replies = await client.call({ type: CMD.READ, flags, offset, length });
    results.push({ replies, offset, length });
  }
  return results;
}

/** Begin and end of the part of the export that a content chunk describes. */
function spanOf({ type, payload }: Reply): [number, number] {
  const begin = Number(payload.readBigUInt64BE(0));
  return [
    begin,
    begin + (type === CHUNK.OFFSET_DATA ? payload.length - 8 : payload.readUInt32BE(8)),
  ];
}

it('answers every READ with structured chunks, failed ones too', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  const requests = [
    { length: 512 },
    { length: 512, offset: DISK_SIZE },
    { length: 512, flags: 0x8000 },
  ];
  for (const request of requests) {
    for (const reply of await client.call({ type: CMD.READ, ...request })) {
      expect(reply.form).toBe('structured');
    }
  }
});

it('marks the last chunk with DONE, no other, and sets no other flag', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  for (const { replies } of await reads(client)) {
    const expected = replies.map((_, at) => (at === replies.length - 1 ? DONE : 0));
    expect(replies.map(({ flags }) => flags)).toEqual(expected);
  }
  client.send(encodeRequest({ type: CMD.FLUSH, cookie: 5n }));
  expect(await client.reply()).toMatchObject({ flags: DONE, cookie: 5n, error: 0 });
});

it('echoes the cookie in every chunk', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  for (const cookie of [0n, 0xffff_ffff_ffff_ffffn, 1n << 63n]) {
    for (const request of [{ length: DISK_SIZE }, { length: 1, offset: DISK_SIZE }]) {
      const replies = await client.call({ type: CMD.READ, cookie, ...request });
      expect(replies.every((reply) => reply.cookie === cookie)).toBe(true);
    }
  }
});

it('gives a NONE chunk no payload and the DONE flag', async () => {
  const { client } = await open(server, 'disk', { structured: true });
  const replies = (await reads(client)).flatMap((read) => read.replies);
  replies.push(...(await client.call({ type: CMD.CACHE, length: 512 })));
  for (const { form, type, flags, payload } of replies) {
    if (form === 'structured' && type === CHUNK.NONE) {
      expect({ flags, length: payload.length }).toEqual({ flags: DONE, length: 0 });
    }
  }
});

it('covers the whole request with content chunks inside it that do not overlap', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  for (const { replies, offset, length } of await reads(client)) {
    const spans = replies.filter(({ type }) => CONTENT.includes(type)).map(spanOf);
    let at = offset;
    for (const [begin, end] of spans.sort(([a], [b]) => a - b)) {
      expect(begin).toBe(at);
      expect(end).toBeGreaterThan(begin);
      at = end;
    }
    expect(at).toBe(offset + length);
  }
});

it('sends the right data in its chunks', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  for (const flags of [0, CMD_FLAG.DF]) {
    for (const { replies, offset, length } of await reads(client, flags)) {
      const expected = DISK_CONTENT.subarray(offset, offset + length);
      expect(contentOf(replies, offset, length).equals(expected)).toBe(true);
    }
  }
});

it('gives data chunks at least 9 bytes and hole chunks exactly 12, of a hole that is not empty', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  for (const { type, payload } of (await reads(client)).flatMap(({ replies }) => replies)) {
    if (type === CHUNK.OFFSET_DATA) expect(payload.length).toBeGreaterThanOrEqual(9);
    if (type !== CHUNK.OFFSET_HOLE) continue;
    expect(payload).toHaveLength(12);
    expect(payload.readUInt32BE(8)).toBeGreaterThan(0);
  }
});

it('cuts chunks at multiples of 512 bytes, apart from the ends of the request', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  for (const { replies, offset, length } of await reads(client)) {
    for (const [begin, end] of replies.filter(({ type }) => CONTENT.includes(type)).map(spanOf)) {
      if (begin !== offset) expect(begin % 512).toBe(0);
      if (end !== offset + length) expect(end % 512).toBe(0);
    }
  }
});

it('sends few chunks: at most one for each change between data and hole, and one to end', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  const replies = await client.call({ type: CMD.READ, length: DISK_SIZE });
  expect(replies.length).toBeLessThanOrEqual(5);
});

it('sends one content chunk for DF, with zeroes in place of holes next to data', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  for (const { replies, offset, length } of await reads(client, CMD_FLAG.DF)) {
    const content = replies.filter(({ type }) => CONTENT.includes(type));
    expect(content).toHaveLength(1);
    const bytes = DISK_CONTENT.subarray(offset, offset + length);
    if (bytes.some((byte) => byte !== 0)) expect(content[0]?.type).toBe(CHUNK.OFFSET_DATA);
  }
});

it('takes DF for 65536 bytes, and refuses a larger one only with EOVERFLOW and no content', async () => {
  const { client } = await open(server, 'vast', { structured: true });
  const request = { type: CMD.READ, flags: CMD_FLAG.DF };
  expect(await client.callError({ ...request, length: 65_536 })).toBe(0);
  for (const length of [MIB, 32 * MIB]) {
    const replies = await client.call({ ...request, length });
    const error = replies.find((reply) => reply.error !== 0)?.error ?? 0;
    expect([0, ERROR.EOVERFLOW]).toContain(error);
    if (error !== 0) expect(replies.some(({ type }) => CONTENT.includes(type))).toBe(false);
  }
});

it('sends no chunk with more data than the payload that it advertised', async () => {
  const { client, info } = await open(server, 'vast', {
    structured: true,
    infos: [INFO.BLOCK_SIZE],
  });
  const max = blockSizes(info)?.[2] ?? 0;
  for (const length of [max, max + 4096, 2 * max]) {
    client.send(encodeRequest({ type: CMD.READ, length }));
    for (const { type, payload } of await client.replies()) {
      if (type === CHUNK.OFFSET_DATA) expect(payload.length - 8).toBeLessThanOrEqual(max);
    }
  }
  expect(await client.callError({ type: CMD.READ, length: 1 })).toBe(0);
});

it('reports errors in well-formed error chunks, with a message', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  const requests = [
    { type: CMD.READ, offset: DISK_SIZE, length: 1 },
    { type: CMD.READ, flags: 0x4000, length: 1 },
    { type: CMD.WRITE, data: Buffer.alloc(8) },
    { type: CMD.TRIM, length: 8 },
    { type: 77 },
  ];
  for (const request of requests) {
    const replies = await client.call(request);
    const errors = replies.filter((reply) => reply.error !== 0);
    expect(errors).toHaveLength(1);
    for (const { form, type, payload } of errors) {
      expect(form).toBe('structured');
      expect([CHUNK.ERROR, CHUNK.ERROR_OFFSET]).toContain(type);
      const fixed = type === CHUNK.ERROR ? 6 : 14;
      const length = payload.readUInt16BE(4);
      expect(length).toBeGreaterThan(0);
      expect(length).toBeLessThanOrEqual(4096);
      expect(payload).toHaveLength(fixed + length);
    }
  }
});

it('places the offset of an error chunk inside its request', async () => {
  const { client } = await open(server, 'odd', { structured: true });
  const offset = VAST_SIZE;
  for (const type of [CMD.READ, CMD.WRITE_ZEROES, CMD.TRIM, CMD.CACHE]) {
    for (const { type: chunk, payload } of await client.call({ type, offset, length: 4096 })) {
      if (chunk !== CHUNK.ERROR_OFFSET) continue;
      const at = Number(payload.readBigUInt64BE(payload.length - 8));
      expect(at >= offset && at < offset + 4096).toBe(true);
    }
  }
});
