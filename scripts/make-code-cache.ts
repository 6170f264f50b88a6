// SPDX-License-Identifier: MIT
/**
 * The last step of a build: lets a program do what it is mostly started for and keeps what V8 has
 * compiled for that beside its bundle. `make-code-cache.js NAME`, in a process of its own each.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { startProgram } from '../src/daemon/start-program.cjs';
import { NbdClient } from '../src/nbd.js';
import { QmpClient } from '../src/qmp.js';

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
const [copy, nbd] = [join(folder, 'copy.img'), join(folder, 'nbd.sock')];
writeFileSync(source, Buffer.alloc(MIB, 1));
writeFileSync(copy, Buffer.alloc(MIB));

const [pidfile, monitor] = [join(folder, 'pid'), join(folder, 'qmp.sock')];

const WORK: Readonly<Record<string, readonly string[]>> = {
  diskferry: ['img', 'convert', '-f', 'raw', '-O', 'qcow2', source, target],
  diskferryd: [
    ...['--blockdev', `raw,node-name=disk,file.driver=file,file.filename=${source}`],
    ...['--nbd-server', `addr.type=unix,addr.path=${nbd}`],
    ...['--export', 'nbd,id=e,node-name=disk,name=disk,writable=on'],
    ...['--chardev', `socket,id=m,path=${monitor},server=on,wait=off`],
    ...['--monitor', 'm', '--pidfile', pidfile, '--log-level', 'error'],
  ],
};

const [, script = '', name = ''] = process.argv;
process.argv = [process.execPath, script, ...(WORK[name] ?? [])];
const program = start(name);

/** What a daemon does for its users: requests of a client, a backup of what changed, a mirror, all over NBD. */
async function work(): Promise<void> {
  const guest = await NbdClient.connect({
    address: { type: 'unix', path: nbd },
    exportName: 'disk',
  });
  const qmp = await QmpClient.connect({ path: monitor });
  const ended = (id: string, event: string): Promise<void> =>
    new Promise((resolve) => {
      qmp.onEvent(({ name, data }) => {
        if (name === event && data.device === id) resolve();
      });
    });
  await guest.write(0, Buffer.alloc(4096, 2));
  await guest.read(0, Buffer.alloc(65536));
  await qmp.execute('query-block-exports');
  const file = { driver: 'file', filename: copy } as const;
  await qmp.execute('blockdev-add', { driver: 'raw', 'node-name': 'copy', file });
  const exported = { type: 'nbd', id: 'copy', 'node-name': 'copy', name: 'copy', writable: true };
  await qmp.execute('block-export-add', exported);
  const server = { type: 'unix', path: nbd };
  const target = { driver: 'nbd', 'node-name': 'target', server, export: 'copy' };
  await qmp.execute('blockdev-add', target);
  await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'changes' });
  await guest.write(0, Buffer.alloc(65536, 3));
  const nodes = { device: 'disk', target: 'target' };
  const bitmap = { sync: 'incremental', bitmap: 'changes' };
  const backedUp = ended('backup', 'BLOCK_JOB_COMPLETED');
  await qmp.execute('blockdev-backup', { 'job-id': 'backup', ...nodes, ...bitmap });
  await backedUp;
  const [ready, cancelled] = [
    ended('mirror', 'BLOCK_JOB_READY'),
    ended('mirror', 'BLOCK_JOB_COMPLETED'),
  ];
  await qmp.execute('blockdev-mirror', { 'job-id': 'mirror', ...nodes, sync: 'full' });
  await ready;
  await qmp.execute('block-job-cancel', { device: 'mirror' });
  await cancelled;
  await guest.close();
  await qmp.execute('blockdev-del', { 'node-name': 'target' });
  await qmp.execute('quit');
  qmp.close();
}

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
  work().catch((error: unknown) => {
    process.stderr.write(`${name}: ${error instanceof Error ? error.stack : String(error)}\n`);
    process.exit(1);
  });
}, LOOK_MS);
if (name !== 'diskferryd') clearInterval(looking);
