// SPDX-License-Identifier: MIT
/** Servers that are ready when somebody can connect: their socket's file is there before that. */
import type { ChildProcess } from 'node:child_process';
import { connect } from 'node:net';
import { waitUntil } from './daemon.js';
import { QmpClient } from './qmp-client.js';

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

/** Tries until it succeeds. @throws Error when the process ends first, or it takes too long */
async function until<T>(
  child: ChildProcess,
  path: string,
  attempt: () => Promise<T | undefined>,
): Promise<T> {
  const program = child.spawnargs.join(' ');
  const ended = (): boolean => child.exitCode !== null || child.signalCode !== null;
  let result: T | undefined;
  const done = async (): Promise<boolean> => {
    result = await attempt();
    return result !== undefined || ended();
  };
  await waitUntil(done, { what: () => `${program} to listen on ${path}` });
  if (result !== undefined) return result;
  throw new Error(`${program} ended with ${child.exitCode ?? child.signalCode}`);
}

/**
 * Waits until a server takes connections. It sees one that says nothing, so it has to be one that
 * serves more than one client.
 */
export async function untilListens(child: ChildProcess, path: string): Promise<void> {
  await until(child, path, async () => ((await answers(path)) ? true : undefined));
}

/** Connects to a monitor as soon as its program listens; the caller closes the connection. */
export function untilMonitor(child: ChildProcess, path: string): Promise<QmpClient> {
  return until(child, path, () => QmpClient.connect(path).catch(() => undefined));
}
