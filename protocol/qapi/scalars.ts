// SPDX-License-Identifier: MIT
/** Ranges and notations of the built-in types. */
import type { JsonValue } from './types.js';

/** A checked value, or what should have stood there. */
export type ScalarResult =
  | { readonly value: JsonValue }
  | {
      /** The JSON type that was expected, when that is what is wrong. */
      readonly expectedType: string;
      readonly expects?: undefined;
      /** What is expected on a command line, where there are only strings. */
      readonly keyval?: string;
      readonly short?: boolean;
    }
  | {
      readonly expects: string;
      readonly keyval?: string;
      /** The message names only the last part of the parameter's name. */
      readonly short?: boolean;
    };

const SAFE = BigInt(Number.MAX_SAFE_INTEGER);
type Range = {
  readonly min: bigint;
  readonly max: bigint;
  readonly unsigned: boolean;
  readonly word: string;
  readonly keyval: string;
};

function range(bits: number, options: { readonly unsigned: boolean }): Range {
  const { unsigned } = options;
  const max = (1n << BigInt(unsigned ? bits : bits - 1)) - 1n;
  const word = bits === 64 && unsigned ? 'uint64' : `${unsigned ? 'u' : ''}int${bits}_t`;
  return { min: unsigned ? 0n : -max - 1n, max, unsigned, word, keyval: 'integer' };
}

const RANGES: Readonly<Record<string, Range>> = {
  int: { min: -SAFE, max: SAFE, unsigned: false, word: 'an integer below 2^53', keyval: 'integer' },
  size: { min: 0n, max: SAFE, unsigned: true, word: 'a size below 2^53', keyval: 'size' },
  int8: range(8, { unsigned: false }),
  int16: range(16, { unsigned: false }),
  int32: range(32, { unsigned: false }),
  int64: range(64, { unsigned: false }),
  uint8: range(8, { unsigned: true }),
  uint16: range(16, { unsigned: true }),
  uint32: range(32, { unsigned: true }),
  uint64: range(64, { unsigned: true }),
};

function checkInteger(limits: Range, value: JsonValue): ScalarResult {
  const { unsigned, keyval } = limits;
  const exact =
    typeof value === 'bigint' || (typeof value === 'number' && Number.isSafeInteger(value));
  if (!exact) {
    // A number without an exact value, or no number at all. Unsigned types say so in other words.
    return unsigned ? { expects: 'uint64', keyval } : { expectedType: 'integer', keyval };
  }
  const big = BigInt(value);
  if (big >= limits.min && big <= limits.max) {
    const fits = big >= -SAFE && big <= SAFE;
    // Negative zero is zero.
    return { value: fits ? Number(big) : big };
  }
  const representable = unsigned
    ? big >= 0n && big <= 0xffff_ffff_ffff_ffffn
    : big >= -0x8000_0000_0000_0000n && big <= 0x7fff_ffff_ffff_ffffn;
  if (!representable) {
    return unsigned ? { expects: 'uint64', keyval } : { expectedType: 'integer', keyval };
  }
  return { expects: limits.word, short: true };
}

/** Checks a value against the built-in type `name` (not 'any', which takes everything). */
export function checkBuiltin(name: string, value: JsonValue): ScalarResult {
  switch (name) {
    case 'str':
      return typeof value === 'string' ? { value } : { expectedType: 'string' };
    case 'bool':
      return typeof value === 'boolean'
        ? { value }
        : { expectedType: 'boolean', keyval: "'on' or 'off'" };
    case 'null':
      return value === null ? { value } : { expectedType: 'null' };
    case 'number': {
      const isNumber = typeof value === 'number' || typeof value === 'bigint';
      return isNumber && Number.isFinite(Number(value))
        ? { value: Number(value) }
        : { expectedType: 'number' };
    }
    default: {
      const limits = RANGES[name];
      if (limits === undefined) throw new Error(`no built-in type ${name}`);
      return checkInteger(limits, value);
    }
  }
}

const TRUE_WORDS = ['on', 'yes', 'true', 'y'];
const FALSE_WORDS = ['off', 'no', 'false', 'n'];
const SIZE_UNITS = 'bkmgtpe';

/** '64k', '1.5G', '0x1000': a size in bytes, units of 1024; the text itself when it is none. */
function parseSize(text: string): JsonValue {
  if (/^0x[0-9a-f]+$/i.test(text)) return BigInt(text);
  const match = /^(\d+)(\.\d+)?([bkmgtpe])?$/i.exec(text);
  if (match === null) return text;
  const [, whole = '', fraction = '', unit = 'b'] = match;
  const scale = 1n << BigInt(10 * SIZE_UNITS.indexOf(unit.toLowerCase()));
  if (fraction !== '' && scale === 1n) return text;
  const extra = fraction === '' ? 0n : BigInt(Math.trunc(Number(`0${fraction}`) * Number(scale)));
  return BigInt(whole) * scale + extra;
}

/** An integer in C's notation: decimal, 0x hexadecimal or 0 octal; the text itself when it is none. */
function parseInteger(text: string): JsonValue {
  const match = /^([+-]?)(0x[0-9a-f]+|0[0-7]+|0|[1-9][0-9]*)$/i.exec(text);
  if (match === null) return text;
  const [, sign = '', digits = ''] = match;
  const isOctal = /^0[0-7]+$/.test(digits);
  const value = BigInt(isOctal ? `0o${digits.slice(1)}` : digits);
  return sign === '-' ? -value : value;
}

/**
 * A command line's string as a value of the built-in type `name`; the string itself when it
 * can't be one, for the check that follows to refuse.
 */
export function convertKeyval(name: string, text: string): JsonValue {
  switch (name) {
    case 'str':
    case 'null':
      return text;
    case 'bool':
      if (TRUE_WORDS.includes(text)) return true;
      return FALSE_WORDS.includes(text) ? false : text;
    case 'number':
      return text.trim() !== '' && Number.isFinite(Number(text)) ? Number(text) : text;
    case 'size':
      return parseSize(text);
    default:
      return parseInteger(text);
  }
}
