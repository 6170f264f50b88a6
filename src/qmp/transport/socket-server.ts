// SPDX-License-Identifier: MIT
/**
 * A listening socket as the backend of a character device: UNIX, TCP, or an inherited descriptor,
 * with the WebSocket protocol on top if wanted. One client has the device; others that connect wait,
 * unread, and get it in the order in which they came.
 */

import { createServer as createHttpServer, type Server as HttpServer } from 'node:http';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { WebSocketServer } from 'ws';
import { BlockError, fromSystemError } from '../../base/errors.js';
import {
  CHARDEV_WAITING_MAX,
  CHARDEV_WEBSOCKET_MESSAGE_MAX,
  WEBSOCKET_UPGRADE_MS,
} from '../../base/limits.js';
import { listenError } from '../../base/listen-error.js';
import { absoluteSocketPath } from '../../base/socket-path.js';
import { removeStaleSocket } from '../../base/stale-socket.js';
import { webSockets } from '../../base/web-sockets.js';
import { Channel } from '../channel.js';
import type { ChardevBackend } from '../chardev.js';
import {
  type Address,
  addressText,
  checkUnixPath,
  hostText,
  parseFd,
  resolveListen,
} from './socket-address.js';

export interface SocketServerOptions {
  readonly address: Address;
  /** `start` resolves only when the first client is there. */
  readonly wait: boolean;
  readonly nodelay: boolean;
  readonly websocket: boolean;
}

function peerText(socket: Socket): string {
  if (socket.remoteAddress === undefined) return '';
  return `${hostText(socket.remoteAddress)}:${socket.remotePort}`;
}

export class SocketServer implements ChardevBackend {
  readonly #options: SocketServerOptions;
  readonly #server: Server;
  readonly #upgrades: WebSocketServer | undefined;
  readonly #waiting: Channel[] = [];
  #offer: ((channel: Channel) => void) | undefined;
  #current: Channel | undefined;
  #firstClient: { arrived(): void; failed(error: Error): void } | undefined;
  /** Sockets that are not channels yet: WebSocket clients before their upgrade. */
  readonly #sockets = new Set<Socket>();

  constructor(options: SocketServerOptions) {
    this.#options = options;
    if (options.websocket) {
      const http = createHttpServer({
        requestTimeout: WEBSOCKET_UPGRADE_MS,
        connectionsCheckingInterval: WEBSOCKET_UPGRADE_MS / 2,
      });
      this.#upgrades = this.#createUpgrades(http);
      this.#server = http;
    } else {
      this.#server = createServer({ allowHalfOpen: true, noDelay: options.nodelay });
      this.#server.on('connection', (socket: Socket) => this.#connected(socket, socket));
    }
  }

  filename(current: Channel | undefined): string {
    const { address, websocket } = this.#options;
    const tcp = websocket ? 'websocket' : 'tcp';
    const at = this.#server.address();
    const bound =
      address.type === 'inet' && at !== null && typeof at === 'object'
        ? { ...address, host: at.address, port: String((at as AddressInfo).port) }
        : address;
    const text = `${addressText(bound, tcp)},server=on`;
    if (current === undefined) return `disconnected:${text}`;
    return current.peer === '' ? text : `${text} <-> ${current.peer}`;
  }

  async start(offer: (channel: Channel) => void): Promise<void> {
    this.#offer = offer;
    await this.#listen(await this.#listenOptions());
    if (!this.#options.wait || this.#current !== undefined) return;
    await new Promise<void>((arrived, failed) => {
      this.#firstClient = { arrived, failed };
    });
  }

  async stop(): Promise<void> {
    this.#offer = undefined;
    const closed = new BlockError('DF_SHUTDOWN', 'the character device was closed');
    this.#firstClient?.failed(closed);
    for (const channel of this.#waiting.splice(0)) channel.destroy();
    for (const socket of this.#sockets) socket.destroy();
    this.#upgrades?.close();
    // Node removes the socket file. The callback comes when the last client has gone, which may
    // take until the device has sent its last words: nobody has to wait for that here.
    if (this.#server.listening) this.#server.close();
  }

  async #listenOptions(): Promise<object> {
    const { address } = this.#options;
    if (address.type === 'inet') return resolveListen(address);
    if (address.type === 'fd') return { fd: parseFd(address.str) };
    const path = checkUnixPath(address.path);
    await removeStaleSocket(path);
    return { path: absoluteSocketPath(path) };
  }

  #listen(options: object): Promise<void> {
    const server = this.#server;
    const { address } = this.#options;
    return new Promise((resolve, reject) => {
      const failed = (error: Error) => {
        const what =
          address.type === 'unix'
            ? `bind socket to ${address.path}`
            : `listen on ${addressText(address)}`;
        const reason = listenError(error, address.type === 'unix' ? address.path : undefined);
        reject(fromSystemError(reason, `Failed to ${what}`));
      };
      server.once('error', failed);
      server.listen(options, () => {
        server.off('error', failed);
        // Accepting may fail when descriptors run out; the socket goes on listening.
        server.on('error', () => undefined);
        resolve();
      });
    });
  }

  #createUpgrades(http: HttpServer): WebSocketServer {
    const upgrades = new (webSockets().WebSocketServer)({
      noServer: true,
      maxPayload: CHARDEV_WEBSOCKET_MESSAGE_MAX,
      // QEMU's clients ask for "binary"; others for nothing.
      handleProtocols: (protocols) => (protocols.has('binary') ? 'binary' : false),
    });
    http.on('connection', (socket: Socket) => {
      socket.setNoDelay(this.#options.nodelay);
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
      socket.on('error', () => undefined);
    });
    http.on('request', (_request, response) => {
      response.writeHead(426, { connection: 'close' }).end('this is a WebSocket\n');
    });
    http.on('upgrade', (request, socket, head) => {
      upgrades.handleUpgrade(request, socket, head, (websocket) => {
        this.#sockets.delete(request.socket);
        this.#connected(webSockets().createWebSocketStream(websocket), request.socket);
      });
    });
    return upgrades;
  }

  /** A client is there: it gets the device, or its place in the queue. */
  #connected(stream: Duplex, socket: Socket): void {
    const channel = new Channel({
      input: stream,
      output: stream,
      peer: peerText(socket),
      release: () => socket.destroy(),
    });
    if (this.#offer === undefined || this.#waiting.length >= CHARDEV_WAITING_MAX) {
      channel.destroy();
      return;
    }
    channel.whenClosed(() => this.#closed(channel));
    if (this.#current === undefined) this.#serve(channel);
    else this.#waiting.push(channel);
  }

  #serve(channel: Channel): void {
    this.#current = channel;
    this.#offer?.(channel);
    this.#firstClient?.arrived();
    this.#firstClient = undefined;
  }

  #closed(channel: Channel): void {
    const place = this.#waiting.indexOf(channel);
    if (place >= 0) this.#waiting.splice(place, 1);
    if (this.#current !== channel) return;
    this.#current = undefined;
    const next = this.#waiting.shift();
    if (next !== undefined) this.#serve(next);
  }
}
