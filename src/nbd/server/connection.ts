// SPDX-License-Identifier: MIT
/** One client through its phases: option phase, transmission, closing. Owns all that it holds. */
import { startTimeout, wallClockMs } from '../../base/clock.js';
import { NBD_TURN_BYTES } from '../../base/limits.js';
import { type Logger, subjectLog } from '../../base/log.js';
import type { BusyPoll } from './busy-poll.js';
import { TrafficCounters } from './counters.js';
import type { ExportClient, ExportRegistry, NbdExport } from './export.js';
import { Inbox } from './inbox.js';
import type { MemoryBudget } from './memory-budget.js';
import { Negotiation } from './negotiate.js';
import { Outbox } from './outbox.js';
import { Transmission } from './requests.js';
import type { Session } from './session.js';
import type { QueuedBytes, Transport, TransportKind, TransportOwner } from './transport.js';

/** `closing`: replies go out, nothing is read any more. `closed`: the transport is gone. */
export type ConnectionPhase = 'options' | 'transmission' | 'closing' | 'closed';

/** A connection as pages, logs and metrics show it. */
export interface ConnectionInfo {
  readonly id: number;
  readonly peer: string;
  readonly transport: TransportKind;
  readonly phase: ConnectionPhase;
  /** Milliseconds since 1970. */
  readonly connectedSince: number;
  /** Of the export that the client chose. */
  readonly exportId: string | undefined;
  /** Contexts that BLOCK_STATUS answers. */
  readonly contexts: readonly string[];
  readonly requestsInFlight: number;
  readonly unsentBytes: number;
  readonly counters: Readonly<TrafficCounters>;
}

export interface ConnectionOptions {
  readonly id: number;
  readonly transport: Transport;
  readonly exports: ExportRegistry;
  readonly budget: MemoryBudget;
  readonly poll: BusyPoll;
  /** For the option phase; 0: unlimited. */
  readonly handshakeMaxMs: number;
  /** Tells when the client has taken its last replies. */
  readonly queuedBytes?: QueuedBytes | undefined;
  /** The connection is over and nothing of it is in flight. */
  onClosed(connection: Connection): void;
}

