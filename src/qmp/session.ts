// SPDX-License-Identifier: MIT
/**
 * One client of a monitor, from greeting to end: parses, queues, runs and answers its commands in
 * order, and passes events on. What it keeps is bounded: it stops reading when commands queue up or when
 * the client does not take its replies, and ends a session that lets events pile up.
 */
import type { JsonValue } from '../../protocol/qapi/types.js';
import { BlockError } from '../base/errors.js';
import {
  QMP_HALF_CLOSED_MS,
  QMP_OOB_RUNNING_MAX,
  QMP_QUEUE_MAX,
  QMP_TURN_BYTES,
  QMP_UNSENT_MAX,
  QMP_UNSENT_PAUSE,
} from '../base/limits.js';
import type { Logger } from '../base/log.js';
import type { Channel } from './channel.js';
import { dispatch, errorReply, isOutOfBand, type Reply } from './dispatch.js';
import type { QmpEvent } from './events.js';
import { type JsonMessage, JsonStream } from './json-stream.js';
import { type WritableJson, writeJson } from './json-writer.js';
import type { CommandRegistry, CommandSession } from './registry.js';

export interface SessionOptions {
  readonly registry: CommandRegistry;
  readonly greeting: Reply;
  readonly pretty: boolean;
  readonly logger: Logger;
  /** Gets a copy of what the client is sent. */
  readonly logOutput: (text: string) => void;
  readonly ended: () => void;
}

/** Capabilities that every session offers. */
export const CAPABILITIES: readonly string[] = ['oob'];

export class MonitorSession implements CommandSession {
  readonly offered = CAPABILITIES;
  readonly #channel: Channel;
  readonly #options: SessionOptions;
  readonly #stream = new JsonStream();
  readonly #queue: JsonMessage[] = [];
  #enabled: readonly string[] | undefined;
  #isRunning = false;
  #oobRunning = 0;
  #isPaused = false;
  #isStopped = false;
  #isOver = false;
  #whenIdle: (() => void)[] = [];
  #inputEnded = false;
  /** What may still be parsed before others have their turn, bytes. */
  #turnBytes = QMP_TURN_BYTES;
  #isTurnComing = false;
  #halfClosed: NodeJS.Timeout | undefined;

  constructor(channel: Channel, options: SessionOptions) {
    this.#channel = channel;
    this.#options = options;
  }

