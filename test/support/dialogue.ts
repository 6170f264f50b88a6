// SPDX-License-Identifier: MIT
/** One dialogue with our daemon and with qemu-storage-daemon, each with images of its own. */
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { startDaemon, waitUntil } from './daemon.js';
import { spawnTracked } from './peers.js';
import { QmpClient } from './qmp-client.js';
import { type Scope, testScope } from './temp.js';

export interface Talk {
  readonly qmp: QmpClient;
  /** Where the images are. */
  readonly dir: string;
}

/** Makes images in a folder of its own; `args` are the daemon's options that open them. */
export type MakeImages = (scope: Scope) => Promise<{ dir: string; args: string[] }>;

async function ours(scope: Scope, make: MakeImages): Promise<Talk> {
  const { dir, args } = await make(scope);
  const daemon = await startDaemon(scope, args);
  return { qmp: await daemon.qmp(scope), dir };
}

async function theirs(scope: Scope, make: MakeImages): Promise<Talk> {
  const { dir, args } = await make(scope);
  const path = join(dir, 'qmp.sock');
  const monitor = ['--chardev', `socket,id=m,path=${path},server=on,wait=off`];
  const pidfile = join(dir, 'pid');
  const server = spawnTracked('qemu-storage-daemon', [
    ...[...args, ...monitor, '--monitor', 'chardev=m', '--pidfile', pidfile],
  ]);
  const ended = once(server, 'close');
  scope.defer(async () => {
    server.kill('SIGKILL');
    await ended;
  });
  await waitUntil(() => existsSync(pidfile), { what: () => 'qemu-storage-daemon to start' });
  const qmp = await QmpClient.connect(path);
  scope.defer(() => qmp.close());
  return { qmp, dir };
}

/** Says the same to both; what the dialogue returns has to be equal. */
export async function sayToBoth<T>(
  make: MakeImages,
  dialogue: (talk: Talk) => Promise<T>,
): Promise<T> {
  const mine = await dialogue(await ours(testScope(), make));
  const other = await dialogue(await theirs(testScope(), make));
  expect(mine).toEqual(other);
  return mine;
}
