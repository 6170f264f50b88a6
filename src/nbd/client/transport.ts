// SPDX-License-Identifier: MIT
/** The byte stream under an NBD connection: TCP, UNIX, an inherited descriptor, WebSocket. */
import { connect, Socket } from 'node:net';
import { errorText } from '../../base/error-text.js';
import { BlockError, fromSystemError, toError } from '../../base/errors.js';
import { NBD_GOODBYE_MS, NBD_KEEPALIVE_IDLE_MS, UNIX_PATH_MAX } from '../../base/limits.js';
import { describeAddress, type NbdAddress } from './address.js';
import { openWebSocket } from './websocket-transport.js';

/** Who takes what arrives, straight into its own buffers. */
export interface TransportSink {
  /** Where the next bytes go; at least one byte long. It belongs to the transport until `received`. */
  receiveBuffer(): Uint8Array;
  /** `length` bytes have arrived in the buffer that `receiveBuffer` gave last. */
  received(length: number): void;
  /** Once; nothing arrives afterwards and no buffer is held any more. */
  closed(error: BlockError): void;
}

export interface Transport {
  /** Set right after opening, before the event loop turns; may be replaced between two receives. */
  sink: TransportSink | undefined;
  /** True where payloads are better sent by who has them. */
  readonly takesSources: boolean;
  /**
   * The descriptor of a stream socket that takes the bytes as they are; absent where they are wrapped,
   * or once it is closed. May be written to while nothing of `write` is under way.
   */
  readonly fd?: number | undefined;
  /** Sends the pieces in order; they stay untouched until `done`, which a lost connection never calls. */
  write(pieces: readonly Uint8Array[], done: () => void): void;
  /** Sends what was written, then closes. */
  end(): void;
  /** Closes at once. The sink's `closed` is not called any more. */
  destroy(): void;
}

export interface OpenTransportOptions {
  readonly address: NbdAddress;
  /** Aborts the attempt. */
  readonly signal: AbortSignal;
  /** See NbdClientOptions. */
  readonly tuneUnixSocket?: ((fd: number) => void) | undefined;
}

/**
 * Connects.
 * @throws BlockError DF_DISCONNECTED (or what the system's error maps to)
 */
export function openTransport(options: OpenTransportOptions): Promise<Transport> {
  if (options.signal.aborted) return Promise.reject(abortReason(options.signal));
  const { address } = options;
  if (address.type === 'websocket') return openWebSocket(address.url, options.signal);
  return openSocket(address, options);
}

/** Copies bytes that arrived in somebody else's buffer into the sink's. */
export function deliver(sink: () => TransportSink | undefined, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.byteLength; ) {
    const receiver = sink();
    if (receiver === undefined) return;
    const into = receiver.receiveBuffer();
    const length = Math.min(into.byteLength, bytes.byteLength - at);
    into.set(bytes.subarray(at, at + length));
    at += length;
    receiver.received(length);
  }
}

export function abortReason(signal: AbortSignal): BlockError {
  const { reason } = signal;
  return reason instanceof BlockError
    ? reason
    : new BlockError('DF_CANCELLED', 'connecting was given up', {}, { cause: reason });
}

/** "Failed to connect to '/run/nbd.sock': Connection refused". */
export function connectError(error: unknown, address: NbdAddress): BlockError {
  const to = describeAddress(address);
  const reason = error === undefined ? 'Closed' : errorText(toError(error));
  if (error instanceof Error && 'syscall' in error && error.syscall === 'getaddrinfo') {
    return fromSystemError(error, `address resolution failed for ${to}: ${reason}`);
  }
  const text = `${reason.charAt(0).toUpperCase()}${reason.slice(1)}`;
  return fromSystemError(error, `Failed to connect to '${to}': ${text}`);
}

type SocketAddress = Exclude<NbdAddress, { type: 'websocket' }>;

/** Receives the greeting's first bytes should they come before a sink is set. */
const EARLY_LENGTH = 4096;

class SocketTransport implements Transport {
  sink: TransportSink | undefined;
  /**
   * Over TCP to this host it takes more time in both programs than it saves: the pages are in nobody's
   * cache when the server copies them. Between hosts nobody has measured it.
   */
  readonly takesSources: boolean;
  readonly #socket: Socket;
  /** Whose buffer the socket holds; undefined: the early buffer. */
  #owner: TransportSink | undefined;
  #early: Buffer | undefined = Buffer.allocUnsafeSlow(EARLY_LENGTH);
  #failure: Error | undefined;
  #ended = false;

