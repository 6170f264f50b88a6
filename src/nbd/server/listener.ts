// SPDX-License-Identifier: MIT
/** Where clients come in: TCP, UNIX sockets, inherited descriptors, WebSocket. */

import { createServer as createHttpServer, type IncomingMessage } from 'node:http';
import { createServer, type ListenOptions, type Server, type Socket } from 'node:net';
import { errnoName, fromSystemError, toError } from '../../base/errors.js';
import { NBD_WEBSOCKET_MESSAGE_MAX, WEBSOCKET_UPGRADE_MS } from '../../base/limits.js';
import { listenError } from '../../base/listen-error.js';
import { absoluteSocketPath } from '../../base/socket-path.js';
import { removeStaleSocket } from '../../base/stale-socket.js';
import { webSockets } from '../../base/web-sockets.js';
import { StreamTransport } from './stream-transport.js';
import type { Transport, TransportKind } from './transport.js';
import { WebSocketTransport } from './websocket-transport.js';

/** Where to listen. `port` 0: the system chooses; `fd`: a socket that listens already. */
export type ListenAddress =
  | {
      readonly type: 'inet';
      readonly host: string;
      readonly port: number;
      /** No IPv4 clients on an IPv6 address. */
      readonly ipv6Only?: boolean;
    }
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'fd'; readonly fd: number }
  | { readonly type: 'websocket'; readonly host: string; readonly port: number };

/** Where it is listened; for `fd` what the descriptor turned out to be. */
export type BoundAddress =
  | { readonly type: 'inet'; readonly host: string; readonly port: number }
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'websocket'; readonly host: string; readonly port: number };

export interface Listener {
  readonly address: BoundAddress;
  /** No more clients; those that are here stay. Removes the path of a UNIX socket. */
  close(): Promise<void>;
}

/** Takes a new client, or destroys it. */
export type AcceptClient = (transport: Transport) => void;

const BACKLOG = 511;

/** @throws BlockError `DF_ACCESS`, `DF_INVALID`, `DF_IO` with the system's error as cause */
export async function openListener(
  address: ListenAddress,
  accept: AcceptClient,
): Promise<Listener> {
  if (address.type === 'websocket') return openWebSocket(address, accept);
  // Only a socket that nobody has read from can receive into our own memory.
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
    const kind: TransportKind = socket.remoteFamily === undefined ? 'unix' : 'tcp';
    const peer = kind === 'unix' ? unixPath(server) : inetPeer(socket);
    accept(new StreamTransport(socket, { kind, peer }));
  });
  await listen(server, address);
  return { address: boundTo(server), close: () => closeServer(server) };
}

async function openWebSocket(
  address: { host: string; port: number },
  accept: AcceptClient,
): Promise<Listener> {
  const limits = {
    requestTimeout: WEBSOCKET_UPGRADE_MS,
    connectionsCheckingInterval: WEBSOCKET_UPGRADE_MS / 2,
  };
  const http = createHttpServer(limits, (_request, response) => {
    response.writeHead(426, { Connection: 'close', Upgrade: 'websocket' });
    response.end('NBD over WebSocket is served here.\n');
  });
  const sockets = new (webSockets().WebSocketServer)({
    server: http,
    perMessageDeflate: false,
    maxPayload: NBD_WEBSOCKET_MESSAGE_MAX,
    handleProtocols: (offered) => (offered.has('binary') ? 'binary' : false),
  });
  // The HTTP server's errors come here too; `listen` reports those that matter.
  sockets.on('error', () => undefined);
  sockets.on('connection', (socket, request: IncomingMessage) => {
    accept(new WebSocketTransport(socket, inetPeer(request.socket)));
  });
  await listen(http, { ...address, type: 'inet' });
  const bound = boundTo(http);
  const { host, port } = bound.type === 'unix' ? address : bound;
  return {
    address: { type: 'websocket', host, port },
    close: async () => {
      sockets.close();
      const closed = closeServer(http);
      // Who has not become an NBD client by now won't; those who have are no connections of HTTP any more.
      http.closeAllConnections();
      await closed;
    },
  };
}

type SocketAddress = Exclude<ListenAddress, { type: 'websocket' }>;

async function listen(server: Server, address: SocketAddress): Promise<void> {
  try {
    await listenOnce(server, address);
  } catch (error) {
    if (address.type !== 'unix' || errnoName(error) !== 'EADDRINUSE') throw error;
    if (!(await removeStaleSocket(address.path))) throw error;
    await listenOnce(server, address);
  }
}

function listenOnce(server: Server, address: SocketAddress): Promise<void> {
  const options: ListenOptions = { backlog: BACKLOG };
  let where: string;
  if (address.type === 'inet') {
    options.host = address.host;
    options.port = address.port;
    options.ipv6Only = address.ipv6Only ?? false;
    where = `${address.host}:${address.port}`;
  } else if (address.type === 'unix') {
    options.path = absoluteSocketPath(address.path);
    where = address.path;
  } else {
    where = `descriptor ${address.fd}`;
  }
  return new Promise<void>((resolve, reject) => {
    const failed = (error: Error) => {
      const reason = listenError(error, options.path);
      reject(
        fromSystemError(
          reason,
          `Failed to ${address.type === 'unix' ? 'bind socket to' : 'listen on'} ${where}`,
          { op: 'listen' },
        ),
      );
    };
    server.once('error', failed);
    server.once('listening', () => {
      server.off('error', failed);
      // EMFILE and the like on accept: that client is lost, the server goes on.
      server.on('error', () => undefined);
      resolve();
    });
    try {
      server.listen(address.type === 'fd' ? { fd: address.fd, backlog: BACKLOG } : options);
    } catch (error) {
      failed(toError(error)); // a port out of range
    }
  });
}

function boundTo(server: Server): BoundAddress {
  const bound = server.address();
  if (bound !== null && typeof bound === 'object') {
    return { type: 'inet', host: bound.address, port: bound.port };
  }
  return { type: 'unix', path: bound ?? '' };
}

function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
  });
}

function unixPath(server: Server): string {
  const bound = server.address();
  return typeof bound === 'string' ? bound : '';
}

function inetPeer(socket: Socket): string {
  const { remoteAddress = 'unknown', remotePort = 0 } = socket;
  return remoteAddress.includes(':')
    ? `[${remoteAddress}]:${remotePort}`
    : `${remoteAddress}:${remotePort}`;
}
