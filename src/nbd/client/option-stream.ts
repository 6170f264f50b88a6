// SPDX-License-Identifier: MIT
/** The option phase as a dialogue: send an option, read its replies one after the other. */
import {
  NBD_OPT_ABORT,
  NBD_OPTS_MAGIC,
  NBD_REP_ERR_BLOCK_SIZE_REQD,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_PLATFORM,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_FLAG_ERROR,
  NBD_REP_MAGIC,
  optionName,
  optionReplyName,
} from '../../../protocol/nbd/constants.js';
import { NBD_OPTION, NBD_OPTION_REPLY } from '../../../protocol/nbd/handshake.js';
import { BlockError } from '../../base/errors.js';
import { NBD_OPTION_ANSWER_MAX, NBD_OPTION_REPLY_MAX, NBD_STRING_MAX } from '../../base/limits.js';
import type { Transport, TransportSink } from './transport.js';

export interface OptionReply {
  /** NBD_REP_*. */
  readonly type: number;
  readonly payload: Buffer;
}

/** A breach of the protocol: the connection has to go. */
export function protocolError(text: string): BlockError {
  return new BlockError('DF_PROTOCOL', `Protocol error: ${text}`);
}

/** Bytes of an exact count, in the order in which they come. One reader at a time. */
export class OptionStream implements TransportSink {
  /** Shortest time from an option to the first bytes of its answer, milliseconds. */
  roundTripMs: number | undefined;
  readonly #transport: Transport;
  readonly #now: () => number;
  /** When the option was sent that has no answer yet. */
  #askedAt: number | undefined;
  readonly #chunk = Buffer.allocUnsafeSlow(2 * NBD_OPTION_REPLY_MAX);
  #start = 0;
  #end = 0;
  #failure: BlockError | undefined;
  #waiting:
    | { length: number; resolve: (bytes: Buffer) => void; reject: (e: Error) => void }
    | undefined;

  /** @param now milliseconds */
  constructor(transport: Transport, now: () => number = () => performance.now()) {
    this.#transport = transport;
    this.#now = now;
    transport.sink = this;
  }

  receiveBuffer(): Uint8Array {
    // Only here may bytes move: in between, the transport holds the rest of the chunk.
    this.#chunk.copyWithin(0, this.#start, this.#end);
    this.#end -= this.#start;
    this.#start = 0;
    if (this.#end === this.#chunk.byteLength) {
      // Full, and nobody waits for that much: the server sends what was not asked for.
      this.closed(protocolError('the server talks without being asked'));
      this.#transport.destroy();
      this.#end = 0;
    }
    return this.#chunk.subarray(this.#end);
  }

  received(length: number): void {
    if (this.#askedAt !== undefined) {
      const took = this.#now() - this.#askedAt;
      this.roundTripMs = Math.min(this.roundTripMs ?? took, took);
      this.#askedAt = undefined;
    }
    this.#end += length;
    this.#serve();
  }

  closed(error: BlockError): void {
    this.#failure ??= error;
    this.#serve();
  }

  /** Fails what waits, and everything after it. */
  fail(error: BlockError): void {
    this.closed(error);
  }

