// SPDX-License-Identifier: MIT
/**
 * The program behind `startRelay`: passes TCP connections on to a server and delays the bytes, both
 * ways. It tells its port, and on request how many bytes it has passed, over its IPC channel.
 *
 * Arguments: port of the server, delay in milliseconds, bytes a second in each direction (0: any).
 */
import { createServer, type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net';
import { DelayLine, Narrow } from './delay-line.js';
import { joined, type Piece, Receiver, SlabPool } from './slabs.js';

const HOST = '127.0.0.1';
/** Bytes on the way above which a link takes no more: 100 ms at 2.5 GB/s fit. */
const QUEUE_MAX = 256 * 1024 * 1024;
/** What a link with a rate keeps besides what is on the way, as routers do, seconds. */
const BUFFERED_SECONDS = 0.1;

/** Slabs that are there from the start: what is on the way at 1.6 GB/s over 40 ms. */
const SLABS_READY = 16;

/** What the program tells over its channel. */
export interface RelayMessage {
  readonly port?: number;
  readonly bytes?: { readonly toServer: number; readonly toClient: number };
}

const [serverPort = 0, delayMs = 0, bytesPerSecond = 0] = process.argv.slice(2).map(Number);
const bytes = { toServer: 0, toClient: 0 };
const rate = bytesPerSecond === 0 ? Number.POSITIVE_INFINITY : bytesPerSecond;
const narrow = { toServer: new Narrow(rate), toClient: new Narrow(rate) };
const queueMax =
  bytesPerSecond === 0
    ? QUEUE_MAX
    : Math.ceil(bytesPerSecond * (BUFFERED_SECONDS + delayMs / 1000));
const slabs = new SlabPool(SLABS_READY);

/** Passes what one socket sends to another, until it ends. */
class Direction {
  /** For the socket that it comes from. */
  readonly onread: OnReadOpts;
  readonly #line: DelayLine<Piece | 'end'>;
  readonly #receiver = new Receiver(slabs);
  #from: Socket | undefined;
  #to: Socket | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(private readonly counter: keyof typeof bytes) {
    this.#line = new DelayLine({ delayMs, narrow: narrow[counter] });
    this.onread = {
      buffer: () => this.#receiver.room(),
      callback: (length) => this.#received(length),
    };
  }

  /** @param from made with this direction's `onread` */
  start(from: Socket, to: Socket): void {
    this.#from = from;
    this.#to = to;
    from.on('end', () => {
      this.#line.push('end', 0, performance.now());
      this.#deliver();
    });
    from.on('close', () => this.#receiver.end());
    to.on('drain', () => this.#deliver());
    to.on('close', () => clearTimeout(this.#timer));
  }

  #received(length: number): boolean {
    bytes[this.counter] += length;
    this.#line.push(this.#receiver.received(length), length, performance.now());
    this.#deliver();
    return this.#line.queued < queueMax;
  }

  #deliver(): void {
    const to = this.#to;
    if (to === undefined || this.#timer !== undefined) return;
    if (to.writableNeedDrain || to.destroyed) return;
    const { pieces, ended } = this.#take();
    to.cork();
    for (const { slab, start, end } of joined(pieces, slabs)) {
      to.write(slab.memory.subarray(start, end), () => slabs.release(slab));
    }
    if (ended) to.end();
    to.uncork();
    if (this.#line.queued < queueMax) this.#from?.resume();
    const due = this.#line.nextDue;
    if (due === undefined) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        this.#deliver();
      },
      Math.max(0, due - performance.now()),
    );
  }

  /** What is due. */
  #take(): { readonly pieces: Piece[]; readonly ended: boolean } {
    const pieces: Piece[] = [];
    const now = performance.now();
    for (let item = this.#line.take(now); item !== undefined; item = this.#line.take(now)) {
      if (item === 'end') return { pieces, ended: true };
      pieces.push(item);
    }
    return { pieces, ended: false };
  }
}

type WithHandle = SocketConstructorOpts & { handle?: unknown; onread: OnReadOpts };

/**
 * The accepted connection as a socket that receives by `onread`, which Node gives only to sockets
 * that it has not accepted itself: the handle moves.
 */
function adopted(accepted: Socket, onread: OnReadOpts): Socket {
  const holder = accepted as unknown as { _handle: unknown };
  const handle = holder._handle;
  holder._handle = null;
  accepted.destroy();
  return new Socket({ handle, onread, allowHalfOpen: true } as WithHandle);
}

const options = { allowHalfOpen: true, noDelay: true, pauseOnConnect: true };
const listener = createServer(options, (accepted) => {
  const [toServer, toClient] = [new Direction('toServer'), new Direction('toClient')];
  const client = adopted(accepted, toServer.onread);
  const server = new Socket({ allowHalfOpen: true, onread: toClient.onread } as WithHandle);
  // A reset is passed on at once. An end is not: there may be bytes under way before it.
  const reset = (): void => {
    client.destroy();
    server.destroy();
  };
  client.on('error', reset);
  server.on('error', reset);
  toServer.start(client, server);
  toClient.start(server, client);
  server.setNoDelay(true).connect({ host: HOST, port: serverPort });
  client.resume();
  server.resume();
});

listener.listen(0, HOST, () => {
  const address = listener.address();
  if (address === null || typeof address === 'string') throw new Error('no TCP port');
  process.send?.({ port: address.port } satisfies RelayMessage);
});
process.on('message', () => process.send?.({ bytes } satisfies RelayMessage));
process.on('disconnect', () => process.exit(0));
