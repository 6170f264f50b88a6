// SPDX-License-Identifier: MIT
/**
 * The connections to one export. Requests go to the connection with the least to do; those of a lost
 * connection go to another one, or wait for the server's return.
 *
 * Every NBD command may be sent twice: it does the same again. More than one connection is used only
 * where the server says NBD_FLAG_CAN_MULTI_CONN, and then a flush on any of them covers the writes
 * that have completed on all. @see proto.md "Transmission flags"
 */
import { NBD_FLAG_CAN_MULTI_CONN } from '../../../protocol/nbd/constants.js';
import { errorText } from '../../base/error-text.js';
import { BlockError, toError } from '../../base/errors.js';
import {
  NBD_CLIENT_ATTEMPTS_MAX,
  NBD_GIVE_UP_MS,
  NBD_RECONNECT_PAUSE_MIN_MS,
} from '../../base/limits.js';
import { type ConnectionEvents, type ConnectOptions, NbdConnection } from './connection.js';
import { ConnectionGrowth } from './growth.js';
import type { NbdSession } from './negotiate.js';
import { connectFirst, ExportChangedError, nextPause, Outage } from './reconnect.js';
import type { ClientRequest } from './request.js';
import { describeDifference } from './session-difference.js';

/** What happened to the connection as a whole. */
export type NbdClientEvent =
  | { readonly type: 'disconnected'; readonly error: BlockError }
  | { readonly type: 'reconnected' }
  | { readonly type: 'failed'; readonly error: BlockError };

export interface PoolOptions extends Omit<ConnectOptions, 'signal'> {
  /** For error texts. */
  readonly name: string;
  readonly connectionsMax: number;
  /** Open all of them at once instead of as many as pay off. */
  readonly eager: boolean;
  readonly reconnectDelayMs: number;
  /** False: a lost connection is the end (an inherited descriptor). */
  readonly canReconnect: boolean;
  readonly openTimeoutMs: number;
  /** 0: a server may be silent for ever. */
  readonly stallTimeoutMs: number;
  readonly onEvent: (event: NbdClientEvent) => void;
}

/** Time between looks for silent connections once somebody has given up, milliseconds. */
const GIVE_UP_CHECK_MS = 50;
/** For how long: what is sent last may be younger, such as the flush of a node that goes, milliseconds. */
const GIVE_UP_WATCH_MS = 2 * NBD_GIVE_UP_MS;

export class ConnectionPool implements ConnectionEvents {
  readonly session: NbdSession;
  readonly #options: PoolOptions;
  readonly #connections: NbdConnection[] = [];
  /** Requests without a connection that has room, first come first. */
  #queue: ClientRequest[] = [];
  #growth: ConnectionGrowth;
  readonly #closing = new AbortController();
  /** Attempts under way to open further connections. */
  #opening = 0;
  #growthRefused = false;
  #outage: Outage | undefined;
  #lost: BlockError | undefined;
  /** Since when nothing has been answered, over however many connections. */
  #outageStart: number | undefined;
  #outagePauseMs = 0;
  /** Set for good: closed, or beyond hope. */
  #failure: BlockError | undefined;
  readonly #stallTimer: NodeJS.Timeout | undefined;
  #giveUpTimer: NodeJS.Timeout | undefined;

  /** @throws BlockError when there is no first connection within `openTimeoutMs` */
  static async open(options: PoolOptions, signal: AbortSignal): Promise<ConnectionPool> {
    let pool: ConnectionPool | undefined;
    // A connection can be lost before its pool exists; the pool looks when it starts.
    const events: ConnectionEvents = {
      completed: (connection, request) => pool?.completed(connection, request),
      lost: (connection, error, orphans) => pool?.lost(connection, error, orphans),
    };
    const attempt = (each: AbortSignal): Promise<NbdConnection> =>
      NbdConnection.open({ ...options, signal: each }, events);
    const first = await connectFirst(attempt, options.openTimeoutMs, signal);
    pool = new ConnectionPool(options, first);
    return pool;
  }

  private constructor(options: PoolOptions, first: NbdConnection) {
    this.#options = options;
    this.session = first.session;
    const multi = (first.session.transmissionFlags & NBD_FLAG_CAN_MULTI_CONN) !== 0;
    const max = multi && options.canReconnect ? options.connectionsMax : 1;
    const { roundTripMs } = first.session;
    this.#growth = new ConnectionGrowth(max, { eager: options.eager, roundTripMs });
    const { stallTimeoutMs } = options;
    if (stallTimeoutMs > 0) {
      this.#stallTimer = setInterval(() => this.#findStalled(), stallTimeoutMs / 4);
      this.#stallTimer.unref();
    }
    if (first.isClosed) {
      const error = new BlockError('DF_DISCONNECTED', 'the server hung up');
      queueMicrotask(() => this.lost(first, error, []));
    }
    this.#connections.push(first);
    this.#resize();
  }

  get connectionCount(): number {
    return this.#connections.length;
  }

  /** True while no connection stands. */
  get disconnected(): boolean {
    return this.#connections.length === 0;
  }

