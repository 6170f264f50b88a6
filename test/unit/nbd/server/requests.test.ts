// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { NBD_REPLY_HELD_MS } from '../../../../src/base/limits.js';
import {
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  REQ_PREFETCH,
} from '../../../../src/block/block-driver.js';
import {
  CHUNK,
  CMD,
  CMD_FLAG,
  contentOf,
  ERROR,
  encodeRequest,
  type Request,
} from '../../../support/nbd-wire.js';
import { client, MIB, pattern, serve } from './served.js';

const read = (offset: number, length: number): Request => ({ type: CMD.READ, offset, length });

it('lets replies go while the node works on requests behind them', async () => {
  const served = await serve();
  const raw = await client(served);
  const { backend, server } = served;
  const unsent: (number | undefined)[] = [];
  const write = backend.write.bind(backend);
  backend.write = (offset, buffer, flags) => {
    unsent.push(server.connections()[0]?.unsentBytes);
    const end = performance.now() + 20 * NBD_REPLY_HELD_MS;
    while (performance.now() < end);
    return write(offset, buffer, flags);
  };
  const requests = [0, 1, 2].map((cookie) =>
    encodeRequest({
      type: CMD.WRITE,
      offset: 0,
      data: pattern(512, cookie),
      cookie: BigInt(cookie),
    }),
  );
  raw.send(Buffer.concat(requests));
  for (const cookie of [0n, 1n, 2n]) expect(await raw.reply()).toMatchObject({ error: 0, cookie });
  expect(unsent).toEqual([0, 0, 0]);
});

describe.each([
  ['a node that completes at once', {}],
  ['a node that has to wait', { delayMs: 1 }],
])('with %s', (_name, mode) => {
  it.each([
    ['small', 512, 4096],
    ['joined with others', 4096, 65536],
    ['in its own buffer', 0, 300_000],
    ['of one piece', 1, MIB],
    ['of several pieces', 12345, 3 * MIB + 17],
  ])('writes and reads back: %s', async (_size, offset, length) => {
    const served = await serve(mode);
    const data = pattern(length);
    const raw = await client(served);
    expect(await raw.callError({ type: CMD.WRITE, offset, data })).toBe(0);
    expect(served.backend.content.subarray(offset, offset + length).equals(data)).toBe(true);
    const [simple] = await raw.call(read(offset, length));
    expect(simple?.payload.equals(data)).toBe(true);
    const structured = await client(served, { structured: true });
    const chunks = await structured.call(read(offset, length));
    expect(contentOf(chunks, offset, length).equals(data)).toBe(true);
  });

  it('answers a flood of mixed requests, each with its own cookie and data', async () => {
    const served = await serve(mode);
    const raw = await client(served);
    const count = 600;
    const requests = Array.from({ length: count }, (_, index) =>
      encodeRequest({
        type: CMD.WRITE,
        offset: index * 4096,
        data: pattern(4096, index),
        cookie: BigInt(index),
      }),
    );
    raw.send(Buffer.concat(requests));
    const written = new Set<bigint>();
    for (let index = 0; index < count; index++) {
      const reply = await raw.reply();
      expect(reply.error).toBe(0);
      written.add(reply.cookie);
    }
    expect(written.size).toBe(count);
    const reads = Array.from({ length: count }, (_, index) =>
      encodeRequest({ ...read(index * 4096, 4096), cookie: BigInt(index) }),
    );
    raw.send(Buffer.concat(reads));
    for (let index = 0; index < count; index++) {
      const { cookie, payload } = await raw.reply(4096);
      expect(payload.equals(pattern(4096, Number(cookie)))).toBe(true);
    }
  });

  it('takes a request that comes byte by byte', async () => {
    const served = await serve(mode);
    const raw = await client(served);
    const bytes = encodeRequest({ type: CMD.WRITE, offset: 7, data: pattern(40), cookie: 9n });
    for (const byte of bytes) await raw.sendAll(Buffer.from([byte]));
    expect(await raw.reply()).toMatchObject({ error: 0, cookie: 9n });
    expect(served.backend.content.subarray(7, 47)).toEqual(pattern(40));
  });

  it('takes a long write that comes in parts, and requests behind it', async () => {
    const served = await serve(mode);
    const raw = await client(served);
    const data = pattern(2 * MIB);
    const bytes = Buffer.concat([
      encodeRequest({ type: CMD.WRITE, offset: 0, data, cookie: 1n }),
      encodeRequest({ ...read(100, 200), cookie: 2n }),
    ]);
    for (let at = 0; at < bytes.byteLength; at += 77_777) {
      await raw.sendAll(bytes.subarray(at, at + 77_777));
    }
    const first = await raw.reply(0);
    const second = first.cookie === 1n ? await raw.reply(200) : await raw.reply(0);
    expect([first.cookie, second.cookie].sort()).toEqual([1n, 2n]);
    expect(served.backend.content.subarray(0, 2 * MIB).equals(data)).toBe(true);
  });

  it('answers what is in flight before it closes after DISC', async () => {
    const served = await serve(mode);
    const raw = await client(served);
    raw.send(encodeRequest(read(0, 4096)), encodeRequest({ type: CMD.DISC }));
    expect((await raw.readToEnd()).byteLength).toBe(16 + 4096);
  });
});