  /** @param length bytes, at most NBD_OPTION_REPLY_MAX */
  read(length: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#waiting = { length, resolve, reject };
      this.#serve();
    });
  }

  /** Bytes that came and nobody has read. */
  get unread(): number {
    return this.#end - this.#start;
  }

  send(...pieces: Uint8Array[]): void {
    this.#transport.write([Buffer.concat(pieces)], () => {});
  }

  sendOption(option: number, payload: Uint8Array): void {
    const head = NBD_OPTION.toBytes({ magic: NBD_OPTS_MAGIC, option, length: payload.byteLength });
    this.#askedAt = this.#now();
    this.send(head, payload);
  }

  /** Leaves without an answer. @see proto.md "Termination of the session during option haggling" */
  abort(): void {
    this.sendOption(NBD_OPT_ABORT, Buffer.alloc(0));
    this.#transport.end();
  }

  /** The next reply to `option`. @throws BlockError DF_PROTOCOL for one that is none */
  async readReply(option: number): Promise<OptionReply> {
    const head = NBD_OPTION_REPLY.decode(await this.read(NBD_OPTION_REPLY.size));
    if (head.magic !== NBD_REP_MAGIC) throw protocolError('Unexpected option reply magic');
    if (head.option !== option) {
      throw protocolError(
        `Unexpected option type ${head.option} (${optionName(head.option)}), ` +
          `expected ${option} (${optionName(option)})`,
      );
    }
    if (head.length > NBD_OPTION_REPLY_MAX) {
      throw protocolError(
        `reply ${optionReplyName(head.type)} to ${optionName(option)} of ${head.length} bytes ` +
          `is longer than ${NBD_OPTION_REPLY_MAX}`,
      );
    }
    return { type: head.type, payload: await this.read(head.length) };
  }

  /**
   * Sends an option and reads its replies up to the last, an ACK or an error.
   * @param each takes the replies in between, and throws for those that don't belong there
   * @returns the last reply
   */
  async ask(
    option: number,
    payload: Uint8Array,
    each: (reply: OptionReply) => void,
    isLast: (type: number) => boolean,
  ): Promise<OptionReply> {
    this.sendOption(option, payload);
    let total = 0;
    while (total <= NBD_OPTION_ANSWER_MAX) {
      const reply = await this.readReply(option);
      total += NBD_OPTION_REPLY.size + reply.payload.byteLength;
      if (isErrorReply(reply.type) || isLast(reply.type)) return reply;
      each(reply);
    }
    throw protocolError(
      `more than ${NBD_OPTION_ANSWER_MAX} bytes of answer to ${optionName(option)}`,
    );
  }

  #serve(): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    if (this.unread >= waiting.length) {
      this.#waiting = undefined;
      const end = this.#start + waiting.length;
      const bytes = Buffer.from(this.#chunk.subarray(this.#start, end));
      this.#start = end;
      waiting.resolve(bytes);
    } else if (this.#failure !== undefined) {
      this.#waiting = undefined;
      waiting.reject(this.#failure);
    }
  }
}

export function isErrorReply(type: number): boolean {
  return type >= NBD_REP_FLAG_ERROR;
}

/** Text of the server for people, safe to show. */
function serverText(payload: Buffer): string {
  const text = payload.subarray(0, NBD_STRING_MAX).toString('utf8');
  // Control characters of a stranger have no place in logs and terminals.
  return text.replace(/\p{Cc}+/gu, ' ').trim();
}

/** The server refused an option. */
export function optionError(option: number, reply: OptionReply): BlockError {
  const name = `option ${option} (${optionName(option)})`;
  const said = serverText(reply.payload);
  const suffix = said === '' ? '' : `; server reported: ${said}`;
  switch (reply.type) {
    case NBD_REP_ERR_UNSUP:
      return new BlockError('DF_NOT_SUPPORTED', `Server lacks support for ${name}${suffix}`);
    case NBD_REP_ERR_POLICY:
      return new BlockError('DF_ACCESS', `Denied by server for ${name}${suffix}`);
    case NBD_REP_ERR_INVALID:
    case NBD_REP_ERR_TOO_BIG:
      return new BlockError('DF_INVALID', `Invalid parameters for ${name}${suffix}`);
    case NBD_REP_ERR_PLATFORM:
      return new BlockError('DF_NOT_SUPPORTED', `Server lacks support for ${name}${suffix}`);
    case NBD_REP_ERR_TLS_REQD:
      return new BlockError('DF_ACCESS', `TLS negotiation required before ${name}${suffix}`);
    case NBD_REP_ERR_UNKNOWN:
      return new BlockError('DF_NOT_FOUND', `Requested export not available${suffix}`);
    case NBD_REP_ERR_SHUTDOWN:
      return new BlockError('DF_DISCONNECTED', `Server shutting down before ${name}${suffix}`);
    case NBD_REP_ERR_BLOCK_SIZE_REQD:
      return new BlockError('DF_INVALID', `Server requires INFO_BLOCK_SIZE for ${name}${suffix}`);
    default: {
      const code = `0x${reply.type.toString(16)}`;
      return new BlockError(
        'DF_PROTOCOL',
        `Unknown error code ${code} when asking for ${name}${suffix}`,
      );
    }
  }
}
