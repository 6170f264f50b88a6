// SPDX-License-Identifier: MIT
/** One connection in its transmission phase: requests in flight by cookie, until it ends. */
import { NBD_CMD_DISC } from '../../../protocol/nbd/constants.js';
import { BlockError, toError } from '../../base/errors.js';
import { NBD_CLIENT_BYTES_MAX, NBD_CLIENT_REQUESTS_MAX } from '../../base/limits.js';
import type { NbdAddress } from './address.js';
import { type NbdSession, negotiate } from './negotiate.js';
import { OptionStream } from './option-stream.js';
import { type ReplyHandler, ReplyReader } from './reply-reader.js';
import { ClientRequest } from './request.js';
import { RequestWriter } from './request-writer.js';
import { openTransport, type Transport, type TransportSink } from './transport.js';

export interface ConnectOptions {
  readonly address: NbdAddress;
  readonly exportName: string;
  readonly metaContexts: readonly string[];
  /** For connecting and the whole option phase. */
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
  /** See NbdClientOptions. */
  readonly tuneUnixSocket?: ((fd: number) => void) | undefined;
}

export interface ConnectionEvents {
  /** The reply to a request is there (`request.error` says how it went); its end is the receiver's to tell. */
  completed(connection: NbdConnection, request: ClientRequest): void;
  /**
   * The connection has ended by itself. `orphans` are the requests without an answer, in the order
   * of submission; they belong to the receiver now.
   */
  lost(connection: NbdConnection, error: BlockError, orphans: ClientRequest[]): void;
}

/** Deadline of everything up to the transmission phase; `finish` releases timer and listener. */
export function deadline(
  timeoutMs: number,
  signal: AbortSignal,
): { signal: AbortSignal; finish: () => void } {
  const controller = new AbortController();
  const expire = (): void =>
    controller.abort(new BlockError('DF_TIMEOUT', `no connection within ${timeoutMs} ms`));
  const forward = (): void => controller.abort(signal.reason);
  const timer = setTimeout(expire, timeoutMs);
  if (signal.aborted) forward();
  else signal.addEventListener('abort', forward, { once: true });
  return {
    signal: controller.signal,
    finish: () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', forward);
    },
  };
}

/**
 * Connects, runs `talk` in the option phase, and leaves the rest to the caller.
 * @throws BlockError; the transport is closed then
 */
export async function openOptionPhase<T>(
  options: Pick<ConnectOptions, 'address' | 'timeoutMs' | 'signal' | 'tuneUnixSocket'>,
  talk: (stream: OptionStream) => Promise<T>,
): Promise<{ transport: Transport; result: T }> {
  const limit = deadline(options.timeoutMs, options.signal);
  let transport: Transport | undefined;
  try {
    const { address, tuneUnixSocket } = options;
    transport = await openTransport({ address, tuneUnixSocket, signal: limit.signal });
    const stream = new OptionStream(transport);
    const give = (): void => stream.fail(toBlockError(limit.signal.reason));
    if (limit.signal.aborted) give();
    else limit.signal.addEventListener('abort', give, { once: true });
    return { transport, result: await talk(stream) };
  } catch (error) {
    transport?.destroy();
    throw error;
  } finally {
    limit.finish();
  }
}

function toBlockError(reason: unknown): BlockError {
  if (reason instanceof BlockError) return reason;
  return new BlockError('DF_CANCELLED', 'connecting was given up', {}, { cause: reason });
}

export class NbdConnection implements TransportSink, ReplyHandler {
  readonly session: NbdSession;
  /** When bytes last came, or left, or there was nothing to wait for; milliseconds of `now`. */
  lastProgress = performance.now();
  readonly #transport: Transport;
  readonly #events: ConnectionEvents;
  readonly #reader: ReplyReader;
  readonly #writer: RequestWriter;
  readonly #slots: (ClientRequest | undefined)[] = [];
  readonly #uses: number[] = [];
  readonly #free: number[] = [];
  /** Answered before all of their payload had left: the buffer is still in use. */
  readonly #early: ClientRequest[] = [];
  #requestCount = 0;
  #bytesInFlight = 0;
  #closed = false;

  /** @throws BlockError when there is no way into the transmission phase */
  static async open(options: ConnectOptions, events: ConnectionEvents): Promise<NbdConnection> {
    const { transport, result } = await openOptionPhase(options, (stream) =>
      negotiate(stream, options),
    );
    return new NbdConnection(transport, result, events);
  }

