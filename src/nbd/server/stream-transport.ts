// SPDX-License-Identifier: MIT
/** NBD over a socket: TCP, UNIX, or anything else that Node has as a net.Socket. */
import { type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net';
import type { QueuedBytes, Transport, TransportKind, TransportOwner } from './transport.js';

const KEEP_ALIVE_MS = 30_000;
/** Time for the client to take our last replies, or to close its side after we closed ours. */
const LINGER_MS = 2_000;
/** Between looks at whether it has taken them. */
const LINGER_LOOK_MS = 5;

interface HandleHolder {
  _handle: { useUserBuffer?: unknown; fd?: unknown } | null;
}

/**
 * Receives straight into the owner's memory. Node offers that (`onread`) only to sockets that it did
 * not accept itself, so the accepted socket's handle is moved into one of our own; where a
 * Node release does not allow it, data arrives in chunks and is copied.
 */
export class StreamTransport implements Transport {
  readonly kind: TransportKind;
  readonly peer: string;
  #socket: Socket;
  #owner: TransportOwner | undefined;
  #busy = false;
  #rest: Buffer | undefined;

  /** @param accepted a connected socket that nobody has read from (`pauseOnConnect`) */
  constructor(accepted: Socket, options: { kind: TransportKind; peer: string }) {
    this.#socket = accepted;
    // A client that is refused may be gone before we close.
    accepted.on('error', () => undefined);
    this.kind = options.kind;
    this.peer = options.peer;
  }

  get fd(): number | undefined {
    const handle = (this.#socket as unknown as HandleHolder)._handle;
    return typeof handle?.fd === 'number' && handle.fd >= 0 ? handle.fd : undefined;
  }

  /** Only UNIX sockets can tell when the peer itself has taken what was sent. */
  get directSocket(): number | undefined {
    return this.kind === 'unix' && !this.#socket.destroyed ? this.fd : undefined;
  }

  start(owner: TransportOwner): void {
    this.#owner = owner;
    const own = adopt(this.#socket, owner);
    if (own !== undefined) this.#socket = own;
    const socket = this.#socket;
    if (this.kind === 'tcp') {
      socket.setNoDelay(true);
      socket.setKeepAlive(true, KEEP_ALIVE_MS);
    }
    let failure: Error | undefined;
    socket.on('error', (error) => {
      failure = error;
    });
    socket.on('end', () => owner.ended());
    socket.on('close', () => owner.closed(failure));
    if (own === undefined) {
      socket.on('data', (chunk: Buffer) => this.#feed(chunk));
    }
    socket.resume();
  }

  write(part: Buffer): boolean {
    const socket = this.#socket;
    socket.write(part, this.#written);
    this.#busy = socket.writableLength > 0;
    return !this.#busy;
  }

  writeAll(parts: Buffer[]): boolean {
    const socket = this.#socket;
    socket.cork();
    for (const part of parts) socket.write(part, this.#written);
    socket.uncork();
    this.#busy = socket.writableLength > 0;
    return !this.#busy;
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    const rest = this.#rest;
    this.#rest = undefined;
    if (rest !== undefined && !this.#deliver(rest)) return;
    this.#socket.resume();
  }

  /**
   * Closing with unread input could cost the client our last replies. So they are let out first: an
   * idle client, which has them all, is not waited for.
   */
  finish(queued?: QueuedBytes): void {
    const socket = this.#socket;
    const timers = [setTimeout(() => socket.destroy(), LINGER_MS)];
    const look = (): void => {
      const { fd } = this;
      if (fd !== undefined && queued?.(fd) === 0) socket.destroy();
    };
    socket.end(() => {
      if (queued === undefined || socket.destroyed) return;
      timers.push(setInterval(look, LINGER_LOOK_MS));
      look();
    });
    for (const timer of timers) timer.unref();
    socket.once('close', () => {
      for (const timer of timers) clearTimeout(timer);
    });
    // Not now: we may be inside of a receive, whose end would stop reading again.
    setImmediate(() => socket.resume());
  }

  destroy(): void {
    this.#socket.destroy();
  }

  readonly #written = (error?: Error | null): void => {
    // An error is followed by 'close', which says all.
    if (error || !this.#busy || this.#socket.writableLength > 0) return;
    this.#busy = false;
    this.#owner?.sent();
  };

  #feed(chunk: Buffer): void {
    if (!this.#deliver(chunk)) this.#socket.pause();
  }

  #deliver(chunk: Buffer): boolean {
    const rest = this.#owner === undefined ? undefined : deliver(chunk, this.#owner);
    this.#rest = rest;
    return rest === undefined;
  }
}

/**
 * Copies a chunk into the owner's targets.
 * @returns undefined when the owner wants more; otherwise what it has not taken, perhaps empty
 */
export function deliver(chunk: Buffer, owner: TransportOwner): Buffer | undefined {
  let rest = chunk;
  while (rest.byteLength > 0) {
    const length = rest.copy(owner.target());
    rest = rest.subarray(length);
    if (!owner.received(length)) return rest;
  }
  return undefined;
}

/** A socket of our own with the accepted one's handle; undefined where that can't be had. */
function adopt(accepted: Socket, owner: TransportOwner): Socket | undefined {
  const holder = accepted as unknown as HandleHolder; // internal, hence checked
  const handle = holder._handle;
  if (typeof handle?.useUserBuffer !== 'function') return undefined;
  const options: SocketConstructorOpts & { handle: unknown; onread: OnReadOpts } = {
    handle,
    allowHalfOpen: true,
    onread: {
      buffer: () => owner.target(),
      callback: (length) => owner.received(length),
    },
  };
  holder._handle = null;
  accepted.destroy();
  return new Socket(options);
}
