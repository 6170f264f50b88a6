// SPDX-License-Identifier: MIT
/**
 * NBD over WebSocket: the byte stream in binary messages, cut anywhere. Pings notice a client that
 * is gone without a word.
 */
import type { WebSocket } from 'ws';
import { NBD_WEBSOCKET_PING_MS } from '../../base/limits.js';
import { deliver } from './stream-transport.js';
import type { Transport, TransportOwner } from './transport.js';

const NORMAL_CLOSURE = 1000;
const UNSUPPORTED_DATA = 1003;
/** Pings without an answer before the client is given up. */
const UNANSWERED_MAX = 2;

export class WebSocketTransport implements Transport {
  readonly kind = 'websocket';
  readonly peer: string;
  readonly #socket: WebSocket;
  #owner: TransportOwner | undefined;
  #busy = false;
  #rest: Buffer[] = [];
  #unanswered = 0;
  /** Nothing but the client's closing frame is waited for. */
  #finishing = false;
  #pings: NodeJS.Timeout | undefined;

  constructor(socket: WebSocket, peer: string) {
    this.#socket = socket;
    this.peer = peer;
  }

  start(owner: TransportOwner): void {
    this.#owner = owner;
    const socket = this.#socket;
    let failure: Error | undefined;
    socket.binaryType = 'nodebuffer';
    socket.on('error', (error) => {
      failure = error;
    });
    socket.on('message', (data, isBinary) => {
      if (isBinary && Buffer.isBuffer(data)) this.#feed(data);
      else socket.close(UNSUPPORTED_DATA, 'NBD needs binary messages');
    });
    socket.on('pong', () => {
      this.#unanswered = 0;
    });
    socket.on('close', () => {
      clearInterval(this.#pings);
      owner.closed(failure);
    });
    this.#pings = setInterval(() => this.#ping(), NBD_WEBSOCKET_PING_MS);
    this.#pings.unref();
  }

  write(part: Buffer): boolean {
    return this.writeAll([part]);
  }

  writeAll(parts: Buffer[]): boolean {
    const socket = this.#socket;
    for (const part of parts) socket.send(part, { binary: true, compress: false }, this.#written);
    this.#busy = socket.bufferedAmount > 0;
    return !this.#busy;
  }

  pause(): void {
    if (!this.#finishing) this.#socket.pause();
  }

  resume(): void {
    const waiting = this.#rest.splice(0);
    for (const [index, chunk] of waiting.entries()) {
      const rest = this.#owner === undefined ? undefined : deliver(chunk, this.#owner);
      if (rest === undefined) continue;
      this.#rest = [rest, ...waiting.slice(index + 1), ...this.#rest];
      return;
    }
    this.#socket.resume();
  }

  finish(): void {
    this.#finishing = true;
    this.#socket.close(NORMAL_CLOSURE);
    this.#socket.resume();
  }

  destroy(): void {
    this.#socket.terminate();
  }

  readonly #written = (error?: Error | null): void => {
    if (error || !this.#busy || this.#socket.bufferedAmount > 0) return;
    this.#busy = false;
    this.#owner?.sent();
  };

  #feed(message: Buffer): void {
    const owner = this.#owner;
    if (owner === undefined || this.#finishing) return;
    // A message that was under way when reading stopped still arrives.
    if (this.#rest.length > 0) {
      this.#rest.push(message);
      return;
    }
    const rest = deliver(message, owner);
    if (rest === undefined) return;
    if (rest.byteLength > 0) this.#rest.push(rest);
    this.pause();
  }

  #ping(): void {
    // A paused socket can't hear the answers.
    if (this.#socket.isPaused) return;
    if (this.#unanswered >= UNANSWERED_MAX) {
      this.#socket.terminate();
      return;
    }
    this.#unanswered++;
    this.#socket.ping();
  }
}
