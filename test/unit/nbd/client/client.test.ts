// SPDX-License-Identifier: MIT
import { once } from 'node:events';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { NBD_CLIENT_REQUESTS_MAX } from '../../../../src/base/limits.js';
import { NbdClient } from '../../../../src/nbd/client/client.js';
import { bytes, FakeNbdPeer } from '../../../support/fake-nbd-peer.js';
import { testScope } from '../../../support/temp.js';
import { failure, start } from './fake-server.js';

const { u32, u64 } = bytes;

const FORMS = ['simple', 'structured', 'extended'] as const;

test.each(FORMS)('every command works with %s replies', async (replies) => {
  const { peer, client } = await start({ replies, contexts: ['base:allocation'] });
  expect(client.replies).toBe(replies);
  peer.memory.fill(7, 4096, 8192);
  const buffer = Buffer.alloc(8192);
  await client.read(0, buffer);
  expect(buffer.equals(peer.memory.subarray(0, 8192))).toBe(true);
  const large = Buffer.alloc(300_000, 0x5a);
  await client.write(1000, large, { fua: true });
  expect(peer.memory.subarray(1000, 301_000).equals(large)).toBe(true);
  await client.writeZeroes(2000, 1000, { noHole: true, fastZero: true });
  expect(peer.memory.subarray(2000, 3000).equals(Buffer.alloc(1000))).toBe(true);
  await client.trim(0, 4096);
  await client.cache(0, 4096);
  await client.flush();
  const flags = peer.requests.map(({ type, flags }) => [type, flags]);
  const length = replies === 'extended' ? 0x20 : 0;
  expect(flags).toEqual([
    [0, 0],
    [1, 1 | length],
    [6, 0x12],
    [4, 0],
    [5, 0],
    [3, 0],
  ]);
  if (replies !== 'simple') {
    expect(await client.blockStatus(512, 1024)).toEqual([{ length: 1024, flags: 0 }]);
  }
});

test('takes a server that knows nothing but EXPORT_NAME', async () => {
  const { peer, client } = await start({ handshakeFlags: 0 });
  expect(peer.optionsSeen).toEqual([1]);
  expect(client.replies).toBe('simple');
  expect(client.contexts).toEqual([]);
});

test('falls back to EXPORT_NAME where GO is unknown', async () => {
  const { peer, client } = await start({ withoutGo: true });
  expect(peer.optionsSeen).toEqual([11, 8, 10, 7, 1]);
  expect(client.blockSizes).toEqual({
    minimum: 1,
    preferred: 4096,
    maximum: 32 * 1024 * 1024,
    advertised: false,
  });
});

test('splits a read and a write at the maximum payload of the server', async () => {
  const { peer, client } = await start({ blockSizes: [512, 4096, 65_536] });
  const data = Buffer.alloc(200 * 1024, 3);
  await client.write(0, data);
  const back = Buffer.alloc(data.length);
  await client.read(0, back);
  expect(back.equals(data)).toBe(true);
  expect(Math.max(...peer.requests.map(({ length }) => length))).toBe(65_536);
});

test('zeroes in smaller pieces when the server finds the request too large', async () => {
  const { peer, client } = await start({
    size: 16 * 1024 * 1024,
    blockSizes: [1, 4096, 1024 * 1024],
    onRequest: (connection, request) => {
      if (request.length <= 1024 * 1024) return false;
      connection.simpleReply(request, 75);
      return true;
    },
  });
  await client.writeZeroes(0, 16 * 1024 * 1024);
  expect(peer.requests.length).toBe(17);
});

test('refuses what lies outside of the export or is not in whole blocks', async () => {
  const { peer, client } = await start({ blockSizes: [512, 4096, 65_536] });
  const buffer = Buffer.alloc(1024);
  expect((await failure(client.read(client.size - 512, buffer))).code).toBe('DF_OUT_OF_RANGE');
  expect((await failure(client.read(-512, buffer))).code).toBe('DF_OUT_OF_RANGE');
  expect((await failure(client.write(100, buffer))).code).toBe('DF_INVALID');
  expect((await failure(client.trim(0, 100))).code).toBe('DF_INVALID');
  expect(peer.requests).toEqual([]);
});

