// SPDX-License-Identifier: MIT
/** The transmission phase of one connection: decode in place, check, execute, reply. */
import {
  commandName,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
} from '../../../protocol/nbd/constants.js';
import {
  decodeExtendedRequest,
  decodeRequest,
  emptyRequestHead,
  NBD_BLOCK_STATUS_PAYLOAD,
  NBD_EXTENDED_REQUEST,
  NBD_REQUEST,
  type ReceivedRequest,
} from '../../../protocol/nbd/transmission.js';
import { BlockError, toError } from '../../base/errors.js';
import {
  MIB,
  NBD_BYTES_IN_FLIGHT_MAX,
  NBD_DIRECT_WRITE_MIN,
  NBD_PAYLOAD_MAX,
  NBD_REPLY_HELD_MS,
  NBD_REQUESTS_IN_FLIGHT_MAX,
  NBD_TURN_REQUESTS,
  NBD_UNSENT_BYTES_MAX,
} from '../../base/limits.js';
import type { Logger } from '../../base/log.js';
import { REQ_FUA } from '../../block/block-driver.js';
import type { ByteCounter, RequestCounter, TrafficCounters } from './counters.js';
import type { ExportBackend } from './export.js';
import type { Inbox } from './inbox.js';
import type { MemoryBudget } from './memory-budget.js';
import type { Outbox } from './outbox.js';
import { isFua, PlainCommands } from './plain-commands.js';
import { ReadRequests } from './read-request.js';
import { failureOf, Replies } from './replies.js';
import { type Refusal, refuse } from './request-checks.js';
import { REPLY_EXTENDED, type Session } from './session.js';
import { StatusRequests } from './status-request.js';
import { WriteIntake } from './write-intake.js';

/** A write of at least this length makes the next receive a short one, bytes. */
const SHORT_RECEIVE_AFTER = 128 * 1024;
/** Bytes of one connection in flight and unsent while memory is short. */
const HELD_SCARCE_MAX = 1 * MIB;

/** What the transmission phase needs of its connection. */
export interface TransmissionHost {
  readonly budget: MemoryBudget;
  readonly inbox: Inbox;
  readonly outbox: Outbox;
  readonly counters: TrafficCounters;
  readonly log: Logger;
  /** Something that held requests up has ended, or replies are there to be sent. */
  wake(): void;
  /** `process` left requests for a later turn of the event loop. */
  yieldTurn(): void;
  /** The client broke the protocol: ends the connection. */
  drop(reason: string): void;
}

export class Transmission {
  readonly backend: ExportBackend;
  readonly budget: MemoryBudget;
  readonly outbox: Outbox;
  readonly replies: Replies;
  readonly session: Session;
  readonly #host: TransmissionHost;
  readonly #inbox: Inbox;
  readonly #reads: ReadRequests;
  readonly #commands: PlainCommands;
  readonly #statuses: StatusRequests;
  readonly #headSize: number;
  readonly #head = emptyRequestHead();
  #intake: WriteIntake | undefined;
  /** The last target was a piece of the intake. */
  #intoIntake = false;
  /** Payload bytes of a refused request that are still to come. */
  #skip = 0;
  #skipped: { head: ReceivedRequest; refusal: Refusal } | undefined;
  #inFlight = 0;
  #inFlightBytes = 0;
  #ended = false;
  #turn = 0;
  /** When replies were last handed to the transport, or the turn began; as performance.now() has it. */
  #repliedAt = 0;

  constructor(session: Session, host: TransmissionHost) {
    this.session = session;
    this.#host = host;
    this.backend = session.export.backend;
    this.budget = host.budget;
    this.outbox = host.outbox;
    this.#inbox = host.inbox;
    this.replies = new Replies(host.outbox, session.form);
    this.#reads = new ReadRequests(this);
    this.#commands = new PlainCommands(this);
    this.#statuses = new StatusRequests(this);
    this.#headSize = session.form === REPLY_EXTENDED ? NBD_EXTENDED_REQUEST.size : NBD_REQUEST.size;
  }

  /** Requests that wait for the node. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** The client said that it is done, or broke the rules: nothing more is read. */
  get ended(): boolean {
    return this.#ended;
  }

  /** Where the next bytes go. */
  target(): Buffer {
    this.#intoIntake = this.#intake !== undefined;
    return this.#intake?.target() ?? this.#inbox.target();
  }