  /** Greets, and starts to read. */
  start(): void {
    this.#send(this.#options.greeting);
    this.#channel.start({
      data: (bytes) => {
        this.#stream.feed(bytes);
        this.#pump();
      },
      ended: () => this.#endOfInput(),
      closed: () => this.#closed(),
      drained: () => this.#pump(),
    });
  }

  get isNegotiating(): boolean {
    return this.#enabled === undefined;
  }

  negotiate(enabled: readonly string[]): void {
    this.#enabled = enabled;
  }

  /** Passes an event on, once the client has ended the negotiation. */
  event(event: QmpEvent): void {
    if (this.isNegotiating || this.#isOver) return;
    if (this.#channel.unsentBytes > QMP_UNSENT_MAX) {
      const unsent = this.#channel.unsentBytes;
      this.#options.logger.warn(
        { event: 'qmp.client-stalled', unsent, peer: this.#channel.peer },
        'the client does not read its events; its connection is closed',
      );
      this.#channel.destroy();
      return;
    }
    this.#send(event as unknown as Reply);
  }

  /** Takes no more commands; what runs goes on, and is still answered. */
  stop(): void {
    this.#isStopped = true;
    this.#queue.length = 0;
    this.#channel.pause();
  }

  /** Stops; resolves when what runs has been answered, or the client has gone. */
  finish(): Promise<void> {
    this.stop();
    if (!this.#isBusy || this.#isOver) return Promise.resolve();
    return new Promise((resolve) => this.#whenIdle.push(resolve));
  }

  get #isBusy(): boolean {
    return this.#isRunning || this.#oobRunning > 0;
  }

  get #oobEnabled(): boolean {
    return this.#enabled?.includes('oob') === true;
  }

  #send(message: WritableJson): void {
    const { pretty } = this.#options;
    let text = writeJson(message, { pretty });
    if (pretty) text = text.replaceAll('\n', '\r\n');
    this.#channel.write(`${text}\r\n`);
    this.#options.logOutput(`${text}\r\n`);
  }

  /** True when no further command must be taken from the stream for now. */
  get #isFull(): boolean {
    if (this.#channel.unsentBytes > QMP_UNSENT_PAUSE) return true;
    if (this.#oobRunning >= QMP_OOB_RUNNING_MAX) return true;
    if (this.#oobEnabled) return this.#queue.length >= QMP_QUEUE_MAX;
    return this.#isRunning || this.#queue.length > 0;
  }

  /** Takes commands from the stream as far as that is allowed, and reads on, or not. */
  #pump(): void {
    if (this.#isOver || this.#isStopped) {
      if (!this.#isBusy) for (const resolve of this.#whenIdle.splice(0)) resolve();
      return;
    }
    this.#parse();
    this.#run();
    const shallPause = this.#isFull || this.#stream.hasUnparsed;
    if (shallPause !== this.#isPaused) {
      this.#isPaused = shallPause;
      if (shallPause) this.#channel.pause();
      else this.#channel.resume();
    }
    if (this.#inputEnded) this.#endWhenIdle();
  }

  /** Takes commands from the stream, of no more bytes than a turn has. */
  #parse(): void {
    const stream = this.#stream;
    while (!this.#isFull && stream.hasUnparsed && this.#turnBytes > 0) {
      const before = stream.parsedBytes;
      const message = stream.next(this.#turnBytes);
      this.#turnBytes -= stream.parsedBytes - before;
      if (message !== undefined) this.#take(message);
    }
    if (this.#turnBytes <= 0 && !this.#isFull) this.#nextTurn();
  }

  /** Goes on when everybody else, NBD clients above all, has had a turn. */
  #nextTurn(): void {
    if (this.#isTurnComing) return;
    this.#isTurnComing = true;
    setImmediate(() => {
      this.#isTurnComing = false;
      this.#turnBytes = QMP_TURN_BYTES;
      this.#pump();
    });
  }

  #take(message: JsonMessage): void {
    if ('value' in message && isOutOfBand(message.value)) {
      this.#oobRunning++;
      void this.#answer(message.value).finally(() => {
        this.#oobRunning--;
        this.#nextTurn();
      });
    } else this.#queue.push(message);
  }

  /** Starts the next queued command unless one runs. */
  #run(): void {
    const isBlocked = this.#channel.unsentBytes > QMP_UNSENT_PAUSE;
    if (this.#isRunning || isBlocked) return;
    const message = this.#queue.shift();
    if (message === undefined) return;
    this.#isRunning = true;
    void this.#execute(message).finally(() => {
      this.#isRunning = false;
      this.#nextTurn();
    });
  }

  async #execute(message: JsonMessage): Promise<void> {
    if ('value' in message) return this.#answer(message.value);
    const error = new BlockError('DF_INVALID', message.error);
    return this.#send(errorReply(error, this.#options.logger));
  }

  async #answer(request: JsonValue): Promise<void> {
    const { registry, logger } = this.#options;
    const oobEnabled = this.#oobEnabled;
    const reply = await dispatch(request, { registry, logger, session: this, oobEnabled });
    this.#send(reply);
  }

  #endOfInput(): void {
    this.#inputEnded = true;
    this.#halfClosed = setTimeout(() => this.#channel.destroy(), QMP_HALF_CLOSED_MS);
    this.#pump();
  }

  /** A client that has ended its side gets its answers, and then the end of ours. */
  #endWhenIdle(): void {
    const hasInput = this.#queue.length > 0 || this.#stream.hasUnparsed;
    const hasWork = this.#isBusy || hasInput || this.#isFull;
    if (!hasWork) void this.#channel.end(QMP_HALF_CLOSED_MS);
  }

  #closed(): void {
    clearTimeout(this.#halfClosed);
    this.#isOver = true;
    this.#queue.length = 0;
    for (const resolve of this.#whenIdle.splice(0)) resolve();
    this.#options.ended();
  }
}
