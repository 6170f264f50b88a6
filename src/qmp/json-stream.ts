// SPDX-License-Identifier: MIT
/**
 * A stream of bytes to JSON values. Values are built while their bytes come, so that what is kept
 * is never much more than the value itself. A message ends when its brackets are balanced; a
 * message that is wrong is an error once it has ended, and the stream goes on behind it. One that
 * exceeds a limit is an error at once; its rest is skipped, of which nothing is kept.
 */
import type { JsonValue } from '../../protocol/qapi/types.js';
import { BlockError } from '../base/errors.js';
import { QMP_MESSAGE_MAX, QMP_NESTING_MAX, QMP_TOKENS_MAX } from '../base/limits.js';
import { JsonLexer, type TokenType } from './json-lexer.js';
import {
  floatValue,
  integerValue,
  keywordValue,
  LiteralError,
  stringValue,
} from './json-string.js';

/** One message, or what was wrong with it. */
export type JsonMessage =
  | { readonly value: JsonValue }
  | {
      /** QEMU's text, which names nothing. */
      readonly error: string;
      /** The key that is there twice, when that is the error. */
      readonly duplicate?: string;
    };

export type JsonLimits = {
  /** Bytes of all tokens of a message. */
  readonly message: number;
  readonly nesting: number;
  readonly tokens: number;
};
const LIMITS: JsonLimits = {
  message: QMP_MESSAGE_MAX,
  nesting: QMP_NESTING_MAX,
  tokens: QMP_TOKENS_MAX,
};

/** What may come next inside of a container. */
type Expect = 'first' | 'item' | 'colon' | 'value' | 'separator';

/** A container that has begun. `items` or `members`: exactly one is set. */
interface Container {
  readonly items: JsonValue[] | undefined;
  readonly members: Record<string, JsonValue> | undefined;
  expect: Expect;
  key: string;
}

const decodeAscii = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1');

/** Builds the value of one message from its tokens. */
class MessageBuilder {
  readonly #stack: Container[] = [];
  #value: JsonValue | undefined;
  #error: string | undefined;
  #duplicate: string | undefined;
  #braces = 0;
  #brackets = 0;
  #tokens = 0;
  #bytes = 0;
  #isRefused = false;

  constructor(readonly limits: JsonLimits) {}

  /** A limit was exceeded, and that has been told: the tokens to come are only counted. */
  get isRefused(): boolean {
    return this.#isRefused;
  }
  /** The brackets are balanced, or there are too many that close. */
  get isOver(): boolean {
    const isOpen = this.#braces > 0 || this.#brackets > 0;
    return !isOpen || this.#braces < 0 || this.#brackets < 0;
  }

  get isEmpty(): boolean {
    return this.#tokens === 0 && !this.#isRefused;
  }

