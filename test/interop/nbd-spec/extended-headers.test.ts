// SPDX-License-Identifier: MIT
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  CHUNK,
  CMD,
  CMD_FLAG,
  contentOf,
  ERROR,
  encodeExtendedRequest,
  FLAG,
  OPT,
  REP,
  type Reply,
  statusOf,
} from '../../support/nbd-wire.js';
import type { RawNbd } from '../../support/raw-nbd.js';
import {
  DISK_CONTENT,
  DISK_SIZE,
  haggle,
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

const BASE = 'base:allocation';
const { PAYLOAD_LEN } = CMD_FLAG;

const errorIn = (replies: readonly Reply[]): number =>
  replies.find(({ error }) => error !== 0)?.error ?? 0;

async function alive(client: RawNbd): Promise<void> {
  expect(errorIn(await client.extendedCall({ type: CMD.READ, length: 512 }))).toBe(0);
}

it('refuses EXTENDED_HEADERS that carries data', async () => {
  const client = await haggle(server);
  expect(await client.optionType(OPT.EXTENDED_HEADERS, Buffer.alloc(4))).toBe(REP.ERR_INVALID);
  await client.go('disk');
  expect(await client.callError({ type: CMD.READ, length: 512 })).toBe(0);
});

it('takes EXTENDED_HEADERS with and without structured replies before it, and then GO', async () => {
  for (const structured of [false, true]) {
    const { client, info } = await open(server, 'ro', { structured, extended: true });
    expect(info.flags & FLAG.SEND_DF).toBe(FLAG.SEND_DF);
    await alive(client);
  }
});

it('refuses STRUCTURED_REPLY after EXTENDED_HEADERS with ERR_EXT_HEADER_REQD', async () => {
  const client = await haggle(server);
  expect(await client.optionType(OPT.EXTENDED_HEADERS)).toBe(REP.ACK);
  expect(await client.optionType(OPT.STRUCTURED_REPLY)).toBe(REP.ERR_EXT_HEADER_REQD);
  await client.go('ro');
  await alive(client);
});

it('never asks a client with compact headers for extended ones', async () => {
  const client = await haggle(server);
  await client.go('ro');
  expect(await client.callError({ type: CMD.READ, length: 512 })).toBe(0);
});

it('uses only extended replies, which echo cookie and offset', async () => {
  const { client } = await open(server, 'disk', { extended: true, contexts: [BASE] });
  const data = Buffer.alloc(512, 0x11);
  const requests = [
    { type: CMD.READ, offset: MIB - 512, length: 1024 },
    { type: CMD.READ, offset: DISK_SIZE, length: 1 },
    { type: CMD.WRITE, flags: PAYLOAD_LEN, offset: 512, data },
    { type: CMD.FLUSH },
    { type: CMD.TRIM, offset: 3 * MIB, length: 4096 },
    { type: CMD.BLOCK_STATUS, offset: 4096, length: 8192 },
    { type: 4000, offset: 0xffff_ffff_ffff_ffffn },
  ];
  for (const [at, request] of requests.entries()) {
    const cookie = 0xfedc_ba98_0000_0000n + BigInt(at);
    for (const reply of await client.extendedCall({ ...request, cookie })) {
      expect(reply).toMatchObject({
        form: 'extended',
        cookie,
        offset: BigInt(request.offset ?? 0),
      });
    }
  }
});

it('reads and writes with extended headers', async () => {
  const { client } = await open(server, 'disk', { extended: true });
  const data = Buffer.alloc(5000, 0x6c);
  const write = { type: CMD.WRITE, flags: PAYLOAD_LEN, offset: 2 * MIB + 1, data };
  expect(errorIn(await client.extendedCall(write))).toBe(0);
  const offset = 2 * MIB;
  const replies = await client.extendedCall({ type: CMD.READ, offset, length: 8192 });
  const expected = Buffer.from(DISK_CONTENT.subarray(offset, offset + 8192));
  data.copy(expected, 1);
  expect(contentOf(replies, offset, 8192).equals(expected)).toBe(true);
});

it('carries out a WRITE without PAYLOAD_LEN whole, or refuses it with EINVAL', async () => {
  const { client } = await open(server, 'disk', { extended: true });
  const data = Buffer.alloc(512, 0x39);
  const replies = await client.extendedCall({ type: CMD.WRITE, offset: 3 * MIB, data });
  const error = errorIn(replies);
  expect([0, ERROR.EINVAL]).toContain(error);
  const { client: reader } = await open(server, 'disk');
  const [read] = await reader.call({ type: CMD.READ, offset: 3 * MIB, length: 512 });
  expect(read?.payload.equals(error === 0 ? data : Buffer.alloc(512))).toBe(true);
});

it('consumes the payload of a command that takes none, refuses it with EINVAL, and goes on', async () => {
  const { client } = await open(server, 'disk', { extended: true });
  for (const type of [CMD.READ, CMD.FLUSH, CMD.TRIM, CMD.CACHE, CMD.WRITE_ZEROES, 3333]) {
    for (const size of [1, 4096, MIB]) {
      const request = { type, flags: PAYLOAD_LEN, data: Buffer.alloc(size, 0x25) };
      expect(errorIn(await client.extendedCall(request))).toBe(ERROR.EINVAL);
    }
  }
  await alive(client);
});

it('closes on a payload larger than it advertised', async () => {
  for (const length of [2n ** 32n, 2n ** 63n]) {
    const { client } = await open(server, 'disk', { extended: true });
    client.send(encodeExtendedRequest({ type: CMD.WRITE, flags: PAYLOAD_LEN, length }));
    await client.readToEnd();
  }
  await open(server, 'disk');
});

it('takes ranges of more than 32 bits for commands without payload', async () => {
  const { client } = await open(server, 'vast', { extended: true });
  for (const type of [CMD.TRIM, CMD.WRITE_ZEROES, CMD.CACHE]) {
    const error = errorIn(await client.extendedCall({ type, length: VAST_SIZE }));
    // To bring 8 TiB into a cache may be too much to ask.
    expect(type === CMD.CACHE ? [0, ERROR.EOVERFLOW, ERROR.EINVAL] : [0]).toContain(error);
  }
});

it('reports the status of more than 4 GiB in one answer', async () => {
  const { client } = await open(server, 'vast', { extended: true, contexts: [BASE] });
  const replies = await client.extendedCall({ type: CMD.BLOCK_STATUS, length: VAST_SIZE });
  const [status] = replies.filter(({ type }) => type === CHUNK.BLOCK_STATUS_EXT);
  const descriptors = status === undefined ? [] : statusOf(status).descriptors;
  expect(descriptors.some(({ length }) => length > 2 ** 32)).toBe(true);
});

it('sends wide status chunks of whole descriptors, counted right, with padding of zero', async () => {
  const { client, contexts } = await open(server, 'ro', { extended: true, contexts: [BASE] });
  const replies = await client.extendedCall({ type: CMD.BLOCK_STATUS, length: DISK_SIZE });
  const status = replies.filter(({ type }) =>
    [CHUNK.BLOCK_STATUS, CHUNK.BLOCK_STATUS_EXT].some((one) => one === type),
  );
  expect(status.map((reply) => statusOf(reply).context)).toEqual([...contexts.keys()]);
  for (const { type, payload } of status) {
    if (type !== CHUNK.BLOCK_STATUS_EXT) continue;
    expect((payload.length - 8) % 16).toBe(0);
    const count = payload.readUInt32BE(4);
    if (count !== 0) expect(payload.length).toBe(count * 16 + 8);
    for (let at = 8; at < payload.length; at += 16) {
      expect(payload.readBigUInt64BE(at)).toBeGreaterThan(0n);
      expect(payload.readUInt32BE(at + 8)).toBe(0);
    }
  }
});

it('sends no wide status chunk to a client with compact headers', async () => {
  const { client } = await open(server, 'vast', { structured: true, contexts: [BASE] });
  const replies = await client.call({ type: CMD.BLOCK_STATUS, length: 0xffff_f000 });
  expect(replies.some(({ type }) => type === CHUNK.BLOCK_STATUS_EXT)).toBe(false);
});

it('ends an answer with DONE on its last extended chunk alone', async () => {
  const { client } = await open(server, 'ro', { extended: true });
  const replies = await client.extendedCall({ type: CMD.READ, length: DISK_SIZE });
  expect(replies.map(({ flags }) => flags)).toEqual(
    replies.map((_, at) => (at === replies.length - 1 ? 1 : 0)),
  );
  expect(contentOf(replies, 0, DISK_SIZE).equals(DISK_CONTENT)).toBe(true);
});
