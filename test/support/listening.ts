// SPDX-License-Identifier: MIT
/** Servers that are ready when somebody can connect: their socket's file is there before that. */
import type { ChildProcess } from 'node:child_process';
import { connect } from 'node:net';
import { waitUntil } from './daemon.js';

/** Connects to a UNIX socket and hangs up. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/**
 * Waits until a server takes connections. It sees one that says nothing, so it has to be one that
 * serves more than one client.
 * @throws Error when the server ends first, or takes too long
 */
export async function untilListens(child: ChildProcess, path: string): Promise<void> {
  const program = child.spawnargs.join(' ');
  const ended = (): boolean => child.exitCode !== null || child.signalCode !== null;
  await waitUntil(async () => (await answers(path)) || ended(), {
    what: () => `${program} to listen on ${path}`,
  });
  if (ended()) throw new Error(`${program} ended with ${child.exitCode ?? child.signalCode}`);
}
