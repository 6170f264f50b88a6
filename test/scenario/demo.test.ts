// SPDX-License-Identifier: MIT
/** scripts/demo: a disk moves under a client that writes, and nothing is left behind. */
import { once } from 'node:events';
import { chmod, readdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { waitUntil } from '../support/daemon.js';
import { collect, runPeer, spawnTracked, tryPeer } from '../support/peers.js';
import { testScope } from '../support/temp.js';

const DEMO = fileURLToPath(new URL('../../dist/scripts/demo.js', import.meta.url));
const SCRIPT = fileURLToPath(new URL('../../scripts/demo', import.meta.url));

/** Command lines of the processes whose arguments name a folder. */
async function processesThatName(folder: string): Promise<string[]> {
  const { stdout } = await runPeer('ps', ['-eo', 'args']);
  return stdout.split('\n').filter((line) => line.includes(folder));
}

describe('the demonstration', () => {
  it('ends with identical images, without an error for the client, and cleans up', async () => {
    const folder = await testScope().tempDir();
    const { stdout } = await runPeer(process.execPath, [DEMO], { env: { TMPDIR: folder } });
    expect(stdout).toMatch(/^migrated: 'disk' is now at /m);
    expect(stdout).toMatch(/^ +writes acknowledged meanwhile +[1-9]\d*$/m);
    expect(stdout).toMatch(/^ +writes acknowledged after the pivot +[1-9]\d*$/m);
    expect(stdout).toMatch(/^ +errors that the client saw +0$/m);
    expect(stdout).toMatch(/: identical\n$/);
    expect(await readdir(folder)).toEqual([]);
    expect(await processesThatName(folder)).toEqual([]);
  });

  it('cleans up when it is interrupted', async () => {
    const folder = await testScope().tempDir();
    const child = spawnTracked(process.execPath, [DEMO], { env: { TMPDIR: folder } });
    const output = collect(child.stdout);
    const ended = once(child, 'close') as Promise<[number | null]>;
    await waitUntil(() => output.text().includes('diskferry migrate'), { what: output.text });
    child.kill('SIGINT');
    expect((await ended)[0]).toBe(1);
    expect(await readdir(folder)).toEqual([]);
    expect(await processesThatName(folder)).toEqual([]);
  });
});

describe('scripts/demo', () => {
  it.each([
    ['node is too old', 'echo v18.20.0; exit 1', 'needs Node.js 20.19 or newer; this is v18.20.0'],
    ['node is missing', undefined, 'needs Node.js 20.19 or newer: https://nodejs.org'],
  ])('says so when %s', async (_, node, text) => {
    const folder = await testScope().tempDir();
    for (const program of ['bash', 'dirname']) {
      await symlink(`/usr/bin/${program}`, join(folder, program));
    }
    if (node !== undefined) {
      await writeFile(join(folder, 'node'), `#!/usr/bin/bash\n${node}\n`);
      await chmod(join(folder, 'node'), 0o755);
    }
    const run = ['-i', `PATH=${folder}`, '/usr/bin/bash', SCRIPT];
    const { code, stderr } = await tryPeer('env', run);
    expect(code).toBe(1);
    expect(stderr).toContain(text);
  });
});
