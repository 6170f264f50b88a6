// SPDX-License-Identifier: MIT
/** A client that sends and takes the bytes of NBD as a test says, right or wrong. */
import { connect, type Socket } from 'node:net';
import {
  type Address,
  CMD,
  contextsOf,
  ERROR_BIT,
  EXTENDED_REPLY_MAGIC,
  type ExportInfo,
  encodeExtendedRequest,
  encodeInfoRequest,
  encodeMetaQuery,
  encodeOption,
  encodeRequest,
  exportInfo,
  IHAVEOPT,
  NBDMAGIC,
  OPT,
  OPTION_REPLY_MAGIC,
  type OptionReply,
  REP,
  type Reply,
  type Request,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
  u32,
} from './nbd-wire.js';
import type { Scope } from './temp.js';

const RECEIVE_TIMEOUT_MS = 60_000;

export class RawNbd {
  readonly #socket: Socket;
  #received: Buffer[] = [];
  #receivedBytes = 0;
  #ended = false;
  #wake: (() => void) | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#received.push(chunk);
      this.#receivedBytes += chunk.length;
      this.#wake?.();
    });
    const ended = (): void => {
      this.#ended = true;
      this.#wake?.();
    };
    socket.on('error', ended).on('end', ended).on('close', ended);
  }

  /** Connects; the connection is closed with the scope. Nothing is read or sent yet. */
  static async connect(scope: Scope, address: Address): Promise<RawNbd> {
    const socket = typeof address === 'string' ? connect(address) : connect(address);
    scope.defer(() => socket.destroy());
    socket.setNoDelay(true);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve).once('error', reject);
    });
    return new RawNbd(socket);
  }

  /** Connects, takes the greeting and answers with client flags; 3 is fixed newstyle, no zeroes. */
  static async handshake(scope: Scope, address: Address, clientFlags = 3): Promise<RawNbd> {
    const client = await RawNbd.connect(scope, address);
    await client.greeting();
    client.send(u32(clientFlags));
    return client;
  }

  /** Whether the server closed the connection, as far as it is known by now. */
  get ended(): boolean {
    return this.#ended;
  }

  /** Bytes that came and were not taken yet. */
  get pendingBytes(): number {
    return this.#receivedBytes;
  }

  send(...parts: readonly Uint8Array[]): void {
    for (const part of parts) this.#socket.write(part);
  }

  /** Sends, and resolves when the operating system has taken all of it. */
  async sendAll(bytes: Uint8Array): Promise<void> {
    await new Promise<void>((resolve) => this.#socket.write(bytes, () => resolve()));
  }

  /** Stops taking bytes from the socket, so that the server's replies pile up. */
  stopReading(): void {
    this.#socket.pause();
  }

  /** From here on the server's end is not answered with ours, as if nobody looked at the socket. */
  ignoreEnd(): void {
    this.#socket.allowHalfOpen = true;
  }

  resumeReading(): void {
    this.#socket.resume();
  }

  /** Sends the end of the stream and keeps reading. */
  endSending(): void {
    this.#socket.end();
  }

  /** Drops the connection, whatever is in flight. */
  destroy(): void {
    this.#socket.destroy();
  }

  /** Takes exactly so many bytes. @throws Error when the server closes before, or says nothing */
  async read(length: number): Promise<Buffer> {
    await this.#until(() => this.#receivedBytes >= length || this.#ended, `${length} bytes`);
    if (this.#receivedBytes < length) {
      throw new Error(`the server closed after ${this.#receivedBytes} of ${length} bytes`);
    }
    const all = this.#received.length === 1 ? this.#received[0] : Buffer.concat(this.#received);
    const bytes = all ?? Buffer.alloc(0);
    const rest = bytes.subarray(length);
    this.#received = rest.length > 0 ? [rest] : [];
    this.#receivedBytes = rest.length;
    return bytes.subarray(0, length);
  }

  /** Waits for the server to close. @returns the bytes that came before that and were not taken */
  async readToEnd(): Promise<Buffer> {
    await this.#until(() => this.#ended, 'the end of the connection');
    return this.read(this.#receivedBytes);
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    const deadline = performance.now() + RECEIVE_TIMEOUT_MS;
    while (!condition()) {
      const left = deadline - performance.now();
      if (left <= 0) throw new Error(`waited ${RECEIVE_TIMEOUT_MS} ms in vain for ${what}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = undefined;
    }
  }

  /** Takes the server's greeting. @returns the handshake flags */
  async greeting(): Promise<number> {
    const bytes = await this.read(18);
    const [magic, style] = [bytes.readBigUInt64BE(0), bytes.readBigUInt64BE(8)];
    if (magic !== NBDMAGIC || style !== IHAVEOPT) {
      throw new Error(`not a newstyle greeting: ${bytes.toString('hex')}`);
    }
    return bytes.readUInt16BE(16);
  }

  /** Takes one reply to an option. */
  async optionReply(): Promise<OptionReply> {
    const header = await this.read(20);
    if (header.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) {
      throw new Error(`not an option reply: ${header.toString('hex')}`);
    }
    const [option, type] = [header.readUInt32BE(8), header.readUInt32BE(12)];
    return { option, type, data: await this.read(header.readUInt32BE(16)) };
  }

  /** Sends an option and takes its replies up to the final one, which is the last of the list. */
  async option(option: number, data?: Uint8Array): Promise<OptionReply[]> {
    this.send(encodeOption(option, data));
    const replies: OptionReply[] = [];
    for (;;) {
      const reply = await this.optionReply();
      replies.push(reply);
      if (reply.type === REP.ACK || reply.type >= ERROR_BIT) return replies;
    }
  }

  /** Sends an option. @returns the type of its final reply */
  async optionType(option: number, data?: Uint8Array): Promise<number> {
    return (await this.option(option, data)).at(-1)?.type ?? 0;
  }

  /** Enters the transmission phase. @throws Error when the server refuses */
  async go(name: string, infos: readonly number[] = []): Promise<ExportInfo> {
    const replies = await this.option(OPT.GO, encodeInfoRequest(name, infos));
    if (replies.at(-1)?.type !== REP.ACK) {
      throw new Error(`GO '${name}': ${replies.at(-1)?.data.toString()}`);
    }
    return exportInfo(replies);
  }

  /** Selects metadata contexts. @returns name by context ID */
  async setMetaContexts(name: string, queries: readonly string[]): Promise<Map<number, string>> {
    const replies = await this.option(OPT.SET_META_CONTEXT, encodeMetaQuery(name, queries));
    if (replies.at(-1)?.type !== REP.ACK) throw new Error('SET_META_CONTEXT was refused');
    return new Map(contextsOf(replies));
  }

  /**
   * Takes one reply message.
   * @param length bytes of data that a successful simple reply carries, or who knows them by cookie
   */
  async reply(length: number | ((cookie: bigint) => number) = 0): Promise<Reply> {
    const magic = (await this.read(4)).readUInt32BE(0);
    if (magic === SIMPLE_REPLY_MAGIC) {
      const rest = await this.read(12);
      const error = rest.readUInt32BE(0);
      const cookie = rest.readBigUInt64BE(4);
      const data = typeof length === 'number' ? length : length(cookie);
      const payload = await this.read(error === 0 ? data : 0);
      return { form: 'simple', cookie, error, type: 0, flags: 1, offset: undefined, payload };
    }
    if (magic === STRUCTURED_REPLY_MAGIC) {
      const rest = await this.read(16);
      const payload = await this.read(rest.readUInt32BE(12));
      return chunk('structured', rest, payload, undefined);
    }
    if (magic === EXTENDED_REPLY_MAGIC) {
      const rest = await this.read(28);
      const payload = await this.read(Number(rest.readBigUInt64BE(20)));
      return chunk('extended', rest, payload, rest.readBigUInt64BE(12));
    }
    throw new Error(`not a reply: magic 0x${magic.toString(16)}`);
  }

  /** Takes all messages that answer one request, the only one in flight. */
  async replies(length = 0): Promise<Reply[]> {
    const replies: Reply[] = [];
    for (;;) {
      const reply = await this.reply(length);
      replies.push(reply);
      if ((reply.flags & 1) !== 0) return replies;
    }
  }

  /** Sends a compact request and takes all of its answer. */
  async call(request: Request): Promise<Reply[]> {
    this.send(encodeRequest(request));
    return this.replies(request.type === CMD.READ ? Number(request.length ?? 0) : 0);
  }

  /** Sends a compact request. @returns the first error in its answer, 0 when there is none */
  async callError(request: Request): Promise<number> {
    return (await this.call(request)).find(({ error }) => error !== 0)?.error ?? 0;
  }

  /** Sends an extended request and takes all of its answer. */
  async extendedCall(request: Request): Promise<Reply[]> {
    this.send(encodeExtendedRequest(request));
    return this.replies();
  }
}

function chunk(
  form: 'structured' | 'extended',
  rest: Buffer,
  payload: Buffer,
  offset: bigint | undefined,
): Reply {
  const type = rest.readUInt16BE(2);
  const cookie = rest.readBigUInt64BE(4);
  const error = errorOf(type, payload);
  return { form, cookie, error, type, flags: rest.readUInt16BE(0), offset, payload };
}

/** The error number in an error chunk, 0 for any other. */
function errorOf(type: number, payload: Buffer): number {
  return (type & 0x8000) !== 0 && payload.length >= 4 ? payload.readUInt32BE(0) : 0;
}
