// SPDX-License-Identifier: MIT
/** The client over each kind of stream; what the server says is relayed to the fake peer. */
import { once } from 'node:events';
import { readlinkSync } from 'node:fs';
import { type AddressInfo, connect, createServer } from 'node:net';
import koffi from 'koffi';
import { expect, test } from 'vitest';
import { WebSocketServer } from 'ws';
import { NbdClient } from '../../../../src/nbd/client/client.js';
import { connectError } from '../../../../src/nbd/client/transport.js';
import { FakeNbdPeer } from '../../../support/fake-nbd-peer.js';
import { type Scope, testScope } from '../../../support/temp.js';

async function exercise(scope: Scope, peer: FakeNbdPeer, client: NbdClient): Promise<void> {
  scope.defer(() => client.close());
  const data = Buffer.from(Array.from({ length: 300_000 }, (_, index) => index % 251));
  await client.write(100, data);
  expect(peer.memory.subarray(100, 300_100).equals(data)).toBe(true);
  const parts = Array.from({ length: 30 }, () => Buffer.alloc(10_000));
  await Promise.all(parts.map((part, index) => client.read(100 + index * 10_000, part)));
  expect(Buffer.concat(parts).equals(data)).toBe(true);
}

test.each(['127.0.0.1', '::1', 'localhost'])('over TCP to %s', async (host) => {
  const scope = testScope();
  const peer = await FakeNbdPeer.start(scope);
  const server = createServer((socket) => {
    const inner = connect(peer.path);
    socket.pipe(inner).pipe(socket);
    socket.on('error', () => inner.destroy());
    inner.on('error', () => socket.destroy());
  });
  server.listen(0, host === 'localhost' ? '127.0.0.1' : host);
  await once(server, 'listening');
  scope.defer(() => server.close());
  const { port } = server.address() as AddressInfo;
  await exercise(scope, peer, await NbdClient.connect({ address: { type: 'inet', host, port } }));
});

test('tells the descriptor of each UNIX socket, before it is used', async () => {
  const scope = testScope();
  const peer = await FakeNbdPeer.start(scope);
  const told: string[] = [];
  const client = await NbdClient.connect({
    address: { type: 'unix', path: peer.path },
    tuneUnixSocket: (fd) => told.push(readlinkSync(`/proc/self/fd/${fd}`)),
  });
  expect(told).toEqual([expect.stringMatching(/^socket:/)]);
  await exercise(scope, peer, client);
});

async function webSocketServer(scope: Scope, peer: FakeNbdPeer): Promise<string> {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
  scope.defer(() => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  server.on('connection', (socket) => {
    const inner = connect(peer.path);
    inner.on('data', (data) => socket.send(data));
    inner.on('close', () => socket.close());
    socket.on('message', (data) => inner.write(data as Buffer));
    socket.on('close', () => inner.destroy());
    inner.on('error', () => socket.terminate());
  });
  return `ws://127.0.0.1:${(server.address() as AddressInfo).port}/`;
}

test('over WebSocket, whatever the frames', async () => {
  const scope = testScope();
  const peer = await FakeNbdPeer.start(scope);
  const url = await webSocketServer(scope, peer);
  await exercise(scope, peer, await NbdClient.connect({ address: { type: 'websocket', url } }));
});

test('comes back over WebSocket, too', async () => {
  const scope = testScope();
  const peer = await FakeNbdPeer.start(scope);
  const url = await webSocketServer(scope, peer);
  const address = { type: 'websocket', url } as const;
  const client = await NbdClient.connect({ address, reconnectDelaySeconds: 60 });
  peer.cut();
  await exercise(scope, peer, client);
});

test('a WebSocket server that does not answer a goodbye is left', async () => {
  const scope = testScope();
  const peer = await FakeNbdPeer.start(scope);
  const port = Number(new URL(await webSocketServer(scope, peer)).port);
  let deaf = false;
  let left = (): void => {};
  const gone = new Promise<void>((resolve) => {
    left = resolve;
  });
  const relay = createServer((socket) => {
    const upstream = connect(port, '127.0.0.1');
    scope.defer(() => upstream.destroy());
    upstream.on('data', (data) => deaf || socket.write(data));
    socket.on('data', (data) => deaf || upstream.write(data));
    socket.on('close', left);
  });
  relay.listen(0, '127.0.0.1');
  await once(relay, 'listening');
  scope.defer(() => relay.close());
  const url = `ws://127.0.0.1:${(relay.address() as AddressInfo).port}/`;
  const client = await NbdClient.connect({ address: { type: 'websocket', url } });
  deaf = true;
  await client.close();
  await gone;
});

test('a WebSocket server that has no NBD is refused', async () => {
  const scope = testScope();
  const server = createServer((socket) => socket.end('HTTP/1.1 404 Not Found\r\n\r\n'));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  scope.defer(() => server.close());
  const url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  await expect(NbdClient.connect({ address: { type: 'websocket', url } })).rejects.toThrow(
    /Failed to connect to 'ws:.*404/,
  );
});

/** A connected socket that Node knows nothing of, as a parent process would leave us one. */
function connectDescriptor(path: string): number {
  const libc = koffi.load('libc.so.6');
  const socket = libc.func('int socket(int family, int type, int protocol)');
  const connectTo = libc.func('int connect(int fd, const void *address, unsigned int length)');
  const address = Buffer.alloc(110);
  address.writeUInt16LE(1, 0); // AF_UNIX
  address.write(path, 2);
  const fd = Number(socket(1, 1, 0)); // SOCK_STREAM
  if (connectTo(fd, address, address.length) !== 0) throw new Error(`no connection to ${path}`);
  return fd;
}

test('over a descriptor, which ends with its connection', async () => {
  const scope = testScope();
  const peer = await FakeNbdPeer.start(scope);
  const fd = connectDescriptor(peer.path);
  const client = await NbdClient.connect({ address: { type: 'fd', fd }, reconnectDelaySeconds: 9 });
  await exercise(scope, peer, client);
  peer.cut();
  await expect.poll(() => client.connectionCount).toBe(0);
  await expect(client.flush()).rejects.toThrow(/lost the NBD server export '' on descriptor/);
});

test('a descriptor that is no socket is refused', async () => {
  await expect(NbdClient.connect({ address: { type: 'fd', fd: 9999 } })).rejects.toThrow(
    /Failed to connect to 'descriptor 9999': Unsupported fd type/,
  );
});

test.each([
  ['getaddrinfo', 'ENOTFOUND', 'address resolution failed for h:1: Name or service not known'],
  ['connect', 'ECONNREFUSED', "Failed to connect to 'h:1': Connection refused"],
])('a failed %s is told in the words of the C library', (syscall, code, text) => {
  const error = Object.assign(new Error(`${syscall} ${code} h`), { code, syscall });
  expect(connectError(error, { type: 'inet', host: 'h', port: 1 }).message).toBe(text);
});

test('no address of a host could be connected to: told in the same words', () => {
  const error = Object.assign(new AggregateError([]), { code: 'ECONNREFUSED' });
  const { message } = connectError(error, { type: 'inet', host: 'h', port: 1 });
  expect(message).toBe("Failed to connect to 'h:1': Connection refused");
});
