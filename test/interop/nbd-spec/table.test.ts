// SPDX-License-Identifier: MIT
import { readdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { REQUIREMENTS } from './requirements.js';

const FOLDER = dirname(fileURLToPath(import.meta.url));
const OWN_NAME = 'table.test.ts';

/** Names of all tests in this folder, read from the sources. */
async function testNames(): Promise<string[]> {
  const files = (await readdir(FOLDER)).filter((file) => file.endsWith('.test.ts'));
  const others = files.filter((file) => file !== OWN_NAME);
  const sources = await Promise.all(others.map((file) => readFile(join(FOLDER, file), 'utf8')));
  return sources.flatMap((source) =>
    [...source.matchAll(/\bit\(\s*'([^']+)'/g)].map(([, name]) => name ?? ''),
  );
}

it('has a test for every requirement', async () => {
  const names = new Set(await testNames());
  expect(REQUIREMENTS.filter(({ test }) => !names.has(test))).toEqual([]);
});

it('has a requirement for every test', async () => {
  const tested = new Set(REQUIREMENTS.map(({ test }) => test));
  expect((await testNames()).filter((name) => !tested.has(name))).toEqual([]);
});

it('gives every requirement an identity of its own, and every test a name of its own', async () => {
  const ids = REQUIREMENTS.map(({ id }) => id);
  expect(new Set(ids).size).toBe(ids.length);
  const names = await testNames();
  expect(new Set(names).size).toBe(names.length);
});

it('skips no test', async () => {
  const files = (await readdir(FOLDER)).filter((file) => file.endsWith('.test.ts'));
  for (const file of files.filter((name) => name !== OWN_NAME)) {
    const source = await readFile(join(FOLDER, file), 'utf8');
    expect(source).not.toMatch(/\b(?:it|test|describe)\.(?:skip|todo|only|skipIf|runIf)\b/);
  }
});
