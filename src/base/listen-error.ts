// SPDX-License-Identifier: MIT
import { existsSync } from 'node:fs';
import path from 'node:path';
import { errnoName } from './errors.js';

/**
 * Why a UNIX socket can't be listened on: Node says EACCES, as on Windows, where the system said ENOENT.
 * @param address of the socket; undefined for others
 */
export function listenError(error: Error, address: string | undefined): Error {
  if (address === undefined || errnoName(error) !== 'EACCES') return error;
  if (existsSync(path.dirname(address))) return error;
  return Object.assign(new Error('no such directory'), {
    code: 'ENOENT',
    syscall: 'listen',
  });
}
