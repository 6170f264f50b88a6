// SPDX-License-Identifier: MIT
/**
 * Bytes to JSON tokens, in pieces as they come. Accepts what QEMU accepts: RFC 8259, and strings in
 * single quotes. After a byte that can't stand where it stands, bytes are skipped up to the next
 * structural or control character, 0xFE or 0xFF; a client that has lost track sends 0xFF.
 * @see QEMU's docs/interop/qmp-spec.txt, "Format for JSON"
 */

export type TokenType =
  | '{'
  | '}'
  | '['
  | ']'
  | ':'
  | ','
  | 'string'
  | 'integer'
  | 'float'
  | 'keyword';

export interface TokenSink {
  /** `bytes` are only valid during the call. Returns true when lexing shall pause. */
  token(type: TokenType, bytes: Uint8Array): boolean;
  /** A byte that fits nowhere; `bytes` end with it. Returns true when lexing shall pause. */
  stray(bytes: Uint8Array): boolean;
  /**
   * Asked when input ends inside of a token of which `length` bytes are kept. False: they are
   * forgotten, and the token comes without them. Throwing is not allowed.
   */
  partial(length: number): boolean;
}

type State =
  | 'start'
  | 'recovery'
  | 'string'
  | 'escape'
  | 'sign'
  | 'zero'
  | 'digits'
  | 'point'
  | 'fraction'
  | 'e'
  | 'e-sign'
  | 'exponent'
  | 'keyword';

const QUOTE = 0x22;
const APOSTROPHE = 0x27;
const BACKSLASH = 0x5c;
const MINUS = 0x2d;
const PLUS = 0x2b;
const ZERO = 0x30;
const POINT = 0x2e;
const TAB = 0x09;
const HIGHEST_UTF8 = 0xfd;

const STRUCTURAL = new Map<number, TokenType>(
  (['{', '}', '[', ']', ':', ','] as const).map((c) => [c.charCodeAt(0), c]),
);
const isDigit = (byte: number) => byte >= ZERO && byte <= 0x39;
const isLower = (byte: number) => byte >= 0x61 && byte <= 0x7a;
const isE = (byte: number) => byte === 0x65 || byte === 0x45;
const isSpace = (byte: number) => byte === 0x20 || byte === TAB || byte === 0x0d || byte === 0x0a;
const isResync = (byte: number) =>
  (byte < 0x20 && byte !== TAB) || byte > HIGHEST_UTF8 || STRUCTURAL.has(byte);

/** What a byte does to a number: the next state, or the end of the token. */
function nextOfNumber(state: State, byte: number): State | 'end-integer' | 'end-float' | 'stray' {
  switch (state) {
    case 'sign':
      if (byte === ZERO) return 'zero';
      return isDigit(byte) ? 'digits' : 'stray';
    case 'zero':
      if (isDigit(byte)) return 'stray';
      return byte === POINT ? 'point' : 'end-integer';
    case 'digits':
      if (isDigit(byte)) return 'digits';
      if (isE(byte)) return 'e';
      return byte === POINT ? 'point' : 'end-integer';
    case 'point':
      return isDigit(byte) ? 'fraction' : 'stray';
    case 'fraction':
      if (isDigit(byte)) return 'fraction';
      return isE(byte) ? 'e' : 'end-float';
    case 'e':
      if (byte === MINUS || byte === PLUS) return 'e-sign';
      return isDigit(byte) ? 'exponent' : 'stray';
    case 'e-sign':
      return isDigit(byte) ? 'exponent' : 'stray';
    default:
      return isDigit(byte) ? 'exponent' : 'end-float';
  }
}

export class JsonLexer {
  #state: State = 'start';
  #quote = QUOTE;
  /** Bytes of a token whose end has not come yet, from earlier chunks. */
  #earlier: Uint8Array[] = [];
  #earlierLength = 0;

  constructor(readonly sink: TokenSink) {}

