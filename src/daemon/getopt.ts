// SPDX-License-Identifier: MIT
/**
 * Splits a command line as getopt_long(3) does: `--name value`, `--name=value`, unambiguous
 * abbreviations (`--block`), short options that may be joined (`-hV`). Texts are getopt's.
 */
import { BlockError } from '../base/errors.js';

export type OptionTable = {
  readonly [name: string]: { readonly argument: boolean; readonly short?: string };
};

export interface Argument {
  /** Full name of the option, without dashes. */
  readonly name: string;
  /** '' for an option that takes none. */
  readonly value: string;
  /** As it was written, for messages. */
  readonly place: string;
}

/** @throws BlockError DF_INVALID: an option is unknown, ambiguous, lacks its value or takes none */
export function splitArguments(args: readonly string[], table: OptionTable): Argument[] {
  const result: Argument[] = [];
  const rest = [...args];
  for (;;) {
    const word = rest.shift();
    if (word === undefined) return result;
    if (word === '--') {
      const [extra] = rest;
      if (extra !== undefined) throw invalid(`${extra}: Unexpected argument`);
    } else if (word.startsWith('--')) {
      result.push(longOption(word, rest, table));
    } else if (word.startsWith('-') && word !== '-') {
      result.push(...shortOptions(word, rest, table));
    } else {
      throw invalid(`${word}: Unexpected argument`);
    }
  }
}

function longOption(word: string, rest: string[], table: OptionTable): Argument {
  const equals = word.indexOf('=');
  const given = word.slice(2, equals === -1 ? undefined : equals);
  const name = fullName(given, word, table);
  if (table[name]?.argument !== true) {
    if (equals !== -1) throw invalid(`option '--${name}' doesn't allow an argument`);
    return { name, value: '', place: word };
  }
  if (equals !== -1) return { name, value: word.slice(equals + 1), place: word };
  const value = rest.shift();
  if (value === undefined) throw invalid(`option '--${name}' requires an argument`);
  return { name, value, place: `${word} ${value}` };
}

function fullName(given: string, word: string, table: OptionTable): string {
  if (Object.hasOwn(table, given)) return given;
  const names = Object.keys(table).filter((name) => name.startsWith(given));
  const [name] = names;
  if (name === undefined) throw invalid(`unrecognized option '${word}'`);
  if (names.length > 1) {
    const possibilities = names.map((possible) => ` '--${possible}'`).join('');
    throw invalid(`option '${word}' is ambiguous; possibilities:${possibilities}`);
  }
  return name;
}

function shortOptions(word: string, rest: string[], table: OptionTable): Argument[] {
  const result: Argument[] = [];
  for (let at = 1; at < word.length; at++) {
    const letter = word.charAt(at);
    const found = Object.entries(table).find(([, { short }]) => short === letter);
    if (found === undefined) throw invalid(`invalid option -- '${letter}'`);
    const [name, { argument }] = found;
    if (!argument) {
      result.push({ name, value: '', place: `-${letter}` });
      continue;
    }
    const joined = word.slice(at + 1);
    const value = joined !== '' ? joined : rest.shift();
    if (value === undefined) throw invalid(`option requires an argument -- '${letter}'`);
    result.push({ name, value, place: `-${letter} ${value}` });
    break;
  }
  return result;
}

function invalid(message: string): BlockError {
  return new BlockError('DF_INVALID', message);
}
