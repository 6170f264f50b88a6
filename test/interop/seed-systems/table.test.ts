// SPDX-License-Identifier: MIT
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { ROWS, SECTIONS } from './rows.js';

const TESTS = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** Titles of the tests of a file, as far as a `${`, read from its source. */
function titlesOf(file: string): string[] {
  const source = readFileSync(join(TESTS, file), 'utf8');
  const calls = /\b(?:it|test|describe)(?:\.each\b[\s\S]*?\))?\(\s*(?:'([^'\n]+)'|`([^`\n]+)`)/g;
  return [...source.matchAll(calls)].map(([, plain, template = '']) => plain ?? cut(template));
}

const cut = (template: string): string => template.slice(0, template.indexOf('{'));

/** Is there the test that the table names? */
function exists(test: string): boolean {
  const at = test.indexOf(': ');
  const file = at < 0 ? test : test.slice(0, at);
  if (!existsSync(join(TESTS, file))) return false;
  if (at < 0) return file.endsWith('.flow');
  return titlesOf(file).includes(test.slice(at + 2));
}

it('has a row for every number', () => {
  const numbers = Object.entries(SECTIONS).flatMap(([section, count]) =>
    Array.from({ length: count }, (_, at) => `${section}.${at + 1}`),
  );
  expect(Object.keys(ROWS).toSorted()).toEqual(numbers.toSorted());
});

it('names a test that is there, or why there is none', () => {
  const wrong = Object.entries(ROWS).flatMap(([number, { tests, later }]) => {
    const missing = tests.filter((test) => !exists(test));
    const empty = tests.length === 0 && (later ?? '') === '';
    return missing.length > 0 || empty ? [{ number, missing }] : [];
  });
  expect(wrong).toEqual([]);
});

it('uses every dialogue beside it and of the guides', () => {
  const named = new Set(Object.values(ROWS).flatMap(({ tests }) => tests));
  const flows = ['interop/seed-003', 'interop/seed-systems'].flatMap((folder) =>
    readdirSync(join(TESTS, folder))
      .filter((name) => name.endsWith('.flow'))
      .map((name) => `${folder}/${name}`),
  );
  expect(flows.filter((name) => !named.has(name))).toEqual([]);
});

it('leaves to later only what the plan leaves to later', () => {
  const waiting = Object.entries(ROWS).flatMap(([number, { later }]) => (later ? [number] : []));
  expect(waiting).toEqual(['7.2', '7.3', '7.5']);
});
