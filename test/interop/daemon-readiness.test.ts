// SPDX-License-Identifier: MIT
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { daemonCommand } from '../support/daemon.js';
import { spawnTracked } from '../support/peers.js';
import { testScope } from '../support/temp.js';

/** Enough options that a pid file written too early is there for a while before they are done. */
const NODES = 200;

test('the pid file appears only when all that the options ask for is there', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  const [pidfile, socket] = [join(dir, 'pid'), join(dir, 'nbd.sock')];
  const nodes = Array.from({ length: NODES }, (_, i) => [
    '--blockdev',
    `driver=null-co,node-name=n${i},size=4096`,
  ]);
  const { program, args } = daemonCommand();
  const child = spawnTracked(program, [
    ...args,
    ...['--pidfile', pidfile],
    ...nodes.flat(),
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
  ]);
  child.stdout?.resume();
  child.stderr?.resume();
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
  scope.defer(() => child.kill('SIGKILL'));
  while (!existsSync(pidfile) && child.exitCode === null) await nextTurn();
  expect(existsSync(socket), 'the socket of the NBD server, which is the last option').toBe(true);
  child.kill('SIGTERM');
  expect(await ended).toBe(0);
  expect([existsSync(pidfile), existsSync(socket)]).toEqual([false, false]);
});