  /**
   * Lexes `chunk` from `from`, until its end or until the sink says stop.
   *
   * @returns where it stopped, an index into `chunk`
   */
  feed(chunk: Uint8Array, from: number): number {
    let tokenStart = from;
    for (let at = from; at < chunk.byteLength; at++) {
      const byte = chunk[at] as number;
      const before = this.#state;
      if (before === 'string' && this.#isPlain(byte)) continue;
      const outcome = this.#step(byte);
      if (before === 'start') tokenStart = at;
      if (outcome === 'more') continue;
      // A number or keyword ends before the byte that follows it.
      const end = outcome.includesByte ? at + 1 : at;
      const stop = this.#emit(outcome.type, chunk, tokenStart, end);
      tokenStart = end;
      if (!outcome.includesByte) at--;
      if (stop) return at + 1;
    }
    return this.#keep(chunk, tokenStart);
  }

  #isPlain(byte: number): boolean {
    return byte >= 0x20 && byte <= HIGHEST_UTF8 && byte !== BACKSLASH && byte !== this.#quote;
  }

  /** The chunk is over: what has begun must be kept, and must not grow without limit. */
  #keep(chunk: Uint8Array, tokenStart: number): number {
    const { byteLength } = chunk;
    if (this.#state !== 'start' && this.#state !== 'recovery') {
      const piece = chunk.slice(tokenStart);
      this.#earlier.push(piece);
      this.#earlierLength += piece.byteLength;
      if (!this.sink.partial(this.#earlierLength)) this.#forget();
    }
    return byteLength;
  }

  #forget(): void {
    this.#earlier = [];
    this.#earlierLength = 0;
  }

  #emit(
    type: TokenType | 'stray' | 'none',
    chunk: Uint8Array,
    start: number,
    end: number,
  ): boolean {
    if (type === 'none') return false;
    let bytes = chunk.subarray(start, end);
    if (this.#earlierLength > 0) {
      bytes = Buffer.concat([...this.#earlier, bytes]);
      this.#forget();
    }
    return type === 'stray' ? this.sink.stray(bytes) : this.sink.token(type, bytes);
  }

  #end(type: TokenType | 'none', includesByte: boolean): Outcome {
    this.#state = 'start';
    return { type, includesByte };
  }

  #stray(): Outcome {
    this.#state = 'recovery';
    return { type: 'stray', includesByte: true };
  }

  #step(byte: number): Outcome | 'more' {
    switch (this.#state) {
      case 'start':
        return this.#stepStart(byte);
      case 'recovery':
        return isResync(byte) ? this.#end('none', false) : 'more';
      case 'string':
        if (byte === BACKSLASH) this.#state = 'escape';
        else if (byte === this.#quote) return this.#end('string', true);
        else if (!this.#isPlain(byte)) return this.#stray();
        return 'more';
      case 'escape':
        if (byte < 0x20 || byte > HIGHEST_UTF8) return this.#stray();
        this.#state = 'string';
        return 'more';
      case 'keyword':
        return isLower(byte) ? 'more' : this.#end('keyword', false);
      default:
        return this.#stepNumber(byte);
    }
  }

  #stepStart(byte: number): Outcome | 'more' {
    const structural = STRUCTURAL.get(byte);
    if (structural !== undefined) return this.#end(structural, true);
    if (isSpace(byte)) return 'more';
    if (byte === QUOTE || byte === APOSTROPHE) {
      this.#quote = byte;
      this.#state = 'string';
    } else if (byte === MINUS) this.#state = 'sign';
    else if (byte === ZERO) this.#state = 'zero';
    else if (isDigit(byte)) this.#state = 'digits';
    else if (isLower(byte)) this.#state = 'keyword';
    else return this.#stray();
    return 'more';
  }

  #stepNumber(byte: number): Outcome | 'more' {
    const next = nextOfNumber(this.#state, byte);
    if (next === 'stray') return this.#stray();
    if (next === 'end-integer') return this.#end('integer', false);
    if (next === 'end-float') return this.#end('float', false);
    this.#state = next;
    return 'more';
  }
}

type Outcome = { readonly type: TokenType | 'stray' | 'none'; readonly includesByte: boolean };
