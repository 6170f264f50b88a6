// SPDX-License-Identifier: MIT
import { connect, type Socket } from 'node:net';

const REPLY_TIMEOUT_MS = 60_000;

export interface QmpEvent {
  readonly event: string;
  readonly data?: Readonly<Record<string, unknown>>;
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
}

export interface QmpError {
  readonly class: string;
  readonly desc: string;
}

export interface QmpReply {
  readonly return?: unknown;
  readonly error?: QmpError;
  readonly id?: unknown;
}

/** The answer was an error where a result was expected. */
export class QmpFailure extends Error {
  override readonly name = 'QmpFailure';
  constructor(
    readonly command: string,
    readonly error: QmpError,
  ) {
    super(`${command}: ${error.class}: ${error.desc}`);
  }
}

interface Waiter {
  readonly accepts: (message: Record<string, unknown>) => boolean;
  readonly resolve: (message: Record<string, unknown>) => void;
  readonly reject: (error: Error) => void;
}

/**
 * A monitor client for tests: shares no code with the daemon, shows each line as it came.
 * One command at a time; replies and events are matched in the order of arrival.
 */
export class QmpClient {
  /** Every line received, without its line end, greeting first. */
  readonly lines: string[] = [];
  /** Every event received so far, whether or not somebody waited for it. */
  readonly events: QmpEvent[] = [];
  readonly #socket: Socket;
  readonly #unclaimed: Record<string, unknown>[] = [];
  readonly #waiters: Waiter[] = [];
  #partial = '';
  #ended: Error | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#receive(text));
    socket.on('error', (error) => this.#end(error));
    socket.on('close', () => this.#end(new Error('the monitor closed the connection')));
  }

  /** Connects to a UNIX socket or a TCP port, and negotiates capabilities. */
  static async connect(address: string | { host: string; port: number }): Promise<QmpClient> {
    const client = await QmpClient.connectRaw(address);
    await client.execute('qmp_capabilities');
    return client;
  }

  /** Connects and waits for the greeting only. */
  static async connectRaw(address: string | { host: string; port: number }): Promise<QmpClient> {
    const socket = typeof address === 'string' ? connect(address) : connect(address);
    const client = new QmpClient(socket);
    await client.#next((message) => 'QMP' in message, 'the greeting');
    return client;
  }

  /** Sends a command and returns its result. @throws QmpFailure for an error reply */
  async execute<T = unknown>(command: string, args?: object): Promise<T> {
    const reply = await this.reply(command, args);
    if (reply.error !== undefined) throw new QmpFailure(command, reply.error);
    return reply.return as T;
  }

  /** Sends a command that has to fail. @returns class and text of the error */
  async refused(command: string, args?: object): Promise<QmpError> {
    const reply = await this.reply(command, args);
    if (reply.error === undefined) {
      throw new Error(`${command} was not refused but returned ${JSON.stringify(reply.return)}`);
    }
    return reply.error;
  }

  /** Sends a command and returns the reply as it is. */
  async reply(command: string, args?: object): Promise<QmpReply> {
    this.send(JSON.stringify({ execute: command, ...(args ? { arguments: args } : {}) }));
    return this.nextReply(command);
  }

  /** Writes any bytes, well-formed or not. */
  send(text: string | Uint8Array): void {
    this.#socket.write(text);
  }

  /** The next reply that nobody took yet. */
  nextReply(what = 'a command'): Promise<QmpReply> {
    return this.#next((message) => 'return' in message || 'error' in message, `reply to ${what}`);
  }

  /**
   * The first event of a name that nobody took yet, come or to come.
   * @param matches narrows it, for example to one job
   */
  async event(name: string, matches: (data: Record<string, unknown>) => boolean = () => true) {
    const accepts = (message: Record<string, unknown>): boolean =>
      message.event === name && matches((message.data ?? {}) as Record<string, unknown>);
    return (await this.#next(accepts, `event ${name}`)) as unknown as QmpEvent;
  }

  /** Resolves when the other end has closed the connection. */
  async closedByPeer(): Promise<void> {
    if (this.#ended !== undefined) return;
    await new Promise<void>((resolve) => this.#socket.once('close', () => resolve()));
  }

  close(): void {
    this.#socket.destroy();
  }

  #next(accepts: Waiter['accepts'], what: string): Promise<Record<string, unknown>> {
    const at = this.#unclaimed.findIndex(accepts);
    const [found] = at < 0 ? [] : this.#unclaimed.splice(at, 1);
    if (found !== undefined) return Promise.resolve(found);
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        const seen = this.lines.slice(-10).join('\n');
        reject(new Error(`no ${what} in ${REPLY_TIMEOUT_MS} ms; the last lines were\n${seen}`));
      }, REPLY_TIMEOUT_MS);
      const waiter: Waiter = {
        accepts,
        resolve: (message) => {
          clearTimeout(timer);
          resolve(message);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(new Error(`while waiting for ${what}: ${error.message}`, { cause: error }));
        },
      };
      this.#waiters.push(waiter);
    });
  }

  #receive(text: string): void {
    const lines = (this.#partial + text).split(/\r?\n/);
    this.#partial = lines.pop() ?? '';
    for (const line of lines) {
      if (line === '') continue;
      this.lines.push(line);
      this.#dispatch(JSON.parse(line) as Record<string, unknown>);
    }
  }

  #dispatch(message: Record<string, unknown>): void {
    if ('event' in message) this.events.push(message as unknown as QmpEvent);
    const at = this.#waiters.findIndex((waiter) => waiter.accepts(message));
    const [waiter] = at < 0 ? [] : this.#waiters.splice(at, 1);
    if (waiter === undefined) this.#unclaimed.push(message);
    else waiter.resolve(message);
  }

  #end(error: Error): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    for (const waiter of this.#waiters.splice(0)) waiter.reject(error);
  }
}
