// SPDX-License-Identifier: MIT
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  blockSizes,
  CMD,
  CMD_FLAG,
  ERROR,
  encodeRequest,
  FLAG,
  INFO,
  type Request,
} from '../../support/nbd-wire.js';
import {
  DISK_CONTENT,
  DISK_SIZE,
  MIB,
  ODD_SIZE,
  open,
  type SpecServer,
  startOwnServer,
  startSpecServer,
  VAST_SIZE,
} from './fixture.js';

let server: SpecServer;
beforeAll(async () => {
  server = await startSpecServer();
});
afterAll(() => server?.close());

/** Every command that has a range. */
const RANGED = [CMD.READ, CMD.TRIM, CMD.CACHE, CMD.WRITE_ZEROES, CMD.WRITE] as const;

it('uses only simple replies when nothing else was negotiated', async () => {
  const { client } = await open(server, 'ro');
  const requests: Request[] = [
    { type: CMD.READ, length: 512 },
    { type: CMD.READ, offset: DISK_SIZE, length: 512 },
    { type: CMD.WRITE, data: Buffer.alloc(512) },
    { type: CMD.FLUSH },
    { type: 999 },
  ];
  for (const request of requests) {
    for (const { form } of await client.call(request)) expect(form).toBe('simple');
  }
});

it('reads what is there, data and holes', async () => {
  const { client } = await open(server, 'ro');
  for (const [offset, length] of [
    [0, DISK_SIZE],
    [MIB - 5, 10],
    [DISK_SIZE - 1, 1],
  ] as const) {
    const [reply] = await client.call({ type: CMD.READ, offset, length });
    expect(reply?.payload.equals(DISK_CONTENT.subarray(offset, offset + length))).toBe(true);
  }
});

it('echoes every cookie as it came', async () => {
  const { client } = await open(server, 'ro');
  for (const cookie of [0n, 1n, 0x8000_0000_0000_0000n, 0xffff_ffff_ffff_ffffn, 2n ** 53n + 1n]) {
    const [reply] = await client.call({ type: CMD.READ, cookie, length: 16 });
    expect(reply?.cookie).toBe(cookie);
    const [error] = await client.call({ type: 999, cookie });
    expect(error?.cookie).toBe(cookie);
  }
});

it('answers each of many requests in flight once', async () => {
  const { client } = await open(server, 'ro');
  const cookies = Array.from({ length: 500 }, (_, at) => BigInt(at) << 32n);
  client.send(...cookies.map((cookie) => encodeRequest({ type: CMD.READ, cookie, length: 512 })));
  const answered: bigint[] = [];
  for (const _ of cookies) answered.push((await client.reply(512)).cookie);
  expect(answered.sort((a, b) => (a < b ? -1 : 1))).toEqual(cookies);
});

it('sends no payload with a failed read, and goes on', async () => {
  const { client } = await open(server, 'ro');
  const [failed] = await client.call({ type: CMD.READ, offset: DISK_SIZE - 1, length: 2 });
  expect(failed).toMatchObject({ error: ERROR.EINVAL, payload: Buffer.alloc(0) });
  expect(await client.callError({ type: CMD.READ, length: 1 })).toBe(0);
});

it('writes before it replies', async () => {
  const own = await startOwnServer();
  const { client } = await open(own, 'disk');
  const data = Buffer.alloc(3000, 0x5a);
  expect(await client.callError({ type: CMD.WRITE, offset: 777, data })).toBe(0);
  const content = await readFile(join(own.dir, 'disk.raw'));
  expect(content.subarray(777, 3777).equals(data)).toBe(true);
  expect(content.subarray(0, 777).equals(DISK_CONTENT.subarray(0, 777))).toBe(true);
});

it('makes a write visible to all connections once it is flushed, as multi-conn says', async () => {
  const { client: writer, info } = await open(server, 'disk');
  const { client: reader } = await open(server, 'disk');
  expect(info.flags & FLAG.CAN_MULTI_CONN).toBe(FLAG.CAN_MULTI_CONN);
  for (let time = 1; time <= 20; time += 1) {
    const data = Buffer.alloc(4096, time);
    const flags = time % 2 === 0 ? CMD_FLAG.FUA : 0;
    expect(await writer.callError({ type: CMD.WRITE, flags, offset: 8192, data })).toBe(0);
    if (flags === 0) expect(await writer.callError({ type: CMD.FLUSH })).toBe(0);
    const [read] = await reader.call({ type: CMD.READ, offset: 8192, length: 4096 });
    expect(read?.payload.equals(data)).toBe(true);
  }
});

