// SPDX-License-Identifier: MIT
import { connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { load } from 'koffi';
import { describe, expect, it } from 'vitest';
import { WebSocket } from 'ws';
import { KIB } from '../../../../src/base/limits.js';
import { CMD, encodeOption, encodeRequest, OPT, u32 } from '../../../support/nbd-wire.js';
import { runPeer, spawnTracked } from '../../../support/peers.js';
import { RawNbd } from '../../../support/raw-nbd.js';
import type { Scope } from '../../../support/temp.js';
import { client, MIB, pattern, type Served, serve } from './served.js';

async function until(condition: () => boolean): Promise<void> {
  for (let tries = 0; tries < 6000 && !condition(); tries++) await sleep(10);
  expect(condition()).toBe(true);
}

/** Lets requests of the backend wait until the function that it returns is called. */
function closeGate({ backend }: Served): () => void {
  let open: () => void = () => undefined;
  backend.gate = new Promise((resolve) => {
    open = () => {
      backend.gate = undefined;
      resolve();
    };
  });
  return open;
}

describe('listeners', () => {
  it('tells the TCP port that the system chose, and serves several listeners at once', async () => {
    const { server, socket } = await serve();
    const address = await server.listen({ type: 'inet', host: '127.0.0.1', port: 0 });
    if (address.type !== 'inet') throw new Error('not TCP');
    expect(address.port).toBeGreaterThan(0);
    expect(server.addresses).toEqual([{ type: 'unix', path: socket }, address]);
    const uri = `nbd://127.0.0.1:${address.port}/disk`;
    expect((await runPeer('nbdinfo', ['--size', uri])).stdout.trim()).toBe(String(4 * MIB));
  });

  it('serves TCP over IPv6', async () => {
    const { scope, server } = await serve();
    const address = await server.listen({ type: 'inet', host: '::1', port: 0 });
    if (address.type !== 'inet') throw new Error('not TCP');
    const raw = await RawNbd.handshake(scope, { host: '::1', port: address.port });
    expect((await raw.go('disk')).size).toBe(BigInt(4 * MIB));
    expect(server.connections()[0]?.peer).toMatch(/^\[::1\]:\d+$/);
  });

  it('refuses an address that is taken, with a reason', async () => {
    const { server } = await serve();
    const address = await server.listen({ type: 'inet', host: '127.0.0.1', port: 0 });
    await expect(server.listen(address)).rejects.toMatchObject({
      message: expect.stringContaining('Failed to listen on 127.0.0.1:'),
      context: { errno: 'EADDRINUSE' },
    });
  });

  it('refuses a UNIX path on which another server listens', async () => {
    const { server, socket } = await serve();
    await expect(server.listen({ type: 'unix', path: socket })).rejects.toThrow(socket);
  });

  it('replaces a UNIX socket that a killed server left', async () => {
    const { scope, server } = await serve();
    const path = join(await scope.tempDir(), 'stale.sock');
    const script = `require('net').createServer().listen(${JSON.stringify(path)},()=>process.kill(process.pid,9))`;
    const child = spawnTracked(process.execPath, ['-e', script]);
    await new Promise((resolve) => child.once('close', resolve));
    await server.listen({ type: 'unix', path });
    const raw = await RawNbd.handshake(scope, path);
    await raw.go('disk');
  });

  it('serves an inherited descriptor that listens', async () => {
    const { scope, server } = await serve();
    const opened = createServer();
    await new Promise<void>((resolve) => opened.listen(0, '127.0.0.1', resolve));
    const { fd: original } = (opened as Server & { _handle: { fd: number } })._handle;
    const fd = load('libc.so.6').func('int dup(int)')(original) as number;
    await new Promise((resolve) => opened.close(resolve));
    const address = await server.listen({ type: 'fd', fd });
    if (address.type !== 'inet') throw new Error('not TCP');
    const raw = await RawNbd.handshake(scope, { host: '127.0.0.1', port: address.port });
    await raw.go('disk');
  });
});

/** A server with a WebSocket listener, and its port. */
async function serveWebSocket() {
  const served = await serve();
  const address = await served.server.listen({ type: 'websocket', host: '127.0.0.1', port: 0 });
  if (address.type !== 'websocket') throw new Error('not WebSocket');
  return { ...served, port: address.port };
}

/** A client of it that is connected. */
async function webSocket(
  { scope, port }: { scope: Scope; port: number },
  protocols: string[] = [],
  onMessage: (data: Buffer) => void = () => undefined,
): Promise<WebSocket> {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/`, protocols);
  scope.defer(() => socket.terminate());
  socket.on('message', onMessage);
  await new Promise((resolve) => socket.once('open', resolve));
  return socket;
}

describe('WebSocket', () => {
  it('carries the stream in binary messages, cut anywhere', async () => {
    const served = await serveWebSocket();
    let received = Buffer.alloc(0);
    const socket = await webSocket(served, ['binary'], (data) => {
      received = Buffer.concat([received, data]);
    });
    expect(socket.protocol).toBe('binary');
    const data = pattern(3 * MIB);
    const name = Buffer.from('disk');
    const stream = Buffer.concat([
      u32(3),
      encodeOption(OPT.EXPORT_NAME, name),
      encodeRequest({ type: CMD.WRITE, offset: 512, data, cookie: 5n }),
      encodeRequest({ type: CMD.READ, offset: 512, length: 3 * MIB }),
    ]);
    for (let at = 0; at < stream.byteLength; at += 99_991) {
      socket.send(stream.subarray(at, at + 99_991));
    }
    const expected = 18 + 10 + 16 + 16 + 3 * MIB;
    await until(() => received.byteLength >= expected);
    expect(received.subarray(expected - 3 * MIB).equals(data)).toBe(true);
    expect(served.server.connections()[0]?.transport).toBe('websocket');
  });

  it('is closed in order when the client disconnects', async () => {
    const socket = await webSocket(await serveWebSocket());
    const code = new Promise((resolve) => socket.once('close', resolve));
    const option = encodeOption(OPT.EXPORT_NAME, Buffer.from('disk'));
    socket.send(Buffer.concat([u32(3), option, encodeRequest({ type: CMD.DISC })]));
    expect(await code).toBe(1000);
  });

  it.each([
    ['says nothing', ''],
    ['stays in the middle of its request', 'GET / HTTP/1.1\r\nHost: a\r\n'],
  ])('does not wait at the end for a client that %s', async (_what, words) => {
    const { scope, server, port } = await serveWebSocket();
    const silent = connect({ host: '127.0.0.1', port });
    scope.defer(() => silent.destroy());
    const gone = new Promise<void>((resolve) => silent.once('close', () => resolve()));
    silent.on('error', () => undefined);
    await new Promise((resolve) => silent.once('connect', resolve));
    silent.write(words);
    // The server has taken that one too when a later client is connected.
    await webSocket({ scope, port });
    await server.stop();
    await gone;
  });

  it('closes on text', async () => {
    const socket = await webSocket(await serveWebSocket());
    const code = new Promise((resolve) => socket.once('close', resolve));
    socket.send('hello');
    expect(await code).toBe(1003);
  });
});

describe('connections', () => {
  it('are counted, with their export, peer and traffic', async () => {
    const served = await serve();
    const raw = await client(served, { structured: true, contexts: ['base:allocation'] });
    await raw.call({ type: CMD.WRITE, data: pattern(1000) });
    await raw.call({ type: CMD.READ, length: 500 });
    await raw.call({ type: 77 });
    const [info] = served.server.connections();
    expect(info).toMatchObject({
      transport: 'unix',
      phase: 'transmission',
      exportId: 'exp0',
      contexts: ['base:allocation'],
      counters: { writes: 1, reads: 1, writtenBytes: 1000, readBytes: 500, errors: 1 },
    });
    expect(served.exported.counters).toMatchObject({ writes: 1, reads: 1 });
    raw.destroy();
    await until(() => served.server.connections().length === 0);
    expect(served.exported.clientCount).toBe(0);
    expect(served.exported.counters.writtenBytes).toBe(1000);
  });

  it('above the limit are closed at once', async () => {
    const served = await serve({}, {}, { maxConnections: 1 });
    await client(served);
    const second = await RawNbd.connect(served.scope, served.socket);
    expect(await second.readToEnd()).toHaveLength(0);
    expect(served.server.totals).toMatchObject({ connections: 1, rejected: 1 });
  });

  it('that do not finish the option phase in time are dropped', async () => {
    const served = await serve({}, {}, { handshakeMaxSeconds: 0.5 });
    const raw = await RawNbd.handshake(served.scope, served.socket);
    expect(await raw.readToEnd()).toHaveLength(0);
  });

  it('have as long for the option phase as is said, however long that is', async () => {
    const served = await serve({}, {}, { handshakeMaxSeconds: 2 ** 32 - 1 });
    const raw = await RawNbd.handshake(served.scope, served.socket);
    await sleep(20);
    await raw.go('disk');
  });

  it('can be dropped by their id', async () => {
    const served = await serve();
    const raw = await client(served);
    const id = served.server.connections()[0]?.id ?? 0;
    expect(served.server.disconnect(id)).toBe(true);
    expect(await raw.readToEnd()).toHaveLength(0);
    expect(served.server.disconnect(id + 1)).toBe(false);
  });

  it('end with their requests, which complete, when the client vanishes', async () => {
    const served = await serve();
    const open = closeGate(served);
    const raw = await client(served);
    raw.send(encodeRequest({ type: CMD.WRITE, data: pattern(200_000) }));
    await until(() => served.server.connections()[0]?.requestsInFlight === 1);
    raw.destroy();
    open();
    await until(() => served.server.connections().length === 0);
    expect(served.backend.content.subarray(0, 200_000).equals(pattern(200_000))).toBe(true);
  });
});

describe('memory', () => {
  it('stays bounded when a client reads none of its replies, and the rest comes later', async () => {
    const served = await serve({ size: 64 * MIB });
    const raw = await client(served);
    raw.stopReading();
    const requests = Array.from({ length: 200 }, (_, index) =>
      encodeRequest({ type: CMD.READ, offset: 0, length: MIB, cookie: BigInt(index) }),
    );
    raw.send(...requests);
    await until(() => (served.server.connections()[0]?.unsentBytes ?? 0) > 1 * MIB);
    for (let turns = 0; turns < 200; turns++) await nextTurn();
    expect(served.server.totals.memoryBytes).toBeLessThan(6 * MIB);
    raw.resumeReading();
    for (let count = 0; count < 200; count++) await raw.reply(MIB);
  });

  it('is not taken for what clients announce and do not send', async () => {
    const served = await serve({ size: 64 * MIB });
    const head = encodeRequest({ type: CMD.WRITE, length: 32 * MIB });
    for (let count = 0; count < 20; count++) {
      const raw = await client(served);
      raw.send(head);
      await raw.sendAll(Buffer.alloc(1));
    }
    await until(() => served.server.totals.memoryBytes > 20 * MIB);
    expect(served.server.totals.memoryBytes).toBeLessThan(24 * MIB);
  });

  it('that stalled clients hold keeps nobody from being served', async () => {
    const served = await serve({ size: 64 * MIB }, {}, { memoryMax: 8 * MIB });
    for (let count = 0; count < 20; count++) {
      const raw = await client(served);
      raw.send(encodeRequest({ type: CMD.WRITE, length: 32 * MIB }), Buffer.alloc(1));
    }
    await until(() => served.server.budget.scarce);
    const data = pattern(4 * MIB);
    const writer = await client(served, { structured: true });
    expect(await writer.callError({ type: CMD.WRITE, offset: 0, data })).toBe(0);
    expect(await writer.callError({ type: CMD.READ, offset: 0, length: 4 * MIB })).toBe(0);
    const small = await client(served);
    expect(await small.callError({ type: CMD.READ, offset: 0, length: 64 * KIB })).toBe(0);
    expect(served.server.totals.memoryBytes).toBeLessThan(16 * MIB);
  });
});

describe('requests that wait', () => {
  it('are limited in number, and those behind them are served later', async () => {
    const served = await serve();
    const open = closeGate(served);
    const raw = await client(served);
    const requests = Array.from({ length: 1000 }, (_, index) =>
      encodeRequest({ type: CMD.READ, offset: 0, length: 512, cookie: BigInt(index) }),
    );
    raw.send(Buffer.concat(requests));
    await until(() => served.server.connections()[0]?.requestsInFlight === 256);
    await sleep(50);
    expect(served.server.connections()[0]?.requestsInFlight).toBe(256);
    open();
    for (let count = 0; count < 1000; count++) await raw.reply(512);
  });
});

describe('stopping', () => {
  it('answers what is in flight, then ends connections and exports', async () => {
    const served = await serve();
    const open = closeGate(served);
    const raw = await client(served);
    raw.send(encodeRequest({ type: CMD.READ, offset: 0, length: 512 }));
    await until(() => served.server.connections()[0]?.requestsInFlight === 1);
    const stopped = served.server.stop();
    open();
    expect((await raw.readToEnd()).byteLength).toBe(16 + 512);
    await stopped;
    await served.exported.closed;
    await expect(RawNbd.connect(served.scope, served.socket)).rejects.toThrow('ENOENT');
  });

  it('drops clients that do not take their replies in time', async () => {
    const served = await serve({ size: 64 * MIB });
    const raw = await client(served);
    raw.stopReading();
    for (let count = 0; count < 20; count++) {
      raw.send(encodeRequest({ type: CMD.READ, offset: 0, length: MIB }));
    }
    await until(() => (served.server.connections()[0]?.unsentBytes ?? 0) > 0);
    await served.server.stop(50);
    expect(served.server.connections()).toEqual([]);
  });

  it('removes an export under a client in mode hard', async () => {
    const served = await serve();
    const raw = await client(served);
    served.server.removeExport('exp0', 'hard');
    expect(await raw.readToEnd()).toHaveLength(0);
    await served.exported.closed;
  });
});
