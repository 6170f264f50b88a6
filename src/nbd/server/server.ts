// SPDX-License-Identifier: MIT
/** The NBD server: listeners, exports, connections, and what bounds them together. */
import type { Socket } from 'node:net';
import { BufferPool } from '../../base/buffer-pool.js';
import {
  NBD_BYTES_TOTAL_MAX,
  NBD_CONNECTIONS_DEFAULT,
  NBD_HANDSHAKE_SECONDS_DEFAULT,
  NBD_STALL_MAX_MS,
  NBD_STOP_GRACE_MS,
} from '../../base/limits.js';
import { rootLog } from '../../base/log.js';
import { BusyPoll } from './busy-poll.js';
import { Connection, type ConnectionInfo } from './connection.js';
import { type ExportOptions, ExportRegistry, type NbdExport, type RemoveMode } from './export.js';
import { type BoundAddress, type ListenAddress, type Listener, openListener } from './listener.js';
import { MemoryBudget } from './memory-budget.js';
import { StreamTransport } from './stream-transport.js';
import type { QueuedBytes, Transport } from './transport.js';

const STALL_CHECK_MS = 5_000;

export interface NbdServerOptions {
  /** Clients at a time; 0: no limit of its own. */
  readonly maxConnections?: number;
  /** For the option phase; 0: unlimited. */
  readonly handshakeMaxSeconds?: number;
  /** Payload memory of all connections, bytes. */
  readonly memoryMax?: number;
  readonly pool?: BufferPool;
  /** How long the event loop stays awake behind a reply where requests come one by one; 0: never. */
  readonly pollMicroseconds?: number;
  readonly sockets?: SocketCalls | undefined;
}

/** What the system does with sockets and Node has no call for; all of it may be absent. */
export interface SocketCalls {
  /**
   * Called for each client on a UNIX socket, whose send buffer does not grow by itself: a reply that
   * does not fit costs a wake-up for each part.
   */
  readonly tuneUnixSocket?: (fd: number) => void;
  /** Spares the wait for clients that have taken all their replies when a connection is closed. */
  readonly queuedBytes?: QueuedBytes;
}

export class NbdServer {
  readonly exports = new ExportRegistry();
  readonly budget: MemoryBudget;
  readonly #maxConnections: number;
  readonly #handshakeMaxMs: number;
  readonly #sockets: SocketCalls;
  readonly #listeners: Listener[] = [];
  readonly #connections = new Map<number, Connection>();
  readonly #stallCheck: NodeJS.Timeout;
  readonly #poll: BusyPoll;
  #nextId = 1;
  #accepted = 0;
  #rejected = 0;
  #stopped = false;
  #whenEmpty: (() => void)[] = [];

  constructor(options: NbdServerOptions = {}) {
    this.#sockets = options.sockets ?? {};
    this.#maxConnections = options.maxConnections ?? NBD_CONNECTIONS_DEFAULT;
    this.#handshakeMaxMs = (options.handshakeMaxSeconds ?? NBD_HANDSHAKE_SECONDS_DEFAULT) * 1000;
    const pool = options.pool ?? new BufferPool();
    this.budget = new MemoryBudget(pool, options.memoryMax ?? NBD_BYTES_TOTAL_MAX);
    const { pollMicroseconds } = options;
    this.#poll = new BusyPoll(
      pollMicroseconds === undefined ? {} : { windowMs: pollMicroseconds / 1000 },
    );
    this.#stallCheck = setInterval(() => this.#dropStalled(), STALL_CHECK_MS);
    this.#stallCheck.unref();
  }

  /** Opens one more listener. Returns where it listens: the port that the system chose, too. */
  async listen(address: ListenAddress): Promise<BoundAddress> {
    const listener = await openListener(address, (transport) => this.#accept(transport));
    if (this.#stopped) {
      await listener.close();
      throw new Error('the NBD server was stopped meanwhile');
    }
    this.#listeners.push(listener);
    rootLog().info({ event: 'nbd.listen', address: listener.address }, 'NBD server listens');
    return listener.address;
  }

  get addresses(): BoundAddress[] {
    return this.#listeners.map(({ address }) => address);
  }

  /**
   * Serves one connected socket that nobody has read from, whoever accepted it.
   * @param peer the client's address for logs
   */
  serve(socket: Socket, peer = 'unknown'): void {
    this.#accept(new StreamTransport(socket, { kind: 'stream', peer }));
  }

  /** @see ExportRegistry.add */
  addExport(options: ExportOptions): NbdExport {
    return this.exports.add(options);
  }

  /** @see ExportRegistry.remove */
  removeExport(id: string, mode: RemoveMode = 'safe'): NbdExport {
    return this.exports.remove(id, mode);
  }

  /** Connections as they are now; the objects are snapshots but for their counters. */
  connections(): ConnectionInfo[] {
    return [...this.#connections.values()].map(({ info }) => info);
  }

  /** Counts since the start, for metrics. */
  get totals(): { accepted: number; rejected: number; connections: number; memoryBytes: number } {
    return {
      accepted: this.#accepted,
      rejected: this.#rejected,
      connections: this.#connections.size,
      memoryBytes: this.budget.pool.takenBytes,
    };
  }

  /** Drops one connection at once. Returns false when there is none of that id. */
  disconnect(id: number): boolean {
    const connection = this.#connections.get(id);
    connection?.drop('disconnected by the operator');
    return connection !== undefined;
  }

  /**
   * No more clients; requests in flight are answered, then connections and exports end. Clients
   * that don't take their last replies within `graceMs` are dropped.
   */
  async stop(graceMs = NBD_STOP_GRACE_MS): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    clearInterval(this.#stallCheck);
    this.#poll.stop();
    const listeners = this.#listeners.splice(0).map((listener) => listener.close());
    for (const connection of this.#connections.values()) connection.shutdown(graceMs);
    for (const exported of this.exports.all()) exported.retire({ drop: false });
    await this.#empty();
    await Promise.all(listeners);
  }

  #accept(transport: Transport): void {
    const full = this.#maxConnections > 0 && this.#connections.size >= this.#maxConnections;
    if (this.#stopped || full) {
      this.#rejected++;
      transport.destroy();
      rootLog().warn(
        { event: 'nbd.reject', peer: transport.peer, max: this.#maxConnections },
        'client refused: too many connections',
      );
      return;
    }
    this.#accepted++;
    if (transport.kind === 'unix' && transport.fd !== undefined) {
      this.#sockets.tuneUnixSocket?.(transport.fd);
    }
    const connection = new Connection({
      id: this.#nextId++,
      transport,
      exports: this.exports,
      budget: this.budget,
      poll: this.#poll,
      handshakeMaxMs: this.#handshakeMaxMs,
      queuedBytes: this.#sockets.queuedBytes,
      onClosed: ({ id }) => this.#forget(id),
    });
    this.#connections.set(connection.id, connection);
    connection.start();
  }

  #forget(id: number): void {
    this.#connections.delete(id);
    if (this.#connections.size > 0) return;
    for (const resolve of this.#whenEmpty.splice(0)) resolve();
  }

  async #empty(): Promise<void> {
    if (this.#connections.size === 0) return;
    await new Promise<void>((resolve) => {
      this.#whenEmpty.push(resolve);
    });
  }

  /** Who holds memory without taking it must not keep it from those who wait for some. */
  #dropStalled(): void {
    if (this.budget.waiting === 0) return;
    const now = performance.now();
    for (const connection of this.#connections.values()) {
      if (connection.stalledFor(now) > NBD_STALL_MAX_MS) {
        connection.drop('does not take its replies while others wait for memory');
      }
    }
  }
}
