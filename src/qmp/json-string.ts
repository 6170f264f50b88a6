// SPDX-License-Identifier: MIT
/** The literals of JSON: from the bytes of a token to its value. */
import { isAscii } from 'node:buffer';
import type { JsonValue } from '../../protocol/qapi/types.js';

/** A literal that the grammar lets through and that means nothing; the text says why. */
export class LiteralError extends Error {}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const NON_CHARACTER = /\p{Noncharacter_Code_Point}/u;
const BACKSLASH = 0x5c;
const SIMPLE_ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "'": "'",
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
};

function isCharacter(code: number): boolean {
  const isSurrogate = code >= 0xd800 && code <= 0xdfff;
  const isNonCharacter = (code >= 0xfdd0 && code <= 0xfdef) || (code & 0xfffe) === 0xfffe;
  return !isSurrogate && !isNonCharacter;
}

/** The value of a hexadecimal digit, or -1. */
function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  const lower = code | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x61 + 10 : -1;
}

/** Four hexadecimal digits at `at`, or -1. */
function hex4(text: string, at: number): number {
  let value = 0;
  for (let n = 0; n < 4; n++) {
    const digit = hexDigit(text.charCodeAt(at + n));
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

/** The character written as `\u` and four digits (or as two of these) at `at`, which is behind the first `\u`. */
function unicodeEscape(text: string, at: number): { character: string; end: number } {
  let code = hex4(text, at);
  let end = at + 4;
  if (code >= 0xd800 && code <= 0xdbff && text.startsWith('\\u', end)) {
    const low = hex4(text, end + 2);
    const isPair = low >= 0xdc00 && low <= 0xdfff;
    code = isPair ? 0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff) : -1;
    if (isPair) end += 6;
  }
  if (code < 0 || !isCharacter(code)) {
    throw new LiteralError(`${text.slice(at - 2, end)} is not a valid Unicode character`);
  }
  return { character: String.fromCodePoint(code), end };
}

function decodedText(bytes: Uint8Array): string {
  // What nearly all strings are, and the only kind that is cheap to check.
  if (isAscii(bytes))
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
  let text: string;
  try {
    text = UTF8.decode(bytes);
  } catch {
    throw new LiteralError('invalid UTF-8 sequence in string');
  }
  if (NON_CHARACTER.test(text)) throw new LiteralError('invalid UTF-8 sequence in string');
  return text;
}

/**
 * The value of a string token, quotes included.
 *
 * @throws {LiteralError} escape or encoding is wrong
 */
export function stringValue(token: Uint8Array): string {
  const text = decodedText(token.subarray(1, -1));
  return text.includes('\\') ? unescaped(text) : text;
}

/** Built unit by unit in one buffer: half a million pieces of a string take tens of milliseconds. */
function unescaped(text: string): string {
  const units = new Uint16Array(text.length);
  let length = 0;
  const put = (piece: string) => {
    for (let n = 0; n < piece.length; n++) units[length++] = piece.charCodeAt(n);
  };
  for (let at = 0; at < text.length; ) {
    const code = text.charCodeAt(at++);
    if (code !== BACKSLASH) {
      units[length++] = code;
      continue;
    }
    const kind = text[at++] ?? '';
    if (kind === 'u') {
      const { character, end } = unicodeEscape(text, at);
      put(character);
      at = end;
      continue;
    }
    const simple = Object.hasOwn(SIMPLE_ESCAPES, kind) ? SIMPLE_ESCAPES[kind] : undefined;
    if (simple === undefined) throw new LiteralError('invalid escape sequence in string');
    put(simple);
  }
  return Buffer.from(units.buffer, 0, 2 * length).toString('utf16le');
}

/** Whole numbers of up to 64 bits are exact, larger ones become the nearest number, as in QEMU. */
export function integerValue(text: string): number | bigint {
  const near = Number(text);
  if (Number.isSafeInteger(near)) return near === 0 ? 0 : near;
  // 20 digits and a sign hold any 64-bit integer; longer texts are not worth converting.
  if (text.length > 21) return floatValue(text);
  const exact = BigInt(text);
  return exact >= -(2n ** 63n) && exact < 2n ** 64n ? exact : near;
}

/** @throws {LiteralError} too large for a double */
export function floatValue(text: string): number {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new LiteralError('number is out of range');
  return value;
}

/**
 * @throws {LiteralError} a word that is none of true, false and null
 */
export function keywordValue(text: string): JsonValue {
  switch (text) {
    case 'true':
      return true;
    case 'false':
      return false;
    case 'null':
      return null;
    default:
      throw new LiteralError(`invalid keyword '${text}'`);
  }
}
