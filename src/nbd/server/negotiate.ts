// SPDX-License-Identifier: MIT
/**
 * The option phase of one connection: client flags, then options until one enters transmission.
 * @see proto.md "Fixed newstyle negotiation"
 */
import {
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_MAGIC,
  NBD_OPT_EXPORT_NAME,
  NBD_OPTS_MAGIC,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNSUP,
  NBD_REP_MAGIC,
  optionName,
  optionReplyName,
} from '../../../protocol/nbd/constants.js';
import {
  NBD_CLIENT_FLAGS,
  NBD_GREETING,
  NBD_OPTION,
  NBD_OPTION_REPLY,
} from '../../../protocol/nbd/handshake.js';
import {
  NBD_OPTION_LENGTH_MAX,
  NBD_OPTION_SKIP_MAX,
  NBD_OPTION_UNSENT_MAX,
} from '../../base/limits.js';
import type { Logger } from '../../base/log.js';
import { errorText } from './error-text.js';
import type { ExportRegistry, NbdExport } from './export.js';
import type { Inbox } from './inbox.js';
import type { MetaContext } from './meta-contexts.js';
import { OPTION_HANDLERS } from './option/all.js';
import type { Outbox } from './outbox.js';
import { REPLY_SIMPLE, type ReplyForm, type Session } from './session.js';

/** What the option phase needs of its connection. */
export interface NegotiationHost {
  readonly exports: ExportRegistry;
  readonly inbox: Inbox;
  readonly outbox: Outbox;
  readonly log: Logger;
  /** Transmission begins; called once. */
  agreed(session: Session): void;
  /** The client said goodbye: closes after the last reply. */
  finish(): void;
  /** The client broke the protocol: ends the connection. */
  drop(reason: string): void;
}

export class Negotiation {
  readonly exports: ExportRegistry;
  readonly #host: NegotiationHost;
  #state: 'flags' | 'options' | 'over' = 'flags';
  #option = 0;
  #skip = 0;
  #fixed = false;
  /** The client can do without the padding behind the reply to EXPORT_NAME. */
  noZeroes = false;
  form: ReplyForm = REPLY_SIMPLE;
  /** Of the last SET_META_CONTEXT, with the export that it named. */
  selection: { exported: NbdExport; contexts: readonly MetaContext[] } | undefined;

  constructor(host: NegotiationHost) {
    this.#host = host;
    this.exports = host.exports;
    this.#greet();
  }

  get over(): boolean {
    return this.#state === 'over';
  }

  /** True while the client has to read replies before it may send on. */
  get held(): boolean {
    return this.#host.outbox.unsentBytes > NBD_OPTION_UNSENT_MAX;
  }

  /** Answers what has arrived. Returns false when the client must first read our replies. */
  process(): boolean {
    while (this.#state !== 'over') {
      if (this.held) return false;
      const more = this.#state === 'flags' ? this.#clientFlags() : this.#nextOption();
      if (!more) return true;
    }
    return true;
  }

  /** Answers the present option. */
  reply(type: number, payload: Uint8Array = new Uint8Array(0)): void {
    const { outbox } = this.#host;
    const size = NBD_OPTION_REPLY.size + payload.byteLength;
    const at = outbox.reserve(size);
    const { bytes } = outbox.arena;
    NBD_OPTION_REPLY.encode(
      { magic: NBD_REP_MAGIC, option: this.#option, type, length: payload.byteLength },
      bytes.subarray(at, at + size),
    );
    bytes.set(payload, at + NBD_OPTION_REPLY.size);
    outbox.commit(size);
  }

  /** Answers the present option with an error and a text for people. */
  refuse(type: number, message: string): void {
    this.#host.log.debug(
      {
        event: 'nbd.option.refuse',
        option: optionName(this.#option),
        reply: optionReplyName(type),
      },
      message,
    );
    this.reply(type, errorText(message));
  }

  /** Sends bytes that are no option reply. */
  send(bytes: Uint8Array): void {
    const { outbox } = this.#host;
    const at = outbox.reserve(bytes.byteLength);
    outbox.arena.bytes.set(bytes, at);
    outbox.commit(bytes.byteLength);
  }

  /** Transmission begins behind what was sent so far. */
  enter(exported: NbdExport, options: { minimumBlock: number }): void {
    this.#state = 'over';
    const { selection } = this;
    const contexts = selection?.exported === exported ? selection.contexts : [];
    this.#host.agreed({ export: exported, form: this.form, contexts, ...options });
  }

  finish(): void {
    this.#state = 'over';
    this.#host.finish();
  }

  drop(reason: string): void {
    this.#state = 'over';
    this.#host.drop(reason);
  }

  #greet(): void {
    this.send(
      NBD_GREETING.toBytes({
        magic: NBD_MAGIC,
        optsMagic: NBD_OPTS_MAGIC,
        handshakeFlags: NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES,
      }),
    );
  }