  private constructor(transport: Transport, session: NbdSession, events: ConnectionEvents) {
    this.session = session;
    this.#transport = transport;
    this.#events = events;
    this.#reader = new ReplyReader(session, this);
    this.#writer = new RequestWriter(transport, {
      extended: session.replies === 'extended',
      written: () => this.#written(),
    });
    transport.sink = this;
  }

  get requestCount(): number {
    return this.#requestCount;
  }

  get bytesInFlight(): number {
    return this.#bytesInFlight;
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  get takesSources(): boolean {
    return this.#transport.takesSources;
  }

  /** True when one more request may go on the wire. */
  get hasRoom(): boolean {
    return (
      !this.#closed &&
      this.#requestCount < NBD_CLIENT_REQUESTS_MAX &&
      this.#bytesInFlight < NBD_CLIENT_BYTES_MAX
    );
  }

  /** Sends a request; it ends through its own callback, or comes back as an orphan. */
  submit(request: ClientRequest): void {
    if (this.#requestCount === 0) this.lastProgress = performance.now();
    const slot = this.#free.pop() ?? this.#slots.length;
    const use = ((this.#uses[slot] ?? 0) + 1) >>> 0;
    this.#uses[slot] = use;
    this.#slots[slot] = request;
    request.restart();
    request.cookieLow = slot;
    request.cookieHigh = use;
    this.#requestCount++;
    this.#bytesInFlight += request.payloadLength;
    this.#writer.add(request, { now: this.#requestCount === 1 });
  }

  find(cookieHigh: number, cookieLow: number): ClientRequest | undefined {
    const request = this.#slots[cookieLow];
    return request !== undefined && request.cookieHigh === cookieHigh ? request : undefined;
  }

  complete(request: ClientRequest): void {
    this.#slots[request.cookieLow] = undefined;
    this.#free.push(request.cookieLow);
    if (this.#writer.isWritten(request)) this.#ended(request);
    else this.#early.push(request);
  }

  receiveBuffer(): Uint8Array {
    return this.#reader.receiveBuffer();
  }

  received(length: number): void {
    if (this.#closed) return;
    this.lastProgress = performance.now();
    try {
      this.#reader.received(length);
    } catch (error) {
      const cause = toError(error);
      this.fail(cause instanceof BlockError ? cause : new BlockError('DF_PROTOCOL', cause.message));
    }
  }

  /** The transport has ended by itself. */
  closed(error: BlockError): void {
    this.fail(error);
  }

  /** Ends the connection for a reason; requests in flight become orphans. */
  fail(error: BlockError): void {
    if (this.#closed) return;
    const orphans = this.#end();
    this.#transport.destroy();
    this.#events.lost(this, error, orphans);
  }

  /** Says goodbye (NBD_CMD_DISC) and ends; requests in flight are given back, unanswered. */
  close(): ClientRequest[] {
    if (this.#closed) return [];
    if (this.#requestCount > 0) {
      const orphans = this.#end();
      this.#transport.destroy();
      return orphans;
    }
    const goodbye = new ClientRequest(
      { command: NBD_CMD_DISC, flags: 0, offset: 0, length: 0 },
      () => {},
    );
    this.#writer.add(goodbye, { now: true });
    this.#writer.flush();
    this.#end();
    this.#transport.sink = undefined;
    this.#transport.end();
    return [];
  }

  #end(): ClientRequest[] {
    this.#closed = true;
    this.#writer.stop();
    this.#reader.stop();
    const orphans = this.#slots.filter((request) => request !== undefined);
    orphans.sort((a, b) => a.batch - b.batch);
    this.#slots.length = 0;
    const answered = this.#early.splice(0);
    for (const request of answered) request.end(request.error);
    this.#requestCount = 0;
    this.#bytesInFlight = 0;
    return orphans;
  }

  #ended(request: ClientRequest): void {
    this.#requestCount--;
    this.#bytesInFlight -= request.payloadLength;
    this.#events.completed(this, request);
  }

  #written(): void {
    this.lastProgress = performance.now();
    for (let at = 0; at < this.#early.length; ) {
      const request = this.#early[at];
      if (request !== undefined && this.#writer.isWritten(request)) {
        this.#early.splice(at, 1);
        this.#ended(request);
      } else {
        at++;
      }
    }
  }
}
