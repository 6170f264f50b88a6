// SPDX-License-Identifier: MIT
/** A connecting socket as the backend of a character device; tries again when told to. */
import { connect, Socket } from 'node:net';
import { BlockError, fromSystemError } from '../../base/errors.js';
import { CHARDEV_CONNECT_MS } from '../../base/limits.js';
import { Channel } from '../channel.js';
import type { ChardevBackend } from '../chardev.js';
import { type Address, addressText, connectOptions, hostText, parseFd } from './socket-address.js';

export interface SocketClientOptions {
  readonly address: Address;
  readonly nodelay: boolean;
  /** Seconds until a connection that failed or was lost is tried again; 0: never. */
  readonly reconnectSeconds: number;
}

export class SocketClient implements ChardevBackend {
  readonly #options: SocketClientOptions;
  #offer: ((channel: Channel) => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #connecting: Socket | undefined;

  constructor(options: SocketClientOptions) {
    this.#options = options;
  }

  filename(current: Channel | undefined): string {
    const text = addressText(this.#options.address);
    if (current === undefined) return `disconnected:${text}`;
    return current.peer === '' ? text : `${text} <-> ${current.peer}`;
  }

  async start(offer: (channel: Channel) => void): Promise<void> {
    this.#offer = offer;
    try {
      await this.#connect();
    } catch (error) {
      // A wrong address stays wrong; a peer that is not there yet may come.
      const isHopeless = error instanceof BlockError && error.code === 'DF_INVALID';
      if (isHopeless || this.#options.reconnectSeconds === 0) throw error;
      this.#tryLater();
    }
  }

  async stop(): Promise<void> {
    this.#offer = undefined;
    clearTimeout(this.#timer);
    this.#connecting?.destroy();
  }

  #tryLater(): void {
    const { reconnectSeconds } = this.#options;
    if (this.#offer === undefined || reconnectSeconds === 0) return;
    this.#timer = setTimeout(() => {
      this.#connect().catch(() => this.#tryLater());
    }, reconnectSeconds * 1000);
    this.#timer.unref();
  }

  async #connect(): Promise<void> {
    const { address, nodelay } = this.#options;
    const socket = address.type === 'fd' ? inherited(address.str) : await this.#open(address);
    socket.setNoDelay(nodelay);
    const peer =
      socket.remoteAddress !== undefined
        ? `${hostText(socket.remoteAddress)}:${socket.remotePort}`
        : '';
    const channel = new Channel({ input: socket, output: socket, peer });
    channel.whenClosed(() => this.#tryLater());
    if (this.#offer === undefined) channel.destroy();
    else this.#offer(channel);
  }

  #open(address: Exclude<Address, { type: 'fd' }>): Promise<Socket> {
    const options = connectOptions(address);
    return new Promise((resolve, reject) => {
      const socket = connect({ ...options, allowHalfOpen: true });
      this.#connecting = socket;
      const timer = setTimeout(
        () => socket.destroy(new BlockError('DF_TIMEOUT', 'Connection timed out')),
        CHARDEV_CONNECT_MS,
      );
      const where = address.type === 'unix' ? address.path : `${address.host}:${address.port}`;
      let cause: unknown;
      socket.on('error', (error) => {
        cause = error;
      });
      const failed = () => {
        clearTimeout(timer);
        reject(fromSystemError(cause, `Failed to connect to '${where}'`));
      };
      socket.once('close', failed);
      socket.once('connect', () => {
        clearTimeout(timer);
        socket.off('close', failed);
        this.#connecting = undefined;
        resolve(socket);
      });
    });
  }
}

/** A connected socket that the process was started with. */
function inherited(text: string): Socket {
  const fd = parseFd(text);
  try {
    return new Socket({ fd, allowHalfOpen: true, readable: true, writable: true });
  } catch (error) {
    throw new BlockError('DF_INVALID', `Descriptor ${text} is not a socket`, {}, { cause: error });
  }
}