  /** The next `size` bytes, or undefined when they have not all arrived. */
  #take(size: number): Buffer | undefined {
    const { inbox } = this.#host;
    if (inbox.unread < size) {
      inbox.need = size;
      return undefined;
    }
    const { start } = inbox;
    inbox.consume(size);
    return inbox.buffer.bytes.subarray(start, start + size);
  }

  #clientFlags(): boolean {
    const bytes = this.#take(NBD_CLIENT_FLAGS.size);
    if (bytes === undefined) return false;
    const { flags } = NBD_CLIENT_FLAGS.decode(bytes);
    if ((flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) !== 0) {
      this.drop(`unknown client flags 0x${flags.toString(16)}`);
      return false;
    }
    this.#fixed = (flags & NBD_FLAG_C_FIXED_NEWSTYLE) !== 0;
    this.noZeroes = (flags & NBD_FLAG_C_NO_ZEROES) !== 0;
    this.#state = 'options';
    return true;
  }

  /** Returns false when more has to arrive. */
  #nextOption(): boolean {
    const { inbox } = this.#host;
    if (this.#skip > 0) {
      const length = Math.min(this.#skip, inbox.unread);
      inbox.consume(length);
      this.#skip -= length;
      inbox.need = 1;
      return this.#skip === 0;
    }
    if (inbox.unread < NBD_OPTION.size) {
      inbox.need = NBD_OPTION.size;
      return false;
    }
    const { start, buffer } = inbox;
    const head = NBD_OPTION.decode(buffer.bytes.subarray(start, start + NBD_OPTION.size));
    if (head.magic !== NBD_OPTS_MAGIC) {
      this.drop('wrong magic in an option');
      return false;
    }
    if (!this.#fixed && head.option !== NBD_OPT_EXPORT_NAME) {
      this.drop(`${optionName(head.option)} from a client without fixed newstyle`);
      return false;
    }
    this.#option = head.option;
    if (head.length > NBD_OPTION_LENGTH_MAX) return this.#tooLong(head.length);
    const whole = this.#take(NBD_OPTION.size + head.length);
    if (whole === undefined) return false;
    this.#answer(whole.subarray(NBD_OPTION.size));
    return true;
  }

  /** Refused, and skipped as it comes, as long as that is not abuse. */
  #tooLong(length: number): boolean {
    const name = optionName(this.#option);
    if (length > NBD_OPTION_SKIP_MAX || this.#option === NBD_OPT_EXPORT_NAME) {
      this.drop(`${name} with ${length} bytes of data`);
      return false;
    }
    this.#host.inbox.consume(NBD_OPTION.size);
    this.#skip = length;
    const message = `${length} bytes of option data are above the limit ${NBD_OPTION_LENGTH_MAX}`;
    this.refuse(NBD_REP_ERR_TOO_BIG, message);
    return true;
  }

  #answer(data: Buffer): void {
    const handler = OPTION_HANDLERS.get(this.#option);
    const option = optionName(this.#option);
    this.#host.log.debug({ event: 'nbd.option', option, length: data.byteLength }, 'option');
    if (handler === undefined) {
      this.refuse(NBD_REP_ERR_UNSUP, `${option} is not known`);
    } else {
      handler(this, data);
    }
  }
}
