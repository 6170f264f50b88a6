// SPDX-License-Identifier: MIT
/** What `npm pack` makes, installed by somebody without a compiler: the programs and the library. */
import { mkdir, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { waitUntil } from '../support/daemon.js';
import { MIB, makeImage, readRange } from '../support/images.js';
import { type InstalledPackage, installPackage, runWithPath, TOOLS } from '../support/package.js';
import { collect, runPeer, spawnTracked } from '../support/peers.js';
import { Scope, testScope } from '../support/temp.js';

const scope = new Scope();
let installed: InstalledPackage;

beforeAll(async () => {
  installed = await installPackage(scope);
}, 180_000);

afterAll(() => scope.close());

const run = (...words: string[]): Promise<string> =>
  runWithPath(installed.env, words, installed.folder);

describe('the package', () => {
  it('holds the built programs and the documentation, and no source, test or script', () => {
    const tops = new Set(installed.files.map((file) => file.split('/').slice(0, 2).join('/')));
    for (const wanted of ['README.md', 'LICENSE', 'CHANGELOG.md', 'package.json', 'dist/bin']) {
      expect(tops).toContain(wanted);
    }
    const others = installed.files.filter(
      (file) => !/^(dist\/(bin|src|protocol)|docs)\/|^[A-Za-z]+\.(md|json)$|^LICENSE$/.test(file),
    );
    expect(others).toEqual([]);
    expect(installed.files.filter((file) => /(?<!\.d)\.[cm]?ts$/.test(file))).toEqual([]);
  });

  it('is made of programs that run where they were built, too', async () => {
    for (const program of ['dist/src/daemon/launch.cjs', 'dist/src/cli/launch.cjs']) {
      expect((await stat(program)).mode & 0o111, program).toBe(0o111);
    }
  });

  it('was installed with no compiler in reach', async () => {
    const tools = ['cc', 'gcc', 'g++', 'clang', 'make', 'python3'];
    const found = await run('sh', '-c', `for t in ${tools.join(' ')}; do command -v $t; done; :`);
    expect(found).toBe('');
  });

  it('brings both commands', async () => {
    const { version } = installed;
    expect(await run('npx', '--no-install', 'diskferryd', '--version')).toContain(
      `diskferryd version ${version} `,
    );
    expect(await run('npx', '--no-install', 'diskferry', '--version')).toBe(
      `diskferry version ${version}\n`,
    );
  });

  it('serves an image that qemu-io writes to and the library reads', async () => {
    const test = testScope();
    const folder = await test.tempDir();
    const [image, socket] = [join(folder, 'disk.img'), join(folder, 'nbd.sock')];
    await makeImage(image, { size: 8 * MIB, data: [{ offset: 0, length: MIB }] });
    const pidfile = join(folder, 'pid');
    const daemon = spawnTracked('/usr/bin/env', [
      `PATH=${installed.env.PATH}`,
      join(installed.folder, 'node_modules/.bin/diskferryd'),
      ...['--blockdev', `file,node-name=disk,filename=${image}`],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--export', 'nbd,id=e,node-name=disk,name=disk,writable=on'],
      ...['--pidfile', pidfile],
    ]);
    const log = collect(daemon.stderr);
    test.defer(() => daemon.kill());
    await waitUntil(() => readRange(pidfile, 0, 1).then(Boolean, () => false), { what: log.text });
    const uri = `nbd+unix:///disk?socket=${socket}`;
    await runPeer('qemu-io', ['-f', 'raw', '-c', 'write -P 7 4M 64k', uri]);
    await writeFile(join(installed.folder, 'read.mjs'), READER);
    const read = JSON.parse(await run('node', 'read.mjs', socket)) as {
      size: number;
      at: number[];
    };
    expect(read).toEqual({ size: 8 * MIB, at: [...(await readRange(image, 0, 4)), 7, 7, 0] });
  });

  it('has types for all its entries that need no others than those of node', async () => {
    const types = join(await testScope().tempDir(), '@types');
    await mkdir(types);
    await symlink(join(TOOLS, '@types/node'), join(types, 'node'));
    const compile = (file: string): Promise<string> =>
      run(
        ...[process.execPath, join(TOOLS, 'typescript/bin/tsc'), '--noEmit', '--strict'],
        ...['--module', 'nodenext', '--target', 'es2022'],
        ...['--typeRoots', types, '--types', 'node', file],
      );
    await writeFile(join(installed.folder, 'user.ts'), USER);
    await compile('user.ts');
    await writeFile(join(installed.folder, 'wrong.ts'), WRONG);
    await expect(compile('wrong.ts')).rejects.toThrow(
      "'number' is not assignable to type 'string'",
    );
  });

  it('can be imported by each entry, and all hold the same', async () => {
    await writeFile(join(installed.folder, 'use.mjs'), IMPORTER);
    const told = await run('node', 'use.mjs');
    expect(told).toBe(`${installed.version} true function 9223372036853727232\n`);
  });
});

const READER = `
import { NbdClient } from 'diskferry/nbd';
const address = { type: 'unix', path: process.argv[2] };
const client = await NbdClient.connect({ address, exportName: 'disk' });
const [start, written, hole] = [Buffer.alloc(4), Buffer.alloc(2), Buffer.alloc(1)];
await client.read(0, start);
await client.read(4 << 20, written);
await client.read(6 << 20, hole);
console.log(JSON.stringify({ size: client.size, at: [...start, ...written, ...hole] }));
await client.close();
`;

const IMPORTER = `
import * as all from 'diskferry';
import { NbdClient, NbdServer } from 'diskferry/nbd';
import { parseJson, QmpClient } from 'diskferry/qmp';
const same = all.NbdClient === NbdClient && all.QmpClient === QmpClient;
console.log(all.VERSION, same, typeof NbdServer, String(parseJson('9223372036853727232')));
`;

const USER = `
import { VERSION, NbdClient as SameClient } from 'diskferry';
import { BlockError, NbdClient, type NbdClientOptions, NbdServer } from 'diskferry/nbd';
import { QmpClient, QmpCommandError } from 'diskferry/qmp';

export async function copyOf(options: NbdClientOptions): Promise<Buffer> {
  const client: SameClient = await NbdClient.connect(options);
  const bytes = Buffer.alloc(client.size);
  await client.read(0, bytes);
  await client.close();
  return bytes;
}

export async function names(path: string): Promise<string> {
  const qmp = await QmpClient.connect({ path });
  try {
    return JSON.stringify(await qmp.execute('query-named-block-nodes', { flat: true }));
  } catch (error) {
    if (error instanceof QmpCommandError) return error.errorClass;
    if (error instanceof BlockError) return error.code;
    throw error;
  } finally {
    qmp.close();
  }
}

export const server: typeof NbdServer = NbdServer;
export const version: string = VERSION;
`;

const WRONG = `
import type { NbdClientOptions } from 'diskferry/nbd';
export const wrong: NbdClientOptions = { address: { type: 'unix', path: '/a' }, exportName: 1 };
`;