  /** `length` bytes came into the target. Returns true when they filled it. */
  received(length: number): boolean {
    const intake = this.#intake;
    let full = true;
    // A write may have begun after the target was handed out; its bytes then lie in the inbox.
    if (this.#intoIntake) full = intake?.received(length) ?? true;
    else full = this.#inbox.received(length);
    if (intake === undefined) return full;
    if (!this.#intoIntake) intake.feed(this.#inbox);
    if (intake.complete) this.#intake = undefined;
    return full;
  }

  /** True when the last `process` found one request, and nothing waits for the node. */
  get single(): boolean {
    return this.#turn === 1 && this.#inFlight === 0;
  }

  /** True while limits hold requests up. */
  get held(): boolean {
    return this.#held();
  }

  /**
   * Executes what has arrived, as far as limits allow.
   * @returns false when something holds requests up; `wake` or `yieldTurn` says when to go on
   */
  process(): boolean {
    this.#repliedAt = performance.now();
    for (this.#turn = 0; ; this.#turn++) {
      if (this.#ended || this.#held()) return false;
      if (this.#intake !== undefined) return true;
      if (this.#skip > 0 && !this.#skipPayload()) return true;
      if (this.#inbox.unread < this.#headSize) {
        this.#inbox.need = this.#headSize;
        return true;
      }
      if (this.#turn >= NBD_TURN_REQUESTS) {
        this.#host.yieldTurn();
        return false;
      }
      if (!this.#next()) return !this.#ended;
      this.#replyEarly();
    }
  }

  /** Replies go out while those behind them are worked on, so that the client has its next requests ready. */
  #replyEarly(): void {
    const now = performance.now();
    if (now - this.#repliedAt < NBD_REPLY_HELD_MS) return;
    this.#repliedAt = now;
    this.outbox.flush();
  }

  /** Nothing more will be received or sent; what is in flight ends by itself. */
  close(): void {
    this.#ended = true;
    this.#intake?.close();
    this.#intake = undefined;
  }

  /** Stops taking requests; those in flight are answered. */
  end(): void {
    this.#ended = true;
  }

  #held(): boolean {
    const { unsentBytes } = this.outbox;
    return (
      this.#inFlight >= NBD_REQUESTS_IN_FLIGHT_MAX ||
      this.#inFlightBytes > NBD_BYTES_IN_FLIGHT_MAX ||
      unsentBytes > NBD_UNSENT_BYTES_MAX ||
      (unsentBytes + this.#inFlightBytes > HELD_SCARCE_MAX && this.budget.scarce)
    );
  }

  /** One request. Returns false when more of it has to arrive first. */
  #next(): boolean {
    const inbox = this.#inbox;
    const head = this.#head;
    const decode = this.session.form === REPLY_EXTENDED ? decodeExtendedRequest : decodeRequest;
    if (!decode(inbox.buffer.view, inbox.start, head)) {
      this.#host.drop('wrong magic in a request');
      return false;
    }
    if (head.type === NBD_CMD_WRITE) return this.#write(head);
    const payload = (head.flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0;
    if (payload && this.session.form === REPLY_EXTENDED) return this.#withPayload(head);
    inbox.consume(this.#headSize);
    if (head.type === NBD_CMD_DISC) {
      this.#ended = true;
      return false;
    }
    const refusal = refuse(head, this.session);
    if (refusal !== undefined) this.refuse(head, refusal);
    else this.#execute(head);
    return true;
  }

  #execute(head: ReceivedRequest): void {
    switch (head.type) {
      case NBD_CMD_READ:
        this.count('reads');
        this.countBytes('readBytes', head.length);
        this.#reads.execute(head);
        return;
      case NBD_CMD_BLOCK_STATUS:
        this.#statuses.execute(head);
        return;
      default:
        this.#commands.execute(head);
    }
  }

  #write(head: ReceivedRequest): boolean {
    const inbox = this.#inbox;
    const { length } = head;
    if (length > NBD_PAYLOAD_MAX) {
      this.#host.drop(`NBD_CMD_WRITE of ${length} bytes is above the limit ${NBD_PAYLOAD_MAX}`);
      return false;
    }
    const refusal = refuse(head, this.session);
    if (refusal !== undefined) return this.#refuseWithPayload(head, refusal);
    const whole = this.#headSize + length;
    if (inbox.unread >= whole) {
      inbox.consume(this.#headSize);
      this.#writeReceived(head);
      inbox.consume(length);
      return true;
    }
    if (length < NBD_DIRECT_WRITE_MIN) {
      inbox.need = whole;
      return false;
    }
    inbox.consume(this.#headSize);
    inbox.short = length >= SHORT_RECEIVE_AFTER;
    const intake = new WriteIntake(this, { ...head }, { fua: isFua(head, this.session) });
    intake.feed(inbox);
    this.#intake = intake;
    return false;
  }

  /** A write whose payload lies complete at the start of the inbox. */
  #writeReceived(head: ReceivedRequest): void {
    const { buffer, start } = this.#inbox;
    const payload = buffer.bytes.subarray(start, start + head.length);
    this.#inbox.short = false;
    if (head.length === 0) {
      this.writeEnded(head, undefined);
      return;
    }
    let pending: void | Promise<void>;
    try {
      pending = this.backend.write(head.offset, payload, isFua(head, this.session) ? REQ_FUA : 0);
    } catch (reason) {
      this.writeEnded(head, { reason });
      return;
    }
    if (pending === undefined) {
      this.writeEnded(head, undefined);
      return;
    }
    const kept = { ...head };
    buffer.retain();
    const ended = (failure: { reason: unknown } | undefined) => {
      buffer.release();
      this.writeEnded(kept, failure);
    };
    this.pend(
      pending,
      head.length,
      () => ended(undefined),
      (reason) => ended({ reason }),
    );
  }

  writeEnded(head: ReceivedRequest, failure: { reason: unknown } | undefined): void {
    this.count('writes');
    this.countBytes('writtenBytes', head.length);
    if (failure === undefined) this.replies.ok(head);
    else this.fail(head, failure.reason);
  }

  /** Commands with a payload besides WRITE: BLOCK_STATUS of chosen contexts, and mistakes. */
  #withPayload(head: ReceivedRequest): boolean {
    const { contexts } = this.session;
    const longest = NBD_BLOCK_STATUS_PAYLOAD.size + 4 * contexts.length;
    const { length } = head;
    if (length > NBD_PAYLOAD_MAX) {
      this.#host.drop(`${commandName(head.type)} with a payload of ${length} bytes`);
      return false;
    }
    const fits = length >= NBD_BLOCK_STATUS_PAYLOAD.size && length <= longest && length % 4 === 0;
    if (head.type !== NBD_CMD_BLOCK_STATUS || !fits) {
      const message = `${commandName(head.type)} does not take a payload of ${length} bytes`;
      return this.#refuseWithPayload(head, { error: NBD_EINVAL, message });
    }
    const inbox = this.#inbox;
    if (inbox.unread < this.#headSize + length) {
      inbox.need = this.#headSize + length;
      return false;
    }
    inbox.consume(this.#headSize);
    const { view } = inbox.buffer;
    const at = inbox.start;
    inbox.consume(length);
    this.#statuses.executeChosen(head, view, at);
    return true;
  }

  #refuseWithPayload(head: ReceivedRequest, refusal: Refusal): boolean {
    this.#inbox.consume(this.#headSize);
    this.#skip = head.length;
    this.#skipped = { head: { ...head }, refusal };
    return this.#skipPayload();
  }

  /** Returns false when more has to come. */
  #skipPayload(): boolean {
    const length = Math.min(this.#skip, this.#inbox.unread);
    this.#inbox.consume(length);
    this.#skip -= length;
    if (this.#skip > 0) {
      this.#inbox.need = 1;
      return false;
    }
    const skipped = this.#skipped;
    this.#skipped = undefined;
    if (skipped !== undefined) this.refuse(skipped.head, skipped.refusal);
    return true;
  }

  refuse(head: ReceivedRequest, refusal: Refusal): void {
    this.count('errors');
    const { log } = this.#host;
    if (log.isLevelEnabled('debug')) {
      log.debug({ event: 'nbd.refuse', error: refusal.error }, refusal.message);
    }
    this.replies.error(head, refusal);
  }

  pend(pending: Promise<void>, cost: number, done: () => void, failed: (e: unknown) => void): void {
    this.#inFlight++;
    this.#inFlightBytes += cost;
    pending.then(
      () => this.#settled(cost, done),
      (reason: unknown) => this.#settled(cost, () => failed(reason)),
    );
  }

  #settled(cost: number, reply: () => void): void {
    try {
      reply();
    } catch (error) {
      this.#host.log.error({ event: 'nbd.bug', error }, 'a reply could not be built');
      this.#host.drop('internal error');
    }
    this.#inFlight--;
    this.#inFlightBytes -= cost;
    this.#host.wake();
  }

  drop(reason: string): void {
    this.#host.drop(reason);
  }

  fail(head: ReceivedRequest, reason: unknown, offset?: number): void {
    this.count('errors');
    const fastZero =
      head.type === NBD_CMD_WRITE_ZEROES && (head.flags & NBD_CMD_FLAG_FAST_ZERO) !== 0;
    const failure = failureOf(reason, { fastZero });
    const expected = reason instanceof BlockError;
    const fields = { event: 'nbd.fail', command: commandName(head.type), error: toError(reason) };
    const { log } = this.#host;
    if (!expected) log.error(fields, 'a request failed unexpectedly');
    else if (log.isLevelEnabled('debug')) log.debug(fields, 'a request failed');
    this.replies.error(head, offset === undefined ? failure : { ...failure, offset });
  }

  count(what: RequestCounter): void {
    this.#host.counters[what]++;
    this.session.export.counters[what]++;
  }

  countBytes(what: ByteCounter, length: number): void {
    this.#host.counters[what] += length;
    this.session.export.counters[what] += length;
  }
}
