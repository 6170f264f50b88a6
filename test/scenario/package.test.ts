// SPDX-License-Identifier: MIT
/** The package as its users get it: installed from the tarball, on a machine without a compiler. */
import { execFile } from 'node:child_process';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { testScope } from '../support/temp.js';

const run = promisify(execFile);
const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '../..');

/** A PATH on which there is Node, npm and a shell, and nothing that could compile. */
async function pathWithoutCompiler(dir: string): Promise<string> {
  const bin = join(dir, 'bin');
  await mkdir(bin);
  for (const program of ['node', 'npm', 'npx', 'sh', 'env', 'tar', 'uname']) {
    const { stdout } = await run('sh', ['-c', `command -v ${program}`]);
    await symlink(stdout.trim(), join(bin, program));
  }
  return bin;
}

describe('the package', () => {
  it('installs without a compiler, runs, and can be imported', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    // The build is there already; scripts would make it anew under the feet of other tests.
    const packed = await run(
      'npm',
      ['pack', '--ignore-scripts', '--json', '--pack-destination', dir],
      {
        cwd: ROOT,
      },
    );
    const [entry] = JSON.parse(packed.stdout) as { filename: string }[];
    const app = join(dir, 'app');
    await mkdir(app);
    await writeFile(join(app, 'package.json'), '{"name":"app","private":true,"type":"module"}');
    const env = { ...process.env, PATH: await pathWithoutCompiler(dir) };
    const options = { cwd: app, env };
    const tarball = join(dir, entry?.filename ?? '');
    await run('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', tarball], options);
    const version = await run('npx', ['--no-install', 'diskferryd', '--version'], options);
    expect(version.stdout).toMatch(/^diskferryd version \d/);
    const help = await run('npx', ['--no-install', 'diskferry', '--help'], options);
    expect(help.stdout).toContain('migrate');
    await writeFile(
      join(app, 'use.js'),
      `import { NbdClient, NbdServer } from 'diskferry/nbd';
       import { QmpClient, parseJson } from 'diskferry/qmp';
       import * as all from 'diskferry';
       const same = all.NbdClient === NbdClient && all.QmpClient === QmpClient;
       console.log(typeof NbdServer, same, String(parseJson('9223372036853727232')));`,
    );
    const used = await run('node', ['use.js'], options);
    expect(used.stdout.trim()).toBe('function true 9223372036853727232');
  }, 120_000);
});
