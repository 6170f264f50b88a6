// SPDX-License-Identifier: MIT
/** Each way in which a server may break the rules, and that it is dropped for it. */
import { describe, expect, test } from 'vitest';
import type { BlockError } from '../../../../src/base/errors.js';
import { NbdClient } from '../../../../src/nbd/client/client.js';
import {
  bytes,
  type FakeConnection,
  FakeNbdPeer,
  type FakePeerOptions,
  type FakeRequest,
} from '../../../support/fake-nbd-peer.js';
import { testScope } from '../../../support/temp.js';
import { failure } from './fake-server.js';

const { u16, u32, u64 } = bytes;
const NONE = Buffer.alloc(0);

async function refusal(options: FakePeerOptions): Promise<BlockError> {
  const scope = testScope();
  const peer = await FakeNbdPeer.start(scope, options);
  return await failure(NbdClient.connect({ address: peer.address, connectTimeoutMs: 2000 }));
}

describe('in the option phase', () => {
  const magic = (text: string): Buffer => Buffer.from(text);
  const reply = (option: number, type: number, length: number): Buffer =>
    Buffer.concat([u64(0x3e889045565a9), u32(option), u32(type), u32(length)]);
  const onGo =
    (...pieces: Buffer[]): NonNullable<FakePeerOptions['onOption']> =>
    (peer, option) => {
      if (option === 7) peer.send(...pieces);
      return option === 7;
    };
  const info = (type: number, ...rest: Buffer[]): Buffer => {
    const payload = Buffer.concat([u16(type), ...rest]);
    return Buffer.concat([reply(7, 3, payload.length), payload]);
  };
  const exported = info(0, u64(4096), u16(1));
  const ack = reply(7, 1, 0);

  const cases: [string, FakePeerOptions, RegExp][] = [
    ['another magic', { greeting: magic('HTTP/1.1 400 Bad Request') }, /Bad initial magic/],
    ['no IHAVEOPT', { greeting: magic('NBDMAGICXXXXXXXX\0\x03') }, /Bad server magic/],
    [
      'an oldstyle greeting',
      { greeting: Buffer.concat([magic('NBDMAGIC'), u64(0x420281861253), Buffer.alloc(136)]) },
      /oldstyle/,
    ],
    [
      'an option reply without its magic',
      { onOption: onGo(Buffer.alloc(20)) },
      /Unexpected option reply magic/,
    ],
    ['a reply to another option', { onOption: onGo(reply(3, 1, 0)) }, /Unexpected option type 3/],
    [
      'an option reply of 4 GiB',
      { onOption: onGo(reply(7, 3, 0xffffffff)) },
      /4294967295 bytes is longer/,
    ],
    ['an ACK without the export', { onOption: onGo(ack) }, /omitted NBD_INFO_EXPORT/],
    ['an ACK with a payload', { onOption: onGo(exported, reply(7, 1, 1), u16(1)) }, /ACK/],
    ['a reply type that has no place', { onOption: onGo(reply(7, 2, 0)) }, /reply type 2/],
    ['an export info that is too short', { onOption: onGo(info(0, u64(1)), ack) }, /is not 12/],
    [
      'no HAS_FLAGS',
      { onOption: onGo(info(0, u64(4096), u16(2)), ack) },
      /lack NBD_FLAG_HAS_FLAGS/,
    ],
    ['a size beyond reason', { onOption: onGo(info(0, u64(2n ** 63n), u16(1)), ack) }, /above/],
    [
      'a minimum block size that is no power of two',
      { onOption: onGo(exported, info(3, u32(3), u32(4096), u32(65_536)), ack) },
      /minimum block size 3/,
    ],
    [
      'a preferred block size of 0',
      { onOption: onGo(exported, info(3, u32(1), u32(0), u32(65_536)), ack) },
      /preferred block size 0/,
    ],
    [
      'a maximum below the minimum',
      { onOption: onGo(exported, info(3, u32(512), u32(512), u32(1)), ack) },
      /maximum block size 1/,
    ],
    [
      'a size that is no multiple of the minimum block size',
      { onOption: onGo(exported, info(3, u32(65_536), u32(65_536), u32(65_536)), ack) },
      /not multiple of minimum block size/,
    ],
    [
      'a meta context that nobody asked for',
      {
        onOption: (peer, option) => {
          if (option === 10) peer.optionReply(10, 4, Buffer.concat([u32(1), Buffer.from('a:b')]));
          return option === 10;
        },
      },
      /nobody asked for/,
    ],
    [
      'data after the option phase',
      { onOption: onGo(exported, ack, u64(1)) },
      /without being asked/,
    ],
  ];

  test.each(cases)('drops a server with %s', async (_what, options, text) => {
    const error = await refusal(options);
    expect(error.message).toMatch(text);
    expect(['DF_PROTOCOL', 'DF_NOT_SUPPORTED', 'DF_TOO_LARGE']).toContain(error.code);
  });

  test('gives up on a server that says nothing', async () => {
    const scope = testScope();
    const peer = await FakeNbdPeer.start(scope, { greeting: NONE });
    const options = { address: peer.address, connectTimeoutMs: 50 };
    expect((await failure(NbdClient.connect(options))).code).toBe('DF_TIMEOUT');
    const signal = AbortSignal.timeout(20);
    expect((await failure(NbdClient.connect({ address: peer.address, signal }))).code).toBe(
      'DF_CANCELLED',
    );
  });

  test('says which export is missing, with what the server says about it', async () => {
    const error = await refusal({
      onOption: (peer, option) => {
        if (option === 7) peer.optionReply(7, 0x80000006, Buffer.from('no\x1b[31m such'));
        return option === 7;
      },
    });
    expect(error.code).toBe('DF_NOT_FOUND');
    expect(error.message).toBe('Requested export not available; server reported: no [31m such');
  });

  test('says that the server wants TLS', async () => {
    const error = await refusal({
      onOption: (peer, option) => {
        peer.optionReply(option, 0x80000005);
        return true;
      },
    });
    expect(error.message).toContain('TLS negotiation required');
  });
});