test('refuses what the server does not offer', async () => {
  const { client } = await start({ flags: 1, contexts: [] });
  expect(client.capabilities.trim).toBe(false);
  for (const work of [
    client.trim(0, 512),
    client.writeZeroes(0, 512),
    client.cache(0, 512),
    client.write(0, Buffer.alloc(1), { fua: true }),
    client.read(0, Buffer.alloc(1), { df: true }),
    client.blockStatus(0, 512),
  ]) {
    expect((await failure(work)).code).toBe('DF_NOT_SUPPORTED');
  }
  await client.flush(); // a server without it has nothing to flush
});

test('refuses to change a read-only export', async () => {
  const { client } = await start({ flags: 0xcef });
  expect((await failure(client.write(0, Buffer.alloc(1)))).code).toBe('DF_READ_ONLY');
});

test("passes the server's errors on", async () => {
  const errors: [number, string, string][] = [
    [1, 'DF_ACCESS', 'EPERM'],
    [5, 'DF_IO', 'EIO'],
    [12, 'DF_NO_MEMORY', 'ENOMEM'],
    [22, 'DF_INVALID', 'EINVAL'],
    [28, 'DF_NO_SPACE', 'ENOSPC'],
    [75, 'DF_TOO_LARGE', 'EOVERFLOW'],
    [95, 'DF_NOT_SUPPORTED', 'ENOTSUP'],
    [108, 'DF_SHUTDOWN', 'ESHUTDOWN'],
    [9999, 'DF_IO', 'EIO'],
  ];
  const { client } = await start({
    onRequest: (connection, request) => {
      connection.simpleReply(request, request.offset);
      return true;
    },
  });
  for (const [value, code, errno] of errors) {
    const error = await failure(client.write(value, Buffer.alloc(8)));
    expect([error.code, error.context.errno]).toEqual([code, errno]);
  }
});

test('takes a read in pieces, in any order, with holes, and with the text of an error', async () => {
  const { client } = await start({
    onRequest: (connection, request) => {
      if (request.offset > 0) {
        const text = Buffer.from('no luck');
        const payload = [u32(5), bytes.u16(text.length), text, u64(request.offset + 1)];
        connection.dataChunk(request, request.offset, Buffer.alloc(10), false);
        connection.chunk(request, 0x8002, Buffer.concat(payload), false);
        connection.chunk(request, 0, Buffer.alloc(0));
        return true;
      }
      connection.dataChunk(request, 40_000, Buffer.alloc(60_000, 3), false);
      connection.chunk(request, 2, Buffer.concat([u64(10), u32(39_990)]), false);
      connection.dataChunk(request, 0, Buffer.alloc(10, 1), false);
      connection.chunk(request, 0, Buffer.alloc(0));
      return true;
    },
  });
  const buffer = Buffer.alloc(100_000, 9);
  await client.read(0, buffer);
  const expected = [Buffer.alloc(10, 1), Buffer.alloc(39_990), Buffer.alloc(60_000, 3)];
  expect(buffer.equals(Buffer.concat(expected))).toBe(true);
  const error = await failure(client.read(512, Buffer.alloc(1000)));
  expect(error.code).toBe('DF_IO');
  expect(error.message).toContain('no luck');
});

test('an answer that comes byte by byte is an answer', async () => {
  const { client } = await start({
    onRequest: (connection, request) => {
      const head = [u32(0x668e33ef), bytes.u16(1), bytes.u16(1), u64(request.cookie), u32(16)];
      const reply = Buffer.concat([...head, u64(request.offset), Buffer.from('abcdefgh')]);
      let at = 0;
      const next = (): void => {
        connection.send(reply.subarray(at, at + 1));
        at++;
        if (at < reply.length) setImmediate(next);
      };
      next();
      return true;
    },
  });
  const buffer = Buffer.alloc(8);
  await client.read(64, buffer);
  expect(buffer.toString()).toBe('abcdefgh');
});

