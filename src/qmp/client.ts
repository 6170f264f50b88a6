// SPDX-License-Identifier: MIT
/** A QMP client: for the diskferry command, and for programs that drive a daemon. */
import net from 'node:net';
import type { JsonObject, JsonValue } from '../../protocol/qapi/types.js';
import { BlockError, toError } from '../base/errors.js';
import { QMP_REPLY_MAX, QMP_REPLY_TOKENS_MAX } from '../base/limits.js';
import { JsonStream } from './json-stream.js';
import { type WritableJson, writeJson } from './json-writer.js';

/** Where a monitor listens: a UNIX socket's path, or a TCP host and port. */
export type QmpAddress =
  | { readonly path: string }
  | { readonly host: string; readonly port: number };

/** Time for the greeting and the negotiation, milliseconds. */
const CONNECT_TIMEOUT_MS = 10_000;

export interface QmpEvent {
  readonly name: string;
  readonly data: JsonObject;
}

/** The daemon answered with an error. `errorClass` is QMP's: 'GenericError', 'DeviceNotFound', … */
export class QmpCommandError extends Error {
  override readonly name = 'QmpCommandError';
  constructor(
    readonly command: string,
    readonly errorClass: string,
    description: string,
  ) {
    super(description);
  }
}

interface Pending {
  readonly command: string;
  readonly resolve: (value: JsonValue) => void;
  readonly reject: (error: Error) => void;
}

/**
 * One monitor connection. Commands may overlap in time; answers are matched by id.
 *
 *   const qmp = await QmpClient.connect({ path: '/run/diskferryd.sock' });
 *   const nodes = await qmp.execute('query-named-block-nodes');
 *   qmp.close();
 */
export class QmpClient {
  readonly #socket: net.Socket;
  readonly #stream = new JsonStream({ message: QMP_REPLY_MAX, tokens: QMP_REPLY_TOKENS_MAX });
  readonly #pending = new Map<JsonValue, Pending>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  #nextId = 1;
  #greeted: ((error?: Error) => void) | undefined;
  #ended: Error | undefined;

  private constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on('data', (chunk) => this.#receive(chunk));
    socket.on('error', (error) => this.#end(error));
    socket.on('close', () => this.#end(undefined));
  }

  /**
   * Connects and leaves negotiation mode.
   * @param signal gives it up
   * @throws BlockError DF_DISCONNECTED, whose cause says why (DF_TIMEOUT, DF_PROTOCOL,
   *   DF_CANCELLED, the system's error); QmpCommandError when the daemon refuses the negotiation
   */
  static async connect(address: QmpAddress, signal?: AbortSignal): Promise<QmpClient> {
    signal?.throwIfAborted();
    const client = new QmpClient(net.connect(address));
    const giveUp = (): void => {
      client.#end(new BlockError('DF_CANCELLED', 'the connection was given up'));
    };
    signal?.addEventListener('abort', giveUp);
    const timer = setTimeout(() => {
      client.#end(new BlockError('DF_TIMEOUT', 'no QMP greeting came'));
    }, CONNECT_TIMEOUT_MS);
    try {
      await new Promise<void>((resolve, reject) => {
        client.#greeted = (error) => (error === undefined ? resolve() : reject(error));
      });
      await client.execute('qmp_capabilities');
    } catch (error) {
      client.close();
      throw error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', giveUp);
    }
    return client;
  }

  /**
   * Runs a command and gives what it returns.
   * @throws QmpCommandError the daemon's error; BlockError DF_DISCONNECTED when the connection ends,
   *   with what ended it as its cause
   */
  execute(command: string, args?: { readonly [name: string]: WritableJson }): Promise<JsonValue> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const id = this.#nextId++;
    const message = { execute: command, ...(args !== undefined ? { arguments: args } : {}), id };
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { command, resolve, reject });
      this.#socket.write(`${writeJson(message)}\n`);
    });
  }

  /** Calls the listener for each event from now on; returns what ends that. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  close(): void {
    this.#socket.end();
    this.#end(undefined);
  }

  #receive(chunk: Buffer): void {
    this.#stream.feed(chunk);
    for (let message = this.#stream.next(); message; message = this.#stream.next()) {
      if ('error' in message || !isObject(message.value) || !this.#take(message.value)) {
        this.#end(new BlockError('DF_PROTOCOL', 'the monitor sent what is no QMP'));
        return;
      }
    }
  }

  /** @returns false for what is no message of QMP's */
  #take(message: JsonObject): boolean {
    if ('QMP' in message) {
      this.#greeted?.();
      return true;
    }
    const { event, data = {}, error, id = null } = message;
    if (typeof event === 'string') {
      if (!isObject(data)) return false;
      for (const listener of this.#listeners) listener({ name: event, data });
      return true;
    }
    const pending = this.#pending.get(id);
    if (pending === undefined) return true;
    if (error === undefined) pending.resolve(message.return ?? null);
    else {
      if (!isObject(error)) return false;
      const { class: errorClass, desc } = error;
      if (typeof errorClass !== 'string' || typeof desc !== 'string') return false;
      pending.reject(new QmpCommandError(pending.command, errorClass, desc));
    }
    this.#pending.delete(id);
    return true;
  }

  #end(cause: unknown): void {
    if (this.#ended !== undefined) return;
    this.#ended = new BlockError(
      'DF_DISCONNECTED',
      'the connection to the monitor ended',
      {},
      cause === undefined ? undefined : { cause: toError(cause) },
    );
    this.#socket.destroy();
    this.#greeted?.(this.#ended);
    for (const pending of this.#pending.values()) pending.reject(this.#ended);
    this.#pending.clear();
  }
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