describe('flags of requests', () => {
  it('passes FUA on to a write, and as one flush behind a write in pieces', async () => {
    const served = await serve({ size: 8 * MIB });
    const raw = await client(served);
    await raw.call({ type: CMD.WRITE, flags: CMD_FLAG.FUA, data: pattern(512) });
    expect(served.backend.seen.at(-1)).toMatchObject({ op: 'write', flags: REQ_FUA });
    served.backend.seen.length = 0;
    await raw.call({ type: CMD.WRITE, flags: CMD_FLAG.FUA, data: pattern(3 * MIB) });
    expect(served.backend.seen.map(({ op, flags }) => [op, flags])).toEqual([
      ['write', 0],
      ['write', 0],
      ['write', 0],
      ['flush', undefined],
    ]);
  });

  it('makes every write FUA for a writethrough export', async () => {
    const served = await serve({}, { writethrough: true });
    const raw = await client(served);
    await raw.call({ type: CMD.WRITE, data: pattern(512) });
    expect(served.backend.seen.at(-1)).toMatchObject({ op: 'write', flags: REQ_FUA });
    await raw.call({ type: CMD.TRIM, length: 4096 });
    expect(served.backend.seen.at(-1)).toMatchObject({ op: 'flush' });
  });

  it('may punch holes for zeroes unless NO_HOLE, and must not fall back with FAST_ZERO', async () => {
    const served = await serve();
    const raw = await client(served);
    const zero = (flags: number) => raw.callError({ type: CMD.WRITE_ZEROES, flags, length: 4096 });
    await zero(0);
    await zero(CMD_FLAG.NO_HOLE);
    await zero(CMD_FLAG.FAST_ZERO | CMD_FLAG.FUA);
    expect(served.backend.seen.map(({ flags }) => flags)).toEqual([
      REQ_MAY_UNMAP,
      0,
      REQ_MAY_UNMAP | REQ_NO_FALLBACK | REQ_FUA,
    ]);
  });

  it('reads ahead for CACHE without sending data', async () => {
    const served = await serve();
    const raw = await client(served);
    const [reply] = await raw.call({ type: CMD.CACHE, offset: 4096, length: 8192 });
    expect(reply).toMatchObject({ form: 'simple', error: 0 });
    expect(served.backend.seen.at(-1)).toMatchObject({ offset: 4096, flags: REQ_PREFETCH });
  });
});

describe('failures', () => {
  const bad = { offset: 2 * MIB, length: 4096 };

  it('says ENOTSUP only of fast zeroes', async () => {
    const served = await serve({ slowZeroes: true });
    const raw = await client(served);
    const flags = CMD_FLAG.FAST_ZERO;
    expect(await raw.callError({ type: CMD.WRITE_ZEROES, flags, length: 512 })).toBe(ERROR.ENOTSUP);
    expect(await raw.callError({ type: CMD.WRITE_ZEROES, length: 512 })).toBe(0);
  });

  it('sends no payload with a failed simple read', async () => {
    const raw = await client(await serve({ bad }));
    const [reply] = await raw.call(read(2 * MIB, 4096));
    expect(reply).toMatchObject({ error: ERROR.EIO });
    expect(await raw.callError(read(0, 512))).toBe(0);
  });

  it('sends a text with a failed structured read', async () => {
    const raw = await client(await serve({ bad }), { structured: true });
    const [reply] = await raw.call(read(2 * MIB, 4096));
    expect(reply).toMatchObject({ type: CHUNK.ERROR, error: ERROR.EIO, flags: 1 });
    expect(reply?.payload.subarray(6).toString()).toBe('the medium is broken here');
  });

  it('names the offset at which a long structured read failed, behind what it could read', async () => {
    const served = await serve({ bad });
    served.backend.content.fill(0x55);
    const raw = await client(served, { structured: true });
    const replies = await raw.call(read(0, 4 * MIB));
    const last = replies.at(-1);
    expect(last).toMatchObject({ type: CHUNK.ERROR_OFFSET, error: ERROR.EIO, flags: 1 });
    expect(last?.payload.readBigUInt64BE(last.payload.length - 8)).toBe(BigInt(2 * MIB));
    const content = replies.slice(0, -1).map(({ type }) => type);
    expect(content).toEqual([CHUNK.OFFSET_DATA, CHUNK.OFFSET_DATA]);
  });

  it('answers a long write once when a piece of it fails, and takes all its payload', async () => {
    const raw = await client(await serve({ bad }));
    expect(await raw.callError({ type: CMD.WRITE, data: pattern(4 * MIB) })).toBe(ERROR.EIO);
    expect(await raw.callError(read(0, 512))).toBe(0);
  });

  it('skips the payload of a refused write', async () => {
    const raw = await client(await serve({}, { writable: false }));
    expect(await raw.callError({ type: CMD.WRITE, data: pattern(MIB) })).toBe(ERROR.EPERM);
    expect(await raw.callError(read(0, 512))).toBe(0);
  });

  it('drops a client that announces more payload than is allowed', async () => {
    const raw = await client(await serve());
    raw.send(encodeRequest({ type: CMD.WRITE, length: 32 * MIB + 1 }));
    expect(await raw.readToEnd()).toHaveLength(0);
  });
});

describe('zeroes in structured reads', () => {
  it('are sent as a hole from 4 KiB on, as data below', async () => {
    const raw = await client(await serve(), { structured: true });
    expect((await raw.call(read(0, 4096)))[0]).toMatchObject({ type: CHUNK.OFFSET_HOLE });
    expect((await raw.call(read(0, 4095)))[0]).toMatchObject({ type: CHUNK.OFFSET_DATA });
  });

  it('are not taken for a hole when a single byte in them differs', async () => {
    const served = await serve();
    served.backend.content[70_000] = 1;
    const raw = await client(served, { structured: true });
    const replies = await raw.call(read(0, 200_000));
    expect(replies[0]).toMatchObject({ type: CHUNK.OFFSET_DATA });
    expect(contentOf(replies, 0, 200_000)[70_000]).toBe(1);
  });
});