  /** Takes one token; returns the message when it ends with it, or exceeds a limit. */
  add(type: TokenType, bytes: Uint8Array): JsonMessage | undefined {
    if (type === '{') this.#braces++;
    else if (type === '}') this.#braces--;
    else if (type === '[') this.#brackets++;
    else if (type === ']') this.#brackets--;
    if (this.#isRefused) return undefined;
    this.#tokens++;
    const refused = this.checkSize(bytes.byteLength);
    if (refused !== undefined) return refused;
    this.#bytes += bytes.byteLength;
    if (this.#tokens > this.limits.tokens) return this.#refuse('JSON token count limit exceeded');
    if (this.#braces + this.#brackets > this.limits.nesting) {
      return this.#refuse('JSON nesting depth limit exceeded');
    }
    if (this.#error === undefined) this.#take(type, bytes);
    return this.isOver ? this.#finish() : undefined;
  }

  /** Asked while a token is coming: `length` bytes so far. */
  checkSize(length: number): JsonMessage | undefined {
    if (this.#isRefused || this.#bytes + length <= this.limits.message) return undefined;
    return this.#refuse('JSON token size limit exceeded');
  }

  #finish(): JsonMessage {
    if (this.#error !== undefined) {
      const error = `JSON parse error, ${this.#error}`;
      return this.#duplicate === undefined ? { error } : { error, duplicate: this.#duplicate };
    }
    if (this.#value === undefined) return { error: 'JSON parse error, premature EOI' };
    return { value: this.#value };
  }

  #refuse(error: string): JsonMessage {
    this.#isRefused = true;
    this.#stack.length = 0;
    return { error };
  }

  #fail(text: string): void {
    this.#error ??= text;
    // What was built is of no use any more.
    this.#stack.length = 0;
  }

  #take(type: TokenType, bytes: Uint8Array): void {
    const top = this.#stack.at(-1);
    const closes = type === '}' || type === ']';
    if (top !== undefined && closes && this.#mayClose(top, type)) this.#close();
    else if (top?.expect === 'colon') this.#takeColon(top, type);
    else if (top?.expect === 'separator') this.#takeSeparator(top, type);
    else if (top?.members !== undefined && top.expect !== 'value') this.#takeKey(top, type, bytes);
    else this.#takeValue(type, bytes);
  }

  /** Brackets close after an element, or at once; not after a comma or a key. */
  #mayClose(top: Container, type: TokenType): boolean {
    const fits = (type === '}') === (top.members !== undefined);
    return fits && (top.expect === 'first' || top.expect === 'separator');
  }

  #takeColon(top: Container, type: TokenType): void {
    if (type !== ':') this.#fail('missing : in object pair');
    top.expect = 'value';
  }

  #takeSeparator(top: Container, type: TokenType): void {
    const place = top.members !== undefined ? 'dict' : 'list';
    if (type !== ',') this.#fail(`expected separator in ${place}`);
    top.expect = 'item';
  }

  #takeKey(top: Container, type: TokenType, bytes: Uint8Array): void {
    if (type === '}' || type === ']' || type === ':' || type === ',') {
      this.#fail('expecting value');
    } else if (type !== 'string') {
      this.#fail('key is not a string in object');
    } else {
      const key = this.#literal(type, bytes);
      if (typeof key === 'string') top.key = key;
      top.expect = 'colon';
    }
  }

  #takeValue(type: TokenType, bytes: Uint8Array): void {
    if (type === '{' || type === '[') {
      const isObject = type === '{';
      this.#stack.push({
        items: isObject ? undefined : [],
        // Without a prototype a key like __proto__ is a key like any other.
        members: isObject ? Object.create(null) : undefined,
        expect: 'first',
        key: '',
      });
    } else if (type === '}' || type === ']' || type === ':' || type === ',') {
      this.#fail('expecting value');
    } else {
      const value = this.#literal(type, bytes);
      if (value !== undefined) this.#put(value);
    }
  }

  #literal(type: TokenType, bytes: Uint8Array): JsonValue | undefined {
    try {
      if (type === 'string') return stringValue(bytes);
      if (type === 'integer') return integerValue(decodeAscii(bytes));
      if (type === 'float') return floatValue(decodeAscii(bytes));
      return keywordValue(decodeAscii(bytes));
    } catch (error) {
      if (!(error instanceof LiteralError)) throw error;
      this.#fail(error.message);
      return undefined;
    }
  }

  #close(): void {
    const closed = this.#stack.pop();
    const value = closed?.items ?? closed?.members;
    if (value !== undefined) this.#put(value);
  }

  #put(value: JsonValue): void {
    const top = this.#stack.at(-1);
    if (top === undefined) {
      this.#value = value;
      return;
    }
    top.expect = 'separator';
    top.items?.push(value);
    if (top.members === undefined) return;
    if (top.key in top.members) {
      this.#duplicate = top.key;
      this.#fail('duplicate key');
    } else top.members[top.key] = value;
  }
}

