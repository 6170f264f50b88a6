// SPDX-License-Identifier: MIT
/**
 * The program behind `startRelay`: passes TCP connections on to a server and delays the bytes, both
 * ways. It tells its port, and on request how many bytes it has passed, over its IPC channel.
 *
 * Arguments: port of the server, delay in milliseconds, bytes a second in each direction (0: any).
 */
import { connect, createServer, type Socket } from 'node:net';
import { DelayLine, Narrow } from './delay-line.js';

const HOST = '127.0.0.1';
/** Bytes on the way above which a link takes no more: 100 ms at 2.5 GB/s fit. */
const QUEUE_MAX = 256 * 1024 * 1024;
/** What a link with a rate keeps besides what is on the way, as routers do, seconds. */
const BUFFERED_SECONDS = 0.1;

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

/** What Node reads at once at most, bytes. */
const CHUNK_MAX = 65536;
/**
 * Memory for what is on the way, used again and again: the first touch of new memory costs as much as
 * carrying the bytes, and Node's chunks come back only when its collector finds it worth while.
 */
const spare: Buffer[] = [];

interface Held {
  /** The beginning of it is in use. */
  readonly slot: Buffer;
  readonly length: number;
}

/** Copies a chunk into memory that is free. */
function hold(chunk: Buffer): Held {
  const fits = chunk.length <= CHUNK_MAX;
  const slot =
    (fits ? spare.pop() : undefined) ?? Buffer.allocUnsafeSlow(Math.max(chunk.length, CHUNK_MAX));
  chunk.copy(slot);
  return { slot, length: chunk.length };
}

/** Passes what one socket sends to another, until it ends. */
class Direction {
  readonly #line: DelayLine<Held | 'end'>;
  #timer: NodeJS.Timeout | undefined;

  constructor(
    private readonly from: Socket,
    private readonly to: Socket,
    counter: keyof typeof bytes,
  ) {
    this.#line = new DelayLine({ delayMs, narrow: narrow[counter] });
    from.on('data', (chunk) => {
      bytes[counter] += chunk.length;
      this.#line.push(hold(chunk), chunk.length, performance.now());
      if (this.#line.queued >= queueMax) from.pause();
      this.#deliver();
    });
    from.on('end', () => {
      this.#line.push('end', 0, performance.now());
      this.#deliver();
    });
    to.on('drain', () => this.#deliver());
    to.on('close', () => clearTimeout(this.#timer));
  }

  #deliver(): void {
    if (this.#timer !== undefined || this.to.writableNeedDrain || this.to.destroyed) return;
    this.to.cork();
    for (let item = this.#take(); item !== undefined; item = this.#take()) {
      if (item === 'end') this.to.end();
      else this.to.write(item.slot.subarray(0, item.length), () => spare.push(item.slot));
    }
    this.to.uncork();
    if (this.#line.queued < queueMax && this.from.isPaused()) this.from.resume();
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

  #take(): Held | 'end' | undefined {
    return this.#line.take(performance.now());
  }
}

const listener = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
  const server = connect({ host: HOST, port: serverPort, allowHalfOpen: true, noDelay: true });
  new Direction(client, server, 'toServer');
  new Direction(server, client, 'toClient');
  // A reset is passed on at once. An end is not: there may be bytes under way before it.
  const reset = (): void => {
    client.destroy();
    server.destroy();
  };
  client.on('error', reset);
  server.on('error', reset);
});

listener.listen(0, HOST, () => {
  const address = listener.address();
  if (address === null || typeof address === 'string') throw new Error('no TCP port');
  process.send?.({ port: address.port } satisfies RelayMessage);
});
process.on('message', () => process.send?.({ bytes } satisfies RelayMessage));
process.on('disconnect', () => process.exit(0));
