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
const ESCAPES: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
};

function escapeUnit(unit: string): string {
  const code = unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0');
  return ESCAPES[unit] ?? `\\u${code}`;
}

function quote(text: string): string {
  if (PLAIN.test(text)) return `"${text}"`;
  // Half of a surrogate pair is no character and has no encoding; the rest goes unit by unit.
  return `"${text.replace(LONE_SURROGATE, '\ufffd').replace(/[^\x20\x21\x23-\x5b\x5d-\x7e]/g, escapeUnit)}"`;
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
    for (const [key, item] of Object.entries<WritableJson>(value as Record<string, WritableJson>)) {
      if (item === undefined && !list) continue;
      if (!isFirst) this.text += this.pretty ? ',' : ', ';
      isFirst = false;
      this.#newline(depth + 1);
      if (!list) this.text += `${quote(key)}: `;
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