  /** Nobody waits for a lost server's return. */
  get failsWhenLost(): boolean {
    return this.#options.reconnectDelayMs === 0;
  }

  /** True where payloads can go from where they lie into the sockets. */
  get takesSources(): boolean {
    return this.#connections[0]?.takesSources === true;
  }

  /** Sends a request as soon as possible, or ends it with an error. */
  submit(request: ClientRequest): void {
    if (this.#failure !== undefined) {
      request.end(this.#failure);
      return;
    }
    if (this.#queue.length === 0) {
      const connection = this.#pick();
      if (connection !== undefined) {
        connection.submit(request);
        return;
      }
    }
    if (this.#connections.length === 0 && !this.#outage?.waiting) request.end(this.#goneError());
    else this.#queue.push(request);
  }

  completed(connection: NbdConnection, request: ClientRequest): void {
    const retry = request.error?.code === 'DF_SHUTDOWN' && this.#options.reconnectDelayMs > 0;
    if (retry && this.#failure === undefined) {
      this.#queue.unshift(request);
      connection.fail(new BlockError('DF_DISCONNECTED', 'the server is shutting down'));
      return;
    }
    this.#outageStart = undefined;
    const waiting = connection.requestCount * this.#connections.length + this.#queue.length + 1;
    request.end(request.error);
    if (this.#queue.length > 0) this.#pump();
    if (this.#growth.note(request.payloadLength, waiting, connection.lastProgress)) this.#resize();
    this.#retire(connection);
  }

  lost(connection: NbdConnection, error: BlockError, orphans: ClientRequest[]): void {
    const at = this.#connections.indexOf(connection);
    if (at < 0 || this.#failure !== undefined) return; // who opened it sees that it is closed
    this.#connections.splice(at, 1);
    this.#queue.unshift(...orphans.filter((request) => !this.#isLost(request, error)));
    if (error.code === 'DF_PROTOCOL') {
      const text = `the NBD server ${this.#options.name} was dropped: ${error.message}`;
      this.#fail(new BlockError('DF_PROTOCOL', text, {}, { cause: error }));
    } else if (this.#connections.length > 0) {
      this.#pump();
    } else {
      this.#lost = error;
      this.#startOutage(error);
    }
  }

  /**
   * Requests that wait for a server's return fail now; those that wait for an answer fail when the
   * server has been silent for NBD_GIVE_UP_MS: what it still does after that it does behind the back
   * of whoever writes to it next. May be called again and again.
   */
  stopWaiting(): void {
    this.#outage?.expire();
    this.#giveUpSilent();
    clearInterval(this.#giveUpTimer);
    const end = performance.now() + GIVE_UP_WATCH_MS;
    this.#giveUpTimer = setInterval(() => {
      this.#giveUpSilent();
      if (performance.now() >= end) clearInterval(this.#giveUpTimer);
    }, GIVE_UP_CHECK_MS);
    this.#giveUpTimer.unref();
  }

  #giveUpSilent(): void {
    const before = this.#connections.length;
    this.#dropSilent(performance.now() - NBD_GIVE_UP_MS, NBD_GIVE_UP_MS);
    if (this.#connections.length < before) this.#outage?.expire();
  }

  /** Ends everything at once; requests without an answer fail with `error`. */
  close(error: BlockError): void {
    if (this.#failure === undefined) this.#end(error);
  }

  #end(error: BlockError): void {
    this.#failure = error;
    clearInterval(this.#stallTimer);
    clearInterval(this.#giveUpTimer);
    this.#closing.abort(error);
    this.#outage?.end();
    for (const connection of this.#connections.splice(0)) {
      for (const request of connection.close()) request.end(error);
    }
    for (const request of this.#queue.splice(0)) request.end(error);
  }

  #fail(error: BlockError): void {
    this.#end(error);
    this.#options.onEvent({ type: 'failed', error });
  }

  #pump(): void {
    let sent = 0;
    for (const request of this.#queue) {
      const connection = this.#pick();
      if (connection === undefined) break;
      connection.submit(request);
      sent++;
    }
    this.#queue.splice(0, sent);
  }

  /** The connection with the least bytes under way, the first one among equals. */
  #pick(): NbdConnection | undefined {
    let best: NbdConnection | undefined;
    let bestLoad = Number.POSITIVE_INFINITY;
    const count = Math.min(this.#connections.length, this.#growth.wanted);
    for (let at = 0; at < count; at++) {
      const connection = this.#connections[at];
      if (connection === undefined || !connection.hasRoom) continue;
      const load = connection.bytesInFlight + connection.requestCount;
      if (load < bestLoad) {
        best = connection;
        bestLoad = load;
      }
    }
    return best;
  }

  /** Opens what is missing, closes what is too many and idle. */
  #resize(): void {
    const { wanted } = this.#growth;
    for (const surplus of this.#connections.slice(wanted)) this.#retire(surplus);
    while (!this.#growthRefused && this.#connections.length + this.#opening < wanted) {
      this.#opening++;
      void this.#openFurther();
    }
  }

  #retire(connection: NbdConnection): void {
    if (this.#connections.length <= this.#growth.wanted || connection.requestCount > 0) return;
    const at = this.#connections.indexOf(connection);
    if (at < this.#growth.wanted) return;
    this.#connections.splice(at, 1);
    connection.close();
  }

  async #openFurther(): Promise<void> {
    try {
      const connection = await this.#connect(this.#closing.signal);
      const late = this.#failure !== undefined || this.#outage !== undefined;
      if (connection.isClosed) this.#growthRefused = true;
      else if (late || this.#connections.length >= this.#growth.wanted) connection.close();
      else this.#connections.push(connection);
    } catch {
      // The server has enough of us (max-connections); what stands goes on.
      this.#growthRefused = true;
    } finally {
      this.#opening--;
    }
    if (this.#failure === undefined && this.#queue.length > 0) this.#pump();
  }

  /** One attempt, which has to bring the same export as at first. */
  async #connect(signal: AbortSignal): Promise<NbdConnection> {
    const connection = await NbdConnection.open({ ...this.#options, signal }, this);
    const difference = describeDifference(this.session, connection.session);
    if (difference === undefined) return connection;
    connection.close();
    throw new ExportChangedError(
      'DF_DISCONNECTED',
      `the NBD server ${this.#options.name} came back with ${difference}`,
    );
  }

  /**
   * Ends a request that may be sent only once, or under which so many connections were lost that it may
   * be the reason.
   */
  #isLost(request: ClientRequest, error: BlockError): boolean {
    const last = request.once || request.attempts >= NBD_CLIENT_ATTEMPTS_MAX;
    if (!last || error.code === 'DF_PROTOCOL') return false; // a breach fails all that is left
    const text = request.once
      ? `lost the NBD server ${this.#options.name} (${error.message})`
      : `${request.attempts} connections were lost during ${request.describe()}`;
    request.end(new BlockError('DF_DISCONNECTED', text, {}, { cause: error }));
    return true;
  }

  /**
   * A server that comes back and is lost again before it has answered anything was not back: the
   * time goes on, and so do the pauses.
   */
  #startOutage(error: BlockError): void {
    const { onEvent, canReconnect, reconnectDelayMs } = this.#options;
    if (!canReconnect) {
      this.#fail(this.#goneError());
      return;
    }
    onEvent({ type: 'disconnected', error });
    const now = performance.now();
    this.#outagePauseMs =
      this.#outageStart === undefined ? this.#firstPauseMs() : nextPause(this.#outagePauseMs);
    this.#outageStart ??= now;
    const outage = new Outage({
      attempt: (signal) => this.#connect(signal),
      windowMs: Math.max(0, this.#outageStart + reconnectDelayMs - now),
      pauseMs: this.#outagePauseMs,
      onBack: (connection) => this.#back(connection),
      onExpired: () => {
        for (const request of this.#queue.splice(0)) request.end(this.#goneError());
      },
      onHopeless: (hopeless) => this.#fail(hopeless),
    });
    this.#outage = outage;
    outage.start();
  }

  /**
   * Where nobody waits, the server that took the export away is let be for a moment: QEMU 7.2 can
   * hang in nbd-server-stop while a client is negotiating.
   */
  #firstPauseMs(): number {
    const wanted = this.#queue.length > 0 && this.#options.reconnectDelayMs > 0;
    return wanted ? 0 : NBD_RECONNECT_PAUSE_MIN_MS;
  }

  #back(connection: NbdConnection): void {
    this.#outage = undefined;
    this.#growthRefused = false;
    this.#connections.push(connection);
    const { transmissionFlags } = connection.session;
    if ((transmissionFlags & NBD_FLAG_CAN_MULTI_CONN) === 0) {
      this.#growth = new ConnectionGrowth(1, { eager: false });
    }
    this.#options.onEvent({ type: 'reconnected' });
    this.#pump();
    this.#resize();
  }

  #goneError(): BlockError {
    const { name, reconnectDelayMs } = this.#options;
    const lost = this.#lost?.message ?? 'connection lost';
    const last = this.#outage?.lastError;
    const waited =
      reconnectDelayMs > 0 ? ` and did not come back within ${reconnectDelayMs / 1000} s` : '';
    const why = last === undefined ? '' : `; last attempt: ${last.message}`;
    const cause = last ?? this.#lost;
    const text = `lost the NBD server ${name} (${lost})${waited}${why}`;
    return new BlockError('DF_DISCONNECTED', text, {}, { cause });
  }

  #findStalled(): void {
    const { stallTimeoutMs } = this.#options;
    this.#dropSilent(performance.now() - stallTimeoutMs, stallTimeoutMs);
  }

  /** Drops connections that have made no progress since then, though requests wait. */
  #dropSilent(since: number, silentMs: number): void {
    for (const connection of [...this.#connections]) {
      if (connection.requestCount === 0 || connection.lastProgress > since) continue;
      connection.fail(new BlockError('DF_TIMEOUT', `no answer for ${silentMs / 1000} s`));
    }
  }
}

/** Any failure of the library as the error it promises. */
export function asBlockError(error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  const cause = toError(error);
  return new BlockError('DF_IO', errorText(cause), {}, { cause });
}
