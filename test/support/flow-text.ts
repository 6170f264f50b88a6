// SPDX-License-Identifier: MIT
/**
 * Dialogues of management programs as text, one step a line:
 *
 *     -> SIDE COMMAND {ARGUMENTS}   a command; it has to return {}, a query anything
 *     <- JSON                       what the command before returned has to hold all this
 *     <- has [JSON, ...]            each of these is in the list that it returned
 *     <- CLASS "TEXT"               it has to fail in just these words
 *     ~ SIDE JOB: STATES            states that the job goes through next; [some states] may be left out
 *     <= SIDE EVENT {DATA}          the next event of this job or thing, with at least this data
 *     ~! and <=!                    the same, come before the reply to the side's last command
 *     % VERB WORDS                  something that is no QMP; flow-replay.ts has the verbs
 *
 * What a line goes on with is indented. Integers are kept exact, whatever their size.
 */

export type Side = 'src' | 'dst';

/** JSON, in which an integer beyond 15 digits is the text `int:` and its digits. */
export type Json = null | boolean | number | string | readonly Json[] | JsonObject;
export type JsonObject = { readonly [name: string]: Json };

export type FlowStep =
  | { readonly kind: 'command'; readonly side: Side; readonly name: string; readonly args: string }
  | { readonly kind: 'returns'; readonly value: Json; readonly has: boolean }
  | { readonly kind: 'fails'; readonly class: string; readonly desc: string }
  | {
      readonly kind: 'states';
      readonly side: Side;
      readonly job: string;
      readonly states: readonly StateWord[];
      readonly beforeReply: boolean;
    }
  | {
      readonly kind: 'event';
      readonly side: Side;
      readonly name: string;
      readonly data: JsonObject;
      readonly beforeReply: boolean;
    }
  | { readonly kind: 'verb'; readonly verb: string; readonly words: readonly string[] };

/** States in a row; optional ones come all or not at all. */
export interface StateWord {
  readonly states: readonly string[];
  readonly optional: boolean;
}

export interface FlowLine {
  readonly text: string;
  readonly step: FlowStep;
}

/** Parses JSON without rounding its integers. @throws SyntaxError */
export function parseExact(text: string): Json {
  return JSON.parse(text.replace(/([:[,]\s*)(-?\d{16,})(?=\s*[,}\]])/g, '$1"int:$2"')) as Json;
}

/** @throws Error with the line that is in none of the forms above */
export function parseFlow(text: string): FlowLine[] {
  return text
    .replace(/\n +(?=\S)/g, ' ')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => ({ text: line, step: parseStep(line) }));
}

function parseStep(line: string): FlowStep {
  const [sign = '', ...rest] = line.split(/\s+/);
  const body = line.slice(sign.length).trim();
  if (sign === '%') {
    const words = body.match(/"[^"]*"|\S+/g) ?? [];
    const [verb = '', ...others] = words.map((word) => word.replaceAll('"', ''));
    return { kind: 'verb', verb, words: others };
  }
  if (sign === '<-') return parseReply(body);
  const [side, name = ''] = rest;
  if (side !== 'src' && side !== 'dst') throw new Error(`no side in: ${line}`);
  const tail = body.replace(/^\S+\s+\S+\s*/, '');
  const beforeReply = sign.endsWith('!');
  switch (sign.replace('!', '')) {
    case '->':
      return { kind: 'command', side, name, args: tail };
    case '~':
      return {
        kind: 'states',
        side,
        job: name.slice(0, -1),
        states: parseStates(tail),
        beforeReply,
      };
    case '<=': {
      const data = tail === '' ? {} : (parseExact(tail) as JsonObject);
      return { kind: 'event', side, name, data, beforeReply };
    }
    default:
      throw new Error(`not a step: ${line}`);
  }
}

function parseReply(body: string): FlowStep {
  const failure = /^([A-Z]\w+) "(.*)"$/.exec(body);
  if (failure) return { kind: 'fails', class: failure[1] ?? '', desc: failure[2] ?? '' };
  const has = body.startsWith('has ');
  return { kind: 'returns', value: parseExact(has ? body.slice(4) : body), has };
}

function parseStates(text: string): StateWord[] {
  return [...text.matchAll(/\[([^\]]*)\]|(\S+)/g)].map(([, group, single = '']) =>
    group === undefined
      ? { states: [single], optional: false }
      : { states: group.split(' '), optional: true },
  );
}

/**
 * True when `actual` has all that `wanted` has; lists have to be of one length, and a text that
 * starts with ~ is a regular expression.
 */
export function holds(actual: Json | undefined, wanted: Json): boolean {
  if (Array.isArray(wanted)) {
    return (
      Array.isArray(actual) &&
      actual.length === wanted.length &&
      wanted.every((item: Json, i) => holds(actual[i] as Json, item))
    );
  }
  if (typeof wanted === 'string' && wanted.startsWith('~')) {
    return typeof actual === 'string' && new RegExp(wanted.slice(1)).test(actual);
  }
  if (typeof wanted !== 'object' || wanted === null) return actual === wanted;
  if (typeof actual !== 'object' || actual === null || Array.isArray(actual)) return false;
  const object = actual as JsonObject;
  return Object.entries(wanted).every(([name, value]) => holds(object[name], value));
}
