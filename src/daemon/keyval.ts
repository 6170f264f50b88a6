// SPDX-License-Identifier: MIT
/**
 * The `key=value,...` syntax of QEMU's command line, reduced to the tree that JSON would give:
 * objects, arrays and, as leaves, strings. The schema turns the strings into what it expects.
 * Error texts are QEMU's, because scripts match on them.
 */
import { BlockError } from '../base/errors.js';

export type KeyvalTree = { [key: string]: KeyvalValue };
export type KeyvalValue = string | KeyvalTree | KeyvalValue[];

export interface KeyvalResult {
  readonly tree: KeyvalTree;
  /** A bare `help` or `?` was among the parameters. */
  readonly help: boolean;
}

/** Longest part of a dotted key, characters; QEMU's bound. */
const FRAGMENT_LENGTH_MAX = 127;
/** A QAPI name, perhaps with a downstream prefix (`__org.example_name`), or decimal digits. */
const FRAGMENT = /^(?:[0-9]+|(?:__[A-Za-z0-9.-]+_)?[A-Za-z][A-Za-z0-9_-]*)/;
const QAPI_NAME = /^(?:__[A-Za-z0-9.-]+_)?[A-Za-z][A-Za-z0-9_-]*/;
const INDEX = /^[0-9]+$/;

/**
 * Parses `text`. The first parameter may leave out `key=` where `impliedKey` is given.
 * `,,` in a value stands for one comma. A key that comes twice is refused (QEMU takes the last):
 * one of the two is a mistake.
 * @throws BlockError DF_INVALID naming the parameter at fault
 */
export function parseKeyval(text: string, options: { impliedKey?: string } = {}): KeyvalResult {
  const root = newTree();
  let help = false;
  let at = 0;
  while (at < text.length) {
    const parameter = readParameter(text, at, at === 0 ? options.impliedKey : undefined);
    at = parameter.next;
    if (parameter.key === undefined) help = true;
    else store(root, parameter.key, parameter.value);
  }
  const tree = listify(root, []);
  if (Array.isArray(tree)) throw invalid("Parameters '*' used inconsistently");
  return { tree, help };
}

type Parameter = { key: string; value: string; next: number } | { key: undefined; next: number };

/** One parameter that starts at `at`; `next` is where the following one starts. */
function readParameter(text: string, at: number, impliedKey: string | undefined): Parameter {
  let end = at;
  while (end < text.length && text[end] !== '=' && text[end] !== ',') end++;
  if (text[end] === '=') {
    const key = text.slice(at, end);
    checkKey(key);
    const { value, next } = readValue(text, end + 1);
    return { key, value, next };
  }
  const word = text.slice(at, end);
  if (word === 'help' || word === '?') return { key: undefined, next: end + 1 };
  // An implied value ends at its first comma: "a,,b" has no meaning here, as in QEMU.
  if (impliedKey !== undefined && word !== '')
    return { key: impliedKey, value: word, next: end + 1 };
  checkKey(word);
  throw invalid(`Expected '=' after parameter '${word}'`);
}

/** The value at `at` up to a comma that is not doubled. */
function readValue(text: string, at: number): { value: string; next: number } {
  let value = '';
  let start = at;
  for (;;) {
    const comma = text.indexOf(',', start);
    if (comma === -1) return { value: value + text.slice(start), next: text.length };
    value += text.slice(start, comma);
    if (text[comma + 1] !== ',') return { value, next: comma + 1 };
    value += ',';
    start = comma + 2;
  }
}

/** Every fragment is a QAPI name or (but for the first) an index, and of sane length. */
function checkKey(key: string): void {
  let rest = key;
  for (let first = true; ; first = false) {
    const fragment = (first ? QAPI_NAME : FRAGMENT).exec(rest)?.[0] ?? '';
    const after = rest.slice(fragment.length);
    if (fragment === '' || (after !== '' && after[0] !== '.')) {
      throw invalid(`Invalid parameter '${key}'`);
    }
    if (fragment.length > FRAGMENT_LENGTH_MAX) {
      const what = fragment === key ? '' : ' fragment';
      throw invalid(`Parameter${what} '${fragment}' is too long`);
    }
    if (after === '') return;
    rest = after.slice(1);
  }
}

/** Fragments of a checked key. A downstream prefix may contain dots, so this is no plain split. */
function fragmentsOf(key: string): string[] {
  const fragments: string[] = [];
  let rest = key;
  for (;;) {
    const fragment = FRAGMENT.exec(rest)?.[0] ?? rest;
    fragments.push(fragment);
    if (fragment.length >= rest.length) return fragments;
    rest = rest.slice(fragment.length + 1);
  }
}

function store(root: KeyvalTree, key: string, value: string): void {
  const fragments = fragmentsOf(key);
  const last = fragments.pop() ?? key;
  let tree = root;
  let path = '';
  for (const fragment of fragments) {
    path += path === '' ? fragment : `.${fragment}`;
    const old = tree[fragment];
    if (typeof old === 'string') throw invalid(`Parameters '${path}.*' used inconsistently`);
    const child: KeyvalTree = old === undefined ? newTree() : (old as KeyvalTree);
    tree[fragment] = child;
    tree = child;
  }
  const old = tree[last];
  if (old !== undefined && typeof old !== 'string') {
    throw invalid(`Parameters '${key}.*' used inconsistently`);
  }
  if (old !== undefined) throw invalid(`Parameter '${key}' is given twice`);
  tree[last] = value;
}

/** Objects whose keys are all indexes become arrays, from the leaves up. */
function listify(tree: KeyvalTree, path: readonly string[]): KeyvalTree | KeyvalValue[] {
  const prefix = path.map((fragment) => `${fragment}.`).join('');
  const elements = new Map<number, KeyvalValue>();
  let members = 0;
  for (const [key, value] of Object.entries(tree)) {
    const child = typeof value === 'object' && !Array.isArray(value);
    const done = child ? listify(value, [...path, key]) : value;
    tree[key] = done;
    if (INDEX.test(key)) elements.set(Number(key), done);
    else members++;
  }
  if (elements.size === 0) return tree;
  if (members > 0) throw invalid(`Parameters '${prefix}*' used inconsistently`);
  const list: KeyvalValue[] = [];
  for (let index = 0; index < elements.size; index++) {
    const element = elements.get(index);
    if (element === undefined) throw invalid(`Parameter '${prefix}${index}' missing`);
    list.push(element);
  }
  return list;
}

/** Without a prototype, so that a key such as `constructor` is a key and nothing else. */
function newTree(): KeyvalTree {
  return Object.create(null) as KeyvalTree;
}

function invalid(message: string): BlockError {
  return new BlockError('DF_INVALID', message);
}
