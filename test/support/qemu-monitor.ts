// SPDX-License-Identifier: MIT
/** Monitors of the real programs, for the same dialogue with them and with us. */
import { join } from 'node:path';
import { startDaemon } from './daemon.js';
import { untilMonitor } from './listening.js';
import { spawnTracked } from './peers.js';
import type { QmpClient } from './qmp-client.js';
import type { Scope } from './temp.js';

export type QmpPeer = 'diskferryd' | 'qemu-storage-daemon' | 'qemu-system-x86_64';

/** A fresh process with nothing in it, ended with the scope. */
export async function startMonitor(scope: Scope, peer: QmpPeer): Promise<QmpClient> {
  if (peer === 'diskferryd') return (await startDaemon(scope, [])).qmp(scope);
  const path = join(await scope.tempDir(), 'qmp.sock');
  const args =
    peer === 'qemu-storage-daemon'
      ? ['--chardev', `socket,id=c,path=${path},server=on,wait=off`, '--monitor', 'chardev=c']
      : ['-machine', 'none', '-nodefaults', '-display', 'none', '-S'].concat([
          '-qmp',
          `unix:${path},server=on,wait=off`,
        ]);
  const child = spawnTracked(peer, args);
  scope.defer(() => void child.kill('SIGKILL'));
  const monitor = await untilMonitor(child, path);
  scope.defer(() => monitor.close());
  return monitor;
}

export interface DialogueStep {
  readonly execute: string;
  readonly arguments?: object;
  /** Waits afterwards for the job's state, by event. */
  readonly until?: { readonly id: string; readonly status: string };
}

/**
 * Has the dialogue, and tells what was said: an entry for every reply (its error, or its result where
 * `query` starts the command's name), and the events in their order, without time stamps.
 */
export async function converse(
  qmp: QmpClient,
  steps: readonly DialogueStep[],
): Promise<{ readonly replies: unknown[]; readonly events: unknown[] }> {
  const replies: unknown[] = [];
  for (const { execute, arguments: args, until } of steps) {
    const reply = await qmp.reply(execute, args);
    const result = execute.startsWith('query') ? reply.return : 'ok';
    replies.push([execute, reply.error ?? result]);
    if (until === undefined) continue;
    const { id, status } = until;
    await qmp.event('JOB_STATUS_CHANGE', (data) => data.id === id && data.status === status);
  }
  return { replies, events: qmp.events.map(({ event, data }) => [event, data]) };
}
