// SPDX-License-Identifier: MIT
import { lstat, unlink } from 'node:fs/promises';
import { connect } from 'node:net';
import { errnoName, fromSystemError } from './errors.js';

/**
 * Removes the socket file that a process has left behind, so that its path can be listened on. A
 * socket on which somebody listens stays, and so does what is no socket: they are in the way.
 * @returns whether there was one to remove
 * @throws BlockError when it can't be removed
 */
export async function removeStaleSocket(path: string): Promise<boolean> {
  const refused = await new Promise<boolean>((resolve) => {
    const probe = connect({ path });
    probe.once('connect', () => {
      probe.destroy();
      resolve(false);
    });
    probe.once('error', (error) => resolve(errnoName(error) === 'ECONNREFUSED'));
  });
  if (!refused) return false;
  try {
    if (!(await lstat(path)).isSocket()) return false;
    await unlink(path);
  } catch (error) {
    if (errnoName(error) === 'ENOENT') return false;
    throw fromSystemError(error, `Failed to unlink socket ${path}`, { path });
  }
  return true;
}