export class Connection implements TransportOwner, ExportClient {
  readonly id: number;
  readonly counters = new TrafficCounters();
  readonly budget: MemoryBudget;
  readonly exports: ExportRegistry;
  readonly inbox: Inbox;
  readonly outbox: Outbox;
  log: Logger;
  readonly #transport: Transport;
  readonly #options: ConnectionOptions;
  readonly #since = wallClockMs();
  readonly #negotiation: Negotiation;
  #transmission: Transmission | undefined;
  #session: Session | undefined;
  #phase: ConnectionPhase = 'options';
  #stopHandshakeTimer: (() => void) | undefined;
  #graceTimer: NodeJS.Timeout | undefined;
  /** The transport was told to wait for `resume`. */
  #paused = false;
  #soon = false;
  #turnBytes = 0;
  #inputEnded = false;
  #blockedSince: number | undefined;
  #finishing = false;
  #over = false;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.id = options.id;
    this.budget = options.budget;
    this.exports = options.exports;
    this.#transport = options.transport;
    this.log = subjectLog({ connection: options.id });
    this.inbox = new Inbox(options.budget);
    this.outbox = new Outbox(options.budget, options.transport);
    this.#negotiation = new Negotiation(this);
  }

  /** Greets the client and begins to read. */
  start(): void {
    const { transport, handshakeMaxMs } = this.#options;
    this.log.info(
      { event: 'nbd.connect', peer: transport.peer, transport: transport.kind },
      'client connected',
    );
    if (handshakeMaxMs > 0) {
      const late = (): void => this.drop(`option phase took longer than ${handshakeMaxMs} ms`);
      this.#stopHandshakeTimer = startTimeout(handshakeMaxMs, late, { ref: false });
    }
    transport.start(this);
    this.#flush();
  }

  get info(): ConnectionInfo {
    return {
      id: this.id,
      peer: this.#transport.peer,
      transport: this.#transport.kind,
      phase: this.#phase,
      connectedSince: this.#since,
      exportId: this.#session?.export.id,
      contexts: this.#session?.contexts.map(({ name }) => name) ?? [],
      requestsInFlight: this.#transmission?.inFlight ?? 0,
      unsentBytes: this.outbox.unsentBytes,
      counters: this.counters,
    };
  }

  /** Milliseconds that the client has taken nothing of what waits for it; 0 when nothing waits. */
  stalledFor(now: number): number {
    return this.#blockedSince === undefined ? 0 : now - this.#blockedSince;
  }

  target(): Buffer {
    return this.#transmission?.target() ?? this.inbox.target();
  }

  received(length: number): boolean {
    const full = this.#transmission?.received(length) ?? this.inbox.received(length);
    this.#turnBytes = full ? this.#turnBytes + length : 0;
    let open = this.#advance();
    this.#flush();
    if (open && this.#turnBytes > NBD_TURN_BYTES) {
      this.#turnBytes = 0;
      this.yieldTurn();
      open = false;
    }
    if (!open) this.#hold();
    else if (this.#transmission?.single === true) this.#options.poll.touch();
    return open;
  }

  sent(): void {
    this.#blockedSince = undefined;
    this.outbox.sent();
    if (this.outbox.blocked) this.#blockedSince = performance.now();
    if (this.#paused || this.#inputEnded) this.wake();
  }

  ended(): void {
    this.#inputEnded = true;
    this.wake();
  }

  closed(error?: Error): void {
    if (this.#phase === 'closed') return;
    this.#phase = 'closed';
    this.#stopHandshakeTimer?.();
    clearTimeout(this.#graceTimer);
    this.#transmission?.close();
    this.outbox.close();
    this.inbox.close();
    this.log.info({ event: 'nbd.disconnect', error }, 'client disconnected');
    this.#endIfIdle();
  }

  agreed(session: Session): void {
    this.#stopHandshakeTimer?.();
    this.#session = session;
    this.#phase = 'transmission';
    this.log = subjectLog({ connection: this.id, export: session.export.id });
    session.export.enter(this);
    this.#transmission = new Transmission(session, this);
    const { name } = session.export;
    const contexts = session.contexts.map((context) => context.name);
    this.log.info({ event: 'nbd.export', name, form: session.form, contexts }, 'export chosen');
  }

  finish(): void {
    if (this.#phase === 'closing' || this.#phase === 'closed') return;
    this.#phase = 'closing';
    this.#stopHandshakeTimer?.();
    this.wake();
  }

  drop(reason: string): void {
    if (this.#phase === 'closed') return;
    this.#phase = 'closing';
    this.log.warn({ event: 'nbd.drop', peer: this.#transport.peer }, reason);
    this.#transmission?.end();
    this.#transport.destroy();
  }

  /** Answers what is in flight, then closes; at once after `graceMs`. */
  shutdown(graceMs: number): void {
    if (this.#phase === 'options') {
      this.drop('the server stops');
      return;
    }
    this.#transmission?.end();
    this.#graceTimer = setTimeout(() => this.#transport.destroy(), graceMs);
    this.wake();
  }

  /** Goes on in this turn of the event loop, once for all that ask. */
  wake(): void {
    if (this.#soon) return;
    this.#soon = true;
    setImmediate(this.#pump);
  }

  yieldTurn(): void {
    this.wake();
  }

  readonly #pump = (): void => {
    this.#soon = false;
    if (this.#phase === 'closed') {
      this.outbox.flush();
      this.#endIfIdle();
      return;
    }
    const open = this.#advance();
    this.#flush();
    if (!open) {
      this.#hold();
      return;
    }
    if (this.#paused) {
      this.#paused = false;
      this.#transport.resume();
    }
    if (this.#inputEnded) this.#finishIfIdle();
  };

  /** Works on what has arrived. Returns false when reading has to wait. */
  #advance(): boolean {
    if (this.#phase === 'options') {
      const open = this.#negotiation.process();
      if (!open || !this.#negotiation.over) return open;
    }
    if (this.#phase === 'transmission') return this.#transmission?.process() ?? false;
    // The client's end is waited for; what it still sends is nobody's.
    this.inbox.consume(this.inbox.unread);
    return this.#finishing;
  }

  /** Reading is stopped, or stays so. Sees to it that it goes on, or that the connection ends. */
  #hold(): void {
    this.#paused = true;
    if (this.#phase === 'closing' || this.#transmission?.ended === true) {
      this.#finishIfIdle();
      return;
    }
    const waits = this.#transmission?.held ?? this.#negotiation.held;
    // What held it up went out at once; nobody else would wake it.
    if (!waits) this.wake();
  }

  #flush(): void {
    this.outbox.flush();
    if (this.outbox.blocked) this.#blockedSince ??= performance.now();
  }

  /** Closes when all requests are answered and all replies are with the transport. */
  #finishIfIdle(): void {
    if (this.#phase === 'closed' || this.#finishing) return;
    if ((this.#transmission?.inFlight ?? 0) > 0 || this.outbox.unsentBytes > 0) return;
    this.#finishing = true;
    this.#phase = 'closing';
    this.#transmission?.end();
    this.#transport.finish(this.#options.queuedBytes);
  }

  #endIfIdle(): void {
    if (this.#over || (this.#transmission?.inFlight ?? 0) > 0) return;
    this.#over = true;
    this.#session?.export.leave(this);
    this.#options.onClosed(this);
  }

  /** The export that the client uses. */
  get export(): NbdExport | undefined {
    return this.#session?.export;
  }
}
