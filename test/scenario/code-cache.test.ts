// SPDX-License-Identifier: MIT
/** The compiled code that the build keeps for the next starts: used when it fits, and only then. */
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { runPeer } from '../support/peers.js';
import { testScope } from '../support/temp.js';

const built = (name: string): string =>
  fileURLToPath(new URL(`../../dist/${name}`, import.meta.url));

/** Loads a program in a process of its own, as the launchers do. */
async function load(filename: string, { save = false, flags = [] as string[] } = {}) {
  const code = `
    const { loadProgram } = require(${JSON.stringify(built('src/daemon/load-program.cjs'))});
    const { cached, saveCache } = loadProgram(${JSON.stringify(filename)});
    if (${save}) saveCache();
    console.log(cached);`;
  const { stdout } = await runPeer(process.execPath, [...flags, '-e', code]);
  return stdout.toString().trim().split('\n');
}

async function program(): Promise<string> {
  const folder = await testScope().tempDir();
  const file = join(folder, 'program.cjs');
  await writeFile(file, text('one'));
  return file;
}

const text = (word: string): string =>
  `function say(word) { console.log(word, __filename.length > 0); }\nsay('${word}');\n`;

it('is taken by the same program', async () => {
  const file = await program();
  expect(await load(file, { save: true })).toEqual(['one true', 'false']);
  expect(await load(file)).toEqual(['one true', 'true']);
});

it('is not taken for another text of the same length', async () => {
  const file = await program();
  await load(file, { save: true });
  await writeFile(file, text('two'));
  expect(await load(file)).toEqual(['two true', 'false']);
});

it('is not taken by a V8 with other flags', async () => {
  const file = await program();
  await load(file, { save: true });
  expect(await load(file, { flags: ['--no-opt'] })).toEqual(['one true', 'false']);
});

it('is not taken when it was cut off', async () => {
  const file = await program();
  await load(file, { save: true });
  const { byteLength } = await readFile(`${file}.cache`);
  for (const length of [0, 3, 4, text('one').length + 4, byteLength - 8]) {
    await truncate(`${file}.cache`, length);
    expect(await load(file), `${length} bytes`).toEqual(['one true', 'false']);
    await load(file, { save: true });
  }
});

it.each(['diskferry', 'diskferryd'])('%s starts with that of its build', async (name) => {
  const code = `
    const { startProgram } = require(${JSON.stringify(built('src/daemon/start-program.cjs'))});
    process.argv = ['node', 'program', '--version'];
    console.log(startProgram('${name}').cached);`;
  const { stdout } = await runPeer(process.execPath, ['-e', code]);
  expect(stdout.toString()).toMatch(/^diskferryd? version [^\n]*\ntrue\n$/);
});
