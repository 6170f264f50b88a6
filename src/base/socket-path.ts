// SPDX-License-Identifier: MIT
/** Where a UNIX socket is listened on. */
import { resolve } from 'node:path';
import { BlockError } from './errors.js';
import { UNIX_PATH_MAX } from './limits.js';

/**
 * The absolute form of a path to listen on. The file is removed by that name in the end, and the
 * process may be in another folder by then, where the relative name is somebody else's file.
 * @throws BlockError DF_INVALID: longer than the address of a socket can be, 107 bytes
 */
export function absoluteSocketPath(path: string): string {
  const absolute = resolve(path);
  const length = Buffer.byteLength(absolute);
  if (length <= UNIX_PATH_MAX) return absolute;
  throw new BlockError(
    'DF_INVALID',
    `UNIX socket path '${path}' is too long: '${absolute}' has ${length} bytes, ${UNIX_PATH_MAX} is the limit`,
    { path },
  );
}