it('errors every write to a read-only export with EPERM', async () => {
  const { client, info } = await open(server, 'ro');
  expect(info.flags & FLAG.READ_ONLY).toBe(FLAG.READ_ONLY);
  expect(await client.callError({ type: CMD.WRITE, data: Buffer.alloc(512) })).toBe(ERROR.EPERM);
  expect(await client.callError({ type: CMD.TRIM, length: 512 })).toBe(ERROR.EPERM);
  expect(await client.callError({ type: CMD.WRITE_ZEROES, length: 512 })).toBe(ERROR.EPERM);
  const content = await readFile(join(server.dir, 'ro.raw'));
  expect(content.equals(DISK_CONTENT)).toBe(true);
});

it('answers what reaches past the end with ENOSPC for writes and EINVAL for the rest', async () => {
  const { client, info } = await open(server, 'odd');
  const end = Number(info.size);
  const places = [
    [end - 1, 2],
    [end, 1],
    [2 ** 40, 512],
  ] as const;
  for (const [offset, length] of places) {
    const data = Buffer.alloc(length);
    expect(await client.callError({ type: CMD.WRITE, offset, data })).toBe(ERROR.ENOSPC);
    const without = { offset, length };
    expect(await client.callError({ type: CMD.WRITE_ZEROES, ...without })).toBe(ERROR.ENOSPC);
    expect(await client.callError({ type: CMD.READ, ...without })).toBe(ERROR.EINVAL);
    expect(await client.callError({ type: CMD.TRIM, ...without })).toBe(ERROR.EINVAL);
  }
});

it('refuses what is not aligned to the block size it advertised with EINVAL', async () => {
  const own = await startOwnServer((dir) => [
    ...['--blockdev', `driver=file,node-name=file,filename=${dir}/disk.raw`],
    ...['--blockdev', 'driver=blkdebug,image=file,align=4096,node-name=coarse'],
    ...['--export', 'type=nbd,id=e,node-name=coarse,writable=on'],
  ]);
  const { client, info } = await open(own, 'coarse', { infos: [INFO.BLOCK_SIZE] });
  expect(blockSizes(info)?.[0]).toBe(4096);
  for (const type of [CMD.READ, CMD.WRITE_ZEROES]) {
    expect(await client.callError({ type, offset: 512, length: 4096 })).toBe(ERROR.EINVAL);
    expect(await client.callError({ type, offset: 4096, length: 512 })).toBe(ERROR.EINVAL);
  }
  const data = Buffer.alloc(512);
  expect(await client.callError({ type: CMD.WRITE, offset: 4096, data })).toBe(ERROR.EINVAL);
  expect(await client.callError({ type: CMD.READ, offset: 4096, length: 4096 })).toBe(0);
});

it('survives requests of length 0', async () => {
  for (const structured of [false, true]) {
    const { client } = await open(server, 'disk', { structured });
    for (const type of RANGED) await client.call({ type, offset: 4096, length: 0 });
    expect(await client.callError({ type: CMD.READ, length: 1 })).toBe(0);
  }
});

it('takes FUA on every command', async () => {
  const { client } = await open(server, 'disk', {
    structured: true,
    contexts: ['base:allocation'],
  });
  const flags = CMD_FLAG.FUA;
  for (const type of [CMD.READ, CMD.TRIM, CMD.CACHE, CMD.WRITE_ZEROES, CMD.BLOCK_STATUS]) {
    expect(await client.callError({ type, flags, offset: 3 * MIB, length: 4096 })).toBe(0);
  }
  expect(await client.callError({ type: CMD.FLUSH, flags })).toBe(0);
  const data = Buffer.alloc(512);
  expect(await client.callError({ type: CMD.WRITE, flags, offset: 3 * MIB, data })).toBe(0);
});