  constructor(address: SocketAddress) {
    const onread = {
      buffer: (): Uint8Array => this.#nextBuffer(),
      callback: (length: number, buffer: Uint8Array): boolean => {
        this.#received(length, buffer);
        return true;
      },
    };
    this.takesSources = address.type === 'unix';
    this.#socket = makeSocket(address, onread);
    this.#socket.on('error', (error) => {
      this.#failure = error;
    });
    this.#socket.on('end', () => {
      this.#ended = true;
    });
  }

  /** Settles once the socket is connected, or failed. */
  async connected(address: SocketAddress, signal: AbortSignal): Promise<void> {
    const socket = this.#socket;
    if (address.type !== 'fd') {
      await new Promise<void>((resolve, reject) => {
        const abort = (): void => {
          socket.destroy();
          reject(abortReason(signal));
        };
        signal.addEventListener('abort', abort, { once: true });
        socket.once('connect', () => {
          signal.removeEventListener('abort', abort);
          resolve();
        });
        socket.once('close', () => {
          signal.removeEventListener('abort', abort);
          reject(connectError(this.#failure, address));
        });
      });
    }
    socket.once('close', () => this.#closed());
    if (socket.destroyed) throw connectError(this.#failure, address);
  }

  get fd(): number | undefined {
    const handle = (this.#socket as unknown as { _handle?: { fd?: unknown } | null })._handle;
    return typeof handle?.fd === 'number' && handle.fd >= 0 ? handle.fd : undefined;
  }

  write(pieces: readonly Uint8Array[], done: () => void): void {
    const socket = this.#socket;
    const last = pieces.length - 1;
    if (last > 0) socket.cork();
    pieces.forEach((piece, index) => {
      if (index < last) socket.write(piece);
      else socket.write(piece, (error) => (error ? undefined : done()));
    });
    if (last > 0) socket.uncork();
  }

  end(): void {
    const socket = this.#socket;
    // A server that reads no more must not keep the descriptor.
    const timer = setTimeout(() => socket.destroy(), NBD_GOODBYE_MS);
    socket.once('close', () => clearTimeout(timer));
    socket.end(() => socket.destroy());
  }

  destroy(): void {
    this.sink = undefined;
    this.#owner = undefined;
    this.#socket.destroy();
  }

  #nextBuffer(): Uint8Array {
    this.#owner = this.sink;
    if (this.sink !== undefined) {
      this.#early = undefined;
      return this.sink.receiveBuffer();
    }
    this.#early ??= Buffer.allocUnsafeSlow(EARLY_LENGTH);
    return this.#early;
  }

  #received(length: number, buffer: Uint8Array): void {
    if (this.sink === undefined) return;
    if (this.#owner === this.sink) this.sink.received(length);
    else deliver(() => this.sink, buffer.subarray(0, length));
  }

  #closed(): void {
    const sink = this.sink;
    this.sink = undefined;
    const failure = this.#failure;
    sink?.closed(
      failure === undefined
        ? new BlockError(
            'DF_DISCONNECTED',
            this.#ended ? 'the server hung up' : 'Connection closed',
          )
        : new BlockError('DF_DISCONNECTED', errorText(failure), {}, { cause: failure }),
    );
  }
}

function makeSocket(
  address: SocketAddress,
  onread: { buffer: () => Uint8Array; callback: (length: number, buffer: Uint8Array) => boolean },
): Socket {
  if (address.type === 'unix') return connect({ path: address.path, onread });
  if (address.type === 'inet') {
    const { host, port, family = 0 } = address;
    const keepAliveInitialDelay = NBD_KEEPALIVE_IDLE_MS;
    return connect({
      host,
      port,
      family,
      onread,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay,
    });
  }
  const options = { fd: address.fd, readable: true, writable: true, onread };
  const socket = new Socket(options);
  socket.setNoDelay(true);
  socket.setKeepAlive(true, NBD_KEEPALIVE_IDLE_MS);
  return socket;
}

async function openSocket(
  address: SocketAddress,
  { signal, tuneUnixSocket }: OpenTransportOptions,
): Promise<Transport> {
  // Node would connect to what is left of the path when it is cut off: to another server, perhaps.
  if (address.type === 'unix' && Buffer.byteLength(address.path) > UNIX_PATH_MAX) {
    throw new BlockError('DF_INVALID', `UNIX socket path '${address.path}' is too long`);
  }
  let transport: SocketTransport;
  try {
    transport = new SocketTransport(address);
  } catch (error) {
    throw connectError(error, address);
  }
  await transport.connected(address, signal);
  if (address.type === 'unix' && transport.fd !== undefined) tuneUnixSocket?.(transport.fd);
  return transport;
}