/**
 * Pull parser: `feed` bytes, then ask for messages with `next` until there is none. Bytes that
 * were fed are kept, unparsed, until they are asked for.
 */
export class JsonStream {
  readonly #limits: JsonLimits;
  readonly #lexer: JsonLexer;
  #builder: MessageBuilder;
  #ready: JsonMessage | undefined;
  #chunks: Uint8Array[] = [];
  #at = 0;
  #parsedBytes = 0;

  constructor(limits: Partial<JsonLimits> = {}) {
    this.#limits = { ...LIMITS, ...limits };
    this.#builder = new MessageBuilder(this.#limits);
    this.#lexer = new JsonLexer({
      token: (type, bytes) => {
        const message = this.#builder.add(type, bytes);
        if (this.#builder.isOver) this.#startAnew();
        return this.#tell(message);
      },
      stray: (bytes) => {
        this.#startAnew();
        return this.#tell({ error: `JSON parse error, stray '${Buffer.from(bytes).toString()}'` });
      },
      partial: (length) => {
        this.#tell(this.#builder.checkSize(length));
        return !this.#builder.isRefused;
      },
    });
  }

  /** Hands over bytes; they must not be changed afterwards. */
  feed(chunk: Uint8Array): void {
    if (chunk.byteLength > 0) this.#chunks.push(chunk);
  }

  /** True when there are bytes that were not looked at yet. */
  get hasUnparsed(): boolean {
    return this.#chunks.length > 0;
  }

  /** Bytes looked at since the beginning. */
  get parsedBytes(): number {
    return this.#parsedBytes;
  }

  /**
   * The next message, or undefined when more bytes are needed.
   *
   * @param bytesMax look at so many bytes at most; undefined then also means that this was not enough
   */
  next(bytesMax = Number.POSITIVE_INFINITY): JsonMessage | undefined {
    const stop = this.#parsedBytes + bytesMax;
    for (let chunk = this.#chunks[0]; chunk !== undefined; chunk = this.#chunks[0]) {
      const room = stop - this.#parsedBytes;
      if (room <= 0) return undefined;
      const from = this.#at;
      const isPiece = chunk.byteLength - from > room;
      this.#at = this.#lexer.feed(isPiece ? chunk.subarray(0, from + room) : chunk, from);
      this.#parsedBytes += this.#at - from;
      if (this.#at >= chunk.byteLength) {
        this.#chunks.shift();
        this.#at = 0;
      }
      const message = this.#ready;
      this.#ready = undefined;
      if (message !== undefined) return message;
    }
    return undefined;
  }

  /** True when a message has begun and not ended. */
  get isInMessage(): boolean {
    return !this.#builder.isEmpty;
  }

  #startAnew(): void {
    this.#builder = new MessageBuilder(this.#limits);
  }

  #tell(message: JsonMessage | undefined): boolean {
    if (message === undefined) return false;
    this.#ready = message;
    return true;
  }
}

/**
 * Parses one JSON value that is all of `text`, with 64-bit integers exact.
 *
 * @throws {BlockError} `DF_INVALID`: the text is not JSON, or there is more behind the value
 */
export function parseJson(text: string): JsonValue {
  const stream = new JsonStream();
  // The end of the line ends a number or a word that stands last.
  stream.feed(Buffer.from(`${text}\n`));
  const message = stream.next();
  if (message === undefined) {
    const why = stream.isInMessage ? 'JSON parse error, premature EOI' : 'Expecting a JSON value';
    throw new BlockError('DF_INVALID', why);
  }
  if ('error' in message) {
    const { error, duplicate } = message;
    const named = duplicate === undefined ? error : `${error} '${duplicate}'`;
    throw new BlockError('DF_INVALID', named);
  }
  if (stream.next() !== undefined || stream.isInMessage) {
    throw new BlockError('DF_INVALID', 'JSON parse error, expecting end of input');
  }
  return message.value;
}