it('refuses unknown commands with EINVAL', async () => {
  const { client } = await open(server, 'disk', { structured: true });
  for (const type of [CMD.RESIZE, 9, 0x7fff, 0xffff]) {
    expect(await client.callError({ type, length: 512 })).toBe(ERROR.EINVAL);
  }
});

it('refuses unknown command flags, and flags of other commands, with EINVAL', async () => {
  const { client } = await open(server, 'disk', {
    structured: true,
    contexts: ['base:allocation'],
  });
  const { NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN } = CMD_FLAG;
  const wrong: [number, number[]][] = [
    [CMD.READ, [NO_HOLE, REQ_ONE, FAST_ZERO, PAYLOAD_LEN]],
    [CMD.TRIM, [NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN]],
    [CMD.CACHE, [NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN]],
    [CMD.WRITE_ZEROES, [DF, REQ_ONE, PAYLOAD_LEN]],
    [CMD.BLOCK_STATUS, [NO_HOLE, DF, FAST_ZERO, PAYLOAD_LEN]],
  ];
  for (const [type, flags] of wrong) {
    for (const flag of [...flags, 0x40, 0x8000]) {
      const request = { type, flags: flag, offset: 3 * MIB, length: 512 };
      expect(await client.callError(request)).toBe(ERROR.EINVAL);
    }
  }
  for (const flags of [NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN, 0x40]) {
    const write = { type: CMD.WRITE, flags, offset: 3 * MIB, data: Buffer.alloc(64) };
    expect(await client.callError(write)).toBe(ERROR.EINVAL);
    expect(await client.callError({ type: CMD.FLUSH, flags })).toBe(ERROR.EINVAL);
  }
});

it('does not disconnect for a payload of 32 MiB, even where it has to refuse it', async () => {
  const { client } = await open(server, 'odd');
  const data = Buffer.alloc(32 * MIB);
  expect(await client.callError({ type: CMD.WRITE, data })).toBe(ERROR.ENOSPC);
  const { client: other } = await open(server, 'ro');
  expect(await other.callError({ type: CMD.WRITE, data })).toBe(ERROR.EPERM);
  expect(await other.callError({ type: CMD.READ, length: 1 })).toBe(0);
});

it('does not disconnect for a range without payload that is larger than any payload', async () => {
  const { client } = await open(server, 'vast');
  const length = 0xffff_f000;
  for (const type of [CMD.TRIM, CMD.WRITE_ZEROES, CMD.CACHE]) {
    const error = await client.callError({ type, offset: VAST_SIZE / 2, length });
    expect([0, ERROR.EOVERFLOW, ERROR.EINVAL]).toContain(error);
  }
});

it('never answers an ordinary request with EOVERFLOW, ENOTSUP or ENOMEM', async () => {
  const { client } = await open(server, 'disk', { structured: true });
  for (const type of RANGED) {
    for (const length of [1, 4096, 65_536, MIB]) {
      const range = type === CMD.WRITE ? { data: Buffer.alloc(length) } : { length };
      const error = await client.callError({ type, offset: 3 * MIB, ...range });
      expect(error).toBe(0);
    }
  }
});

it('refuses command flags of CACHE that it does not know', async () => {
  const { client } = await open(server, 'ro', { structured: true });
  expect(await client.callError({ type: CMD.CACHE, length: 4096 })).toBe(0);
  expect(await client.callError({ type: CMD.CACHE, flags: 0x100, length: 512 })).toBe(ERROR.EINVAL);
  const [read] = await client.call({ type: CMD.READ, length: 512 });
  expect(read?.payload.subarray(8)).toEqual(Buffer.alloc(512, 0x11));
});

it('answers all requests in flight, then closes without a word, after DISC', async () => {
  const { client } = await open(server, 'disk');
  const count = 100;
  for (let at = 0; at < count; at += 1) {
    const data = Buffer.alloc(4096, at);
    client.send(
      encodeRequest({ type: CMD.WRITE, cookie: BigInt(at), offset: MIB + at * 4096, data }),
    );
  }
  client.send(encodeRequest({ type: CMD.DISC, cookie: 0xdeadn }));
  for (let at = 0; at < count; at += 1) expect((await client.reply()).error).toBe(0);
  expect(await client.readToEnd()).toHaveLength(0);
  const content = await readFile(join(server.dir, 'disk.raw'));
  for (let at = 0; at < count; at += 1) {
    expect(content[MIB + at * 4096]).toBe(at);
  }
});