describe('in the transmission phase', () => {
  type Answer = (peer: FakeConnection, request: FakeRequest) => void;
  const chunk =
    (type: number, ...payload: Buffer[]): Answer =>
    (peer, request) =>
      peer.chunk(request, type, Buffer.concat(payload));

  const cases: [string, Answer, RegExp][] = [
    ['no magic', (peer) => peer.send(Buffer.alloc(16)), /invalid magic/],
    [
      'an unknown cookie',
      (peer, request) => peer.simpleReply({ ...request, cookie: 77n }),
      /cookie 0x4d/,
    ],
    [
      'the same cookie twice',
      (peer, request) => {
        peer.answer(request);
        peer.answer(request);
      },
      /which is not waiting/,
    ],
    [
      'a simple reply to a read',
      (peer, request) => peer.simpleReply(request, 0, Buffer.alloc(4096)),
      /simple reply/,
    ],
    ['NONE without DONE', (peer, request) => peer.chunk(request, 0, NONE, false), /without DONE/],
    ['NONE with a payload', chunk(0, u32(1)), /4 bytes of payload/],
    ['a read that ends without its data', chunk(0), /leaves bytes out/],
    ['data that is too long', chunk(1, u64(0), Buffer.alloc(4097)), /4105 bytes, not 9 to 4104/],
    ['data of no length', chunk(1, u64(0)), /8 bytes, not 9/],
    ['data before the request', chunk(1, u64(0), Buffer.alloc(10)), /exceeds/],
    ['data after the request', chunk(1, u64(8191), Buffer.alloc(10)), /exceeds/],
    ['data at 2^64 - 1', chunk(1, u64(2n ** 64n - 1n), Buffer.alloc(10)), /exceeds/],
    [
      'chunks that overlap',
      (peer, request) => {
        peer.dataChunk(request, 4096, Buffer.alloc(4000), false);
        peer.dataChunk(request, 8000, Buffer.alloc(192));
      },
      /overlap/,
    ],
    ['a hole that is too long', chunk(2, u64(4096), u32(0xffffffff)), /exceeds/],
    ['a hole of no length', chunk(2, u64(4096), u32(0)), /of 0 bytes/],
    [
      'a chunk of 4 GiB',
      (peer, request) => {
        const head = [u32(0x668e33ef), u16(1), u16(1), u64(request.cookie)];
        peer.send(...head, u32(0xffffffff));
      },
      /4294967295 bytes/,
    ],
    ['a chunk type that does not exist', chunk(77, u32(1)), /unexpected/],
    ['block status in reply to a read', chunk(5, u32(1), u32(1), u32(1)), /unexpected/],
    ['an error chunk that is no error', chunk(0x8001, u32(0), u16(0)), /error 0/],
    ['an error chunk with a text that is cut', chunk(0x8001, u32(5), u16(50)), /message of 50/],
    ['an error outside of the request', chunk(0x8002, u32(5), u16(0), u64(1)), /outside/],
    ['a text of 5 KiB', chunk(0x8001, u32(5), u16(5000), Buffer.alloc(5000)), /5006 bytes/],
    [
      'errors without end',
      (peer, request) => {
        for (let count = 0; count < 300; count++) {
          peer.chunk(request, 0x8001, Buffer.concat([u32(5), u16(0)]), false);
        }
      },
      /error chunks/,
    ],
  ];

  test.each(cases)('drops a server that sends %s', async (_what, answer, text) => {
    const scope = testScope();
    const peer = await FakeNbdPeer.start(scope, {
      contexts: ['base:allocation'],
      onRequest: (connection, request) => {
        if (request.type === 0) answer(connection, request);
        return request.type === 0;
      },
    });
    const client = await NbdClient.connect({ address: peer.address, reconnectDelaySeconds: 5 });
    scope.defer(() => client.close());
    const first = await Promise.allSettled([client.read(4096, Buffer.alloc(4096))]);
    const error = await failure(client.read(4096, Buffer.alloc(4096)));
    expect(error.code).toBe('DF_PROTOCOL');
    expect(error.message).toMatch(text);
    expect(first[0]?.status === 'fulfilled').toBe(_what === 'the same cookie twice');
    expect(client.connectionCount).toBe(0);
  });

  const statusCases: [string, Buffer[], RegExp][] = [
    ['a context that was not negotiated', [u32(9), u32(512), u32(0)], /context id 9/],
    ['an extent of no length', [u32(1), u32(0), u32(0)], /zero length/],
    ['half an extent', [u32(1), u32(512), u32(0), u32(1)], /16 bytes/],
    ['no extent', [u32(1)], /4 bytes, not 12/],
  ];

  test.each(statusCases)('drops a server whose status has %s', async (_what, payload, text) => {
    const scope = testScope();
    const peer = await FakeNbdPeer.start(scope, {
      contexts: ['base:allocation'],
      onRequest: (connection, request) => {
        connection.chunk(request, 5, Buffer.concat(payload));
        return true;
      },
    });
    const client = await NbdClient.connect({ address: peer.address });
    scope.defer(() => client.close());
    const error = await failure(client.blockStatus(0, 512));
    expect(error.code).toBe('DF_PROTOCOL');
    expect(error.message).toMatch(text);
  });

  test('cuts a status to what was asked for', async () => {
    const scope = testScope();
    const peer = await FakeNbdPeer.start(scope, {
      contexts: ['base:allocation'],
      onRequest: (connection, request) => {
        const extents = [u32(100), u32(1), u32(4_000_000_000), u32(2), u32(5), u32(0)];
        connection.chunk(request, 5, Buffer.concat([u32(1), ...extents]));
        return true;
      },
    });
    const client = await NbdClient.connect({ address: peer.address });
    scope.defer(() => client.close());
    expect(await client.blockStatus(0, 512)).toEqual([
      { length: 100, flags: 1 },
      { length: 412, flags: 2 },
    ]);
    expect(await client.blockStatus(0, 512, { reqOne: true })).toEqual([{ length: 100, flags: 1 }]);
  });
});
