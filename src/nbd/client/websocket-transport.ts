// SPDX-License-Identifier: MIT
/** NBD inside WebSocket: the stream's bytes in binary frames, cut anywhere. */

import type { RawData, WebSocket } from 'ws';
import { errorText } from '../../base/error-text.js';
import { BlockError } from '../../base/errors.js';
import {
  NBD_GOODBYE_MS,
  NBD_KEEPALIVE_IDLE_MS,
  NBD_WEBSOCKET_FRAME_MAX,
} from '../../base/limits.js';
import { webSockets } from '../../base/web-sockets.js';
import {
  abortReason,
  connectError,
  deliver,
  type Transport,
  type TransportSink,
} from './transport.js';

class WebSocketTransport implements Transport {
  readonly takesSources = false;
  #sink: TransportSink | undefined;
  readonly #socket: WebSocket;
  /** Frames that came before a sink was set: the greeting, at most. */
  readonly #early: Buffer[] = [];
  #failure: Error | undefined;
  #alive = true;
  readonly #pings: NodeJS.Timeout;

  constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.on('error', (error) => {
      this.#failure = error;
    });
    socket.on('close', () => this.#closed());
    socket.on('pong', () => {
      this.#alive = true;
    });
    socket.on('message', (data: RawData, isBinary: boolean) => this.#message(data, isBinary));
    this.#pings = setInterval(() => this.#ping(), NBD_KEEPALIVE_IDLE_MS);
    this.#pings.unref();
  }

  get sink(): TransportSink | undefined {
    return this.#sink;
  }

  set sink(sink: TransportSink | undefined) {
    this.#sink = sink;
    if (this.#early.length > 0) queueMicrotask(() => this.#deliver());
  }

  write(pieces: readonly Uint8Array[], done: () => void): void {
    if (this.#socket.readyState !== this.#socket.OPEN) return;
    const last = pieces.length - 1;
    pieces.forEach((piece, index) => {
      const options = { binary: true };
      if (index < last) this.#socket.send(piece, options);
      else this.#socket.send(piece, options, (error) => (error ? undefined : done()));
    });
  }

  end(): void {
    clearInterval(this.#pings);
    const socket = this.#socket;
    // A server that reads no more must not keep the descriptor, nor the process.
    const timer = setTimeout(() => socket.terminate(), NBD_GOODBYE_MS);
    socket.once('close', () => clearTimeout(timer));
    socket.close();
  }

  destroy(): void {
    this.sink = undefined;
    clearInterval(this.#pings);
    this.#socket.terminate();
  }

  #ping(): void {
    if (!this.#alive) {
      this.#failure = new Error('the server answers no pings');
      this.#socket.terminate();
      return;
    }
    this.#alive = false;
    this.#socket.ping();
  }

  #message(data: RawData, isBinary: boolean): void {
    if (!isBinary || !Buffer.isBuffer(data)) {
      this.#failure = new Error('the server sent a WebSocket frame of text');
      this.#socket.terminate();
      return;
    }
    this.#alive = true;
    this.#early.push(data);
    this.#deliver();
  }

  #deliver(): void {
    while (this.#sink !== undefined) {
      const data = this.#early.shift();
      if (data === undefined) return;
      deliver(() => this.#sink, data);
    }
  }

  #closed(): void {
    clearInterval(this.#pings);
    const sink = this.sink;
    this.sink = undefined;
    const cause = this.#failure;
    const text = cause === undefined ? 'the server hung up' : errorText(cause);
    sink?.closed(new BlockError('DF_DISCONNECTED', text, {}, { cause }));
  }
}

/** @throws BlockError when the server refuses the upgrade or can't be reached */
export function openWebSocket(url: string, signal: AbortSignal): Promise<Transport> {
  return new Promise((resolve, reject) => {
    const socket = new (webSockets().WebSocket)(url, {
      perMessageDeflate: false,
      maxPayload: NBD_WEBSOCKET_FRAME_MAX,
    });
    const abort = (): void => {
      socket.terminate();
      reject(abortReason(signal));
    };
    const failed = (error: Error): void => {
      signal.removeEventListener('abort', abort);
      reject(connectError(error, { type: 'websocket', url }));
    };
    signal.addEventListener('abort', abort, { once: true });
    socket.on('error', failed);
    socket.once('open', () => {
      signal.removeEventListener('abort', abort);
      socket.off('error', failed);
      resolve(new WebSocketTransport(socket));
    });
  });
}
