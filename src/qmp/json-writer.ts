// SPDX-License-Identifier: MIT
/** JSON as QMP peers know it: ASCII only, a space after colons and commas, 64-bit integers exact. */
import type { JsonValue } from '../../protocol/qapi/types.js';

/** What can be written: JSON, where members that are undefined are left out. */
export type WritableJson =
  | JsonValue
  | undefined
  | readonly WritableJson[]
  | { readonly [key: string]: WritableJson };

const PLAIN = /^[\x20\x21\x23-\x5b\x5d-\x7e]*$/;
/** With the flag u a pair is one character, so that only halves without a partner match. */
const LONE_SURROGATE = /\p{Surrogate}/gu;
const BACKSLASH = 0x5c;
/** Characters that have an escape of two letters, with the second of them. */
const SHORT_ESCAPES: ReadonlyMap<number, number> = new Map(
  ['""', '\\\\', '\bb', '\ff', '\nn', '\rr', '\tt'].map((pair) => [
    pair.charCodeAt(0),
    pair.charCodeAt(1),
  ]),
);
const HEX_DIGITS = Buffer.from('0123456789ABCDEF');
/** Bytes that one UTF-16 unit takes at most: `\u` and four digits. */
const ESCAPE_LENGTH = 6;

/** Writes what stands for the unit `code` at `at`; returns how long that is. */
function putUnit(bytes: Uint8Array, at: number, code: number): number {
  const short = SHORT_ESCAPES.get(code);
  if (short === undefined && code >= 0x20 && code <= 0x7e) {
    bytes[at] = code;
    return 1;
  }
  bytes[at] = BACKSLASH;
  bytes[at + 1] = short ?? 0x75;
  if (short !== undefined) return 2;
  for (let n = 0; n < 4; n++) {
    bytes[at + 2 + n] = HEX_DIGITS[(code >> (12 - 4 * n)) & 0xf] as number;
  }
  return ESCAPE_LENGTH;
}

function quote(text: string): string {
  if (PLAIN.test(text)) return `"${text}"`;
  // Half of a surrogate pair is no character and has no encoding; the rest goes unit by unit.
  const whole = text.replace(LONE_SURROGATE, '\ufffd');
  const bytes = Buffer.allocUnsafe(ESCAPE_LENGTH * whole.length);
  let end = 0;
  for (let at = 0; at < whole.length; at++) end += putUnit(bytes, end, whole.charCodeAt(at));
  return `"${bytes.toString('latin1', 0, end)}"`;
}

function isList(value: object): value is readonly WritableJson[] {
  return Array.isArray(value);
}

class JsonWriter {
  text = '';
  constructor(readonly pretty: boolean) {}

  write(value: WritableJson, depth: number): void {
    if (typeof value === 'string') this.text += quote(value);
    else if (typeof value === 'object' && value !== null) this.#writeContainer(value, depth);
    else if (typeof value === 'number' && !Number.isFinite(value)) this.text += 'null';
    // Negative zero too is written as 0.
    else this.text += String(value ?? null);
  }

  #writeContainer(value: object, depth: number): void {
    const list = isList(value);
    let isFirst = true;
    this.text += list ? '[' : '{';
    const members = value as Record<string, WritableJson>;
    for (const key of list ? value.keys() : Object.keys(value)) {
      const item = members[key];
      if (item === undefined && !list) continue;
      if (!isFirst) this.text += this.pretty ? ',' : ', ';
      isFirst = false;
      this.#newline(depth + 1);
      if (typeof key === 'string') this.text += `${quote(key)}: `;
      this.write(item, depth + 1);
    }
    if (!isFirst) this.#newline(depth);
    this.text += list ? ']' : '}';
  }

  #newline(depth: number): void {
    if (this.pretty) this.text += `\n${'    '.repeat(depth)}`;
  }
}

/** `value` as JSON text, on one line or indented by four spaces a level. */
export function writeJson(
  value: WritableJson,
  options: { readonly pretty?: boolean } = {},
): string {
  const writer = new JsonWriter(options.pretty === true);
  writer.write(value, 0);
  return writer.text;
}
