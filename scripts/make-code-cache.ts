// SPDX-License-Identifier: MIT
/**
 * The last step of a build: lets a program do what it is mostly started for and keeps what V8 has
 * compiled for that beside its bundle. `make-code-cache.js NAME`, in a process of its own each.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { startProgram } from '../src/daemon/start-program.cjs';

const MIB = 2 ** 20;
/** How often to look whether the daemon is up. */
const LOOK_MS = 10;
/** Long enough for a daemon to come up on a busy machine. */
const DEADLINE_MS = 60_000;

const { startProgram: start } = createRequire(import.meta.url)(
  '../src/daemon/start-program.cjs',
) as { readonly startProgram: typeof startProgram };

const folder = mkdtempSync(join(tmpdir(), 'diskferry-build-'));
const [source, target] = [join(folder, 'source.img'), join(folder, 'target.qcow2')];
writeFileSync(source, Buffer.alloc(MIB, 1));

const [pidfile, monitor] = [join(folder, 'pid'), join(folder, 'qmp.sock')];

const WORK: Readonly<Record<string, readonly string[]>> = {
  diskferry: ['img', 'convert', '-f', 'raw', '-O', 'qcow2', source, target],
  diskferryd: [
    ...['--blockdev', `raw,node-name=disk,file.driver=file,file.filename=${source}`],
    ...['--nbd-server', `addr.type=unix,addr.path=${join(folder, 'nbd.sock')}`],
    ...['--export', 'nbd,id=e,node-name=disk,name=disk,writable=on'],
    ...['--chardev', `socket,id=m,path=${monitor},server=on,wait=off`],
    ...['--monitor', 'm', '--pidfile', pidfile, '--log-level', 'error'],
  ],
};

const [, script = '', name = ''] = process.argv;
process.argv = [process.execPath, script, ...(WORK[name] ?? [])];
const program = start(name);

process.once('exit', () => {
  rmSync(folder, { recursive: true, force: true });
  if (process.exitCode === undefined || process.exitCode === 0) program?.saveCache();
});
const deadline = setTimeout(() => {
  process.stderr.write(`${name} did not end within ${DEADLINE_MS / 1000} s\n`);
  process.exit(1);
}, DEADLINE_MS);
deadline.unref();

const looking = setInterval(() => {
  if (!existsSync(pidfile)) return;
  clearInterval(looking);
  const client = connect(monitor);
  client.on('error', (error) => process.stderr.write(`${name}: ${error.message}\n`)).resume();
  for (const execute of ['qmp_capabilities', 'query-block-exports', 'quit']) {
    client.write(`${JSON.stringify({ execute })}\n`);
  }
}, LOOK_MS);
if (name !== 'diskferryd') clearInterval(looking);