test('asks for several meta contexts and keeps them apart', async () => {
  const contexts = ['base:allocation', 'qemu:dirty-bitmap:b0'];
  const { client } = await start(
    {
      contexts,
      onRequest: (connection, request) => {
        const first = [u32(1), u32(100), u32(3), u32(412), u32(0)];
        connection.chunk(request, 5, Buffer.concat(first), false);
        connection.chunk(request, 5, Buffer.concat([u32(2), u32(9999), u32(1)]));
        return true;
      },
    },
    { metaContexts: contexts },
  );
  const statuses = await client.blockStatuses(0, 512);
  expect(Object.fromEntries(statuses)).toEqual({
    'base:allocation': [
      { length: 100, flags: 3 },
      { length: 412, flags: 0 },
    ],
    'qemu:dirty-bitmap:b0': [{ length: 512, flags: 1 }],
  });
});

test('keeps a bounded number of requests on the wire, the others wait', async () => {
  const held: (() => void)[] = [];
  const { peer, client } = await start({
    onRequest: (connection, request) => {
      held.push(() => connection.answer(request));
      return true;
    },
  });
  const reads = Array.from({ length: 300 }, (_, at) => client.read(at * 512, Buffer.alloc(512)));
  await expect.poll(() => held.length).toBe(NBD_CLIENT_REQUESTS_MAX);
  await client.blockStatuses(0, 512); // nothing negotiated, nothing sent
  expect(peer.requests.length).toBe(NBD_CLIENT_REQUESTS_MAX);
  while (peer.requests.length < 300 || held.length > 0) {
    for (const answer of held.splice(0)) answer();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await Promise.all(reads);
});

test('lists exports, up to a bound', async () => {
  const scope = testScope();
  let length = 100;
  const peer = await FakeNbdPeer.start(scope, {
    onOption: (connection, option) => {
      if (option !== 3) return false;
      const name = Buffer.from('disk');
      const entry = Buffer.concat([u32(4), name, Buffer.alloc(length, 'd')]);
      for (let sent = 0; sent < 300; sent++) connection.optionReply(3, 2, entry);
      connection.optionReply(3, 1);
      return true;
    },
  });
  const listed = await NbdClient.list({ address: peer.address });
  expect(listed.length).toBe(300);
  expect(listed[0]).toEqual({ name: 'disk', description: 'd'.repeat(100) });
  length = 31_000;
  const error = await failure(NbdClient.list({ address: peer.address }));
  expect(error.message).toMatch(/more than 8388608 bytes of answer to NBD_OPT_LIST/);
});

test('close ends what is under way at once', async () => {
  const { client } = await start({ onRequest: () => true });
  const reading = failure(client.read(0, Buffer.alloc(512)));
  await client.close();
  expect((await reading).code).toBe('DF_CANCELLED');
  expect((await failure(client.flush())).code).toBe('DF_CANCELLED');
});

test('says goodbye when nothing is under way', async () => {
  const { peer, client } = await start();
  await client.flush();
  await client.close();
  await expect.poll(() => peer.requests.map(({ type }) => type)).toEqual([3, 2]);
});

test('a socket whose path is cut off by the system is not connected to', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 's'.repeat(107 - dir.length - 1));
  const server = createServer();
  scope.defer(() => server.close());
  await once(server.listen(path), 'listening');
  let connections = 0;
  server.on('connection', (socket) => {
    connections++;
    socket.destroy();
  });
  const error = await failure(
    NbdClient.connect({ address: { type: 'unix', path: `${path}-other` } }),
  );
  expect(error.message).toContain(`UNIX socket path '${path}-other' is too long`);
  expect({ code: error.code, connections }).toEqual({ code: 'DF_INVALID', connections: 0 });
});