it('zeroes with and without NO_HOLE, and then reads zeroes', async () => {
  const own = await startOwnServer();
  const { client } = await open(own, 'disk');
  const path = join(own.dir, 'disk.raw');
  const length = MIB / 2;
  const allocated = async (): Promise<number> => (await stat(path)).blocks * 512;
  const before = await allocated();
  const flags = CMD_FLAG.NO_HOLE;
  expect(await client.callError({ type: CMD.WRITE_ZEROES, flags, offset: 0, length })).toBe(0);
  expect(await allocated()).toBeGreaterThanOrEqual(before);
  const hole = { type: CMD.WRITE_ZEROES, flags, offset: MIB, length };
  expect(await client.callError(hole)).toBe(0);
  expect(await allocated()).toBeGreaterThanOrEqual(before + length);
  expect(await client.callError({ type: CMD.WRITE_ZEROES, offset: 2 * MIB, length })).toBe(0);
  for (const offset of [0, MIB, 2 * MIB]) {
    const [read] = await client.call({ type: CMD.READ, offset, length });
    expect(read?.payload.equals(Buffer.alloc(length))).toBe(true);
  }
  const [rest] = await client.call({ type: CMD.READ, offset: length, length });
  expect(rest?.payload.equals(Buffer.alloc(length, 0x11))).toBe(true);
});

it('zeroes fast or fails with ENOTSUP and leaves the data alone', async () => {
  const { client, info } = await open(server, 'odd');
  expect(info.flags & FLAG.SEND_FAST_ZERO).toBe(FLAG.SEND_FAST_ZERO);
  const flags = CMD_FLAG.FAST_ZERO;
  for (const [offset, length] of [
    [4096, 8192],
    [100, 10],
    [0, ODD_SIZE],
  ] as const) {
    const [before] = await client.call({ type: CMD.READ, offset, length });
    const error = await client.callError({ type: CMD.WRITE_ZEROES, flags, offset, length });
    expect([0, ERROR.ENOTSUP]).toContain(error);
    const [after] = await client.call({ type: CMD.READ, offset, length });
    const expected = error === 0 ? Buffer.alloc(length) : before?.payload;
    expect(expected !== undefined && after?.payload.equals(expected)).toBe(true);
  }
});

it('never fails zeroes without FAST_ZERO with ENOTSUP', async () => {
  const { client } = await open(server, 'odd');
  for (const [offset, length] of [
    [4096, 8192],
    [101, 11],
    [0, ODD_SIZE],
  ] as const) {
    expect(await client.callError({ type: CMD.WRITE_ZEROES, offset, length })).toBe(0);
  }
});

it('does not fail a vast fast zero with EOVERFLOW', async () => {
  const { client } = await open(server, 'vast');
  const request = { type: CMD.WRITE_ZEROES, flags: CMD_FLAG.FAST_ZERO, length: 0xffff_f000 };
  expect([0, ERROR.ENOTSUP]).toContain(await client.callError(request));
});

it('finishes or fails with ESHUTDOWN what is in flight when it is shut down', async () => {
  const own = await startOwnServer();
  const { client } = await open(own, 'disk');
  const count = 200;
  for (let at = 0; at < count; at += 1) {
    const data = Buffer.alloc(4096, at + 1);
    client.send(encodeRequest({ type: CMD.WRITE, cookie: BigInt(at), offset: at * 4096, data }));
  }
  const first = await client.reply();
  const stopped = own.daemon.stop();
  const rest = await client.readToEnd();
  expect((await stopped).code).toBe(0);
  expect(rest.length % 16).toBe(0); // whole simple replies
  const content = await readFile(join(own.dir, 'disk.raw'));
  const done = [Number(first.cookie)];
  for (let at = 0; at < rest.length; at += 16) {
    const error = rest.readUInt32BE(at + 4);
    expect([0, ERROR.ESHUTDOWN]).toContain(error);
    if (error === 0) done.push(Number(rest.readBigUInt64BE(at + 8)));
  }
  for (const at of done) expect(content[at * 4096]).toBe((at + 1) & 0xff);
});
