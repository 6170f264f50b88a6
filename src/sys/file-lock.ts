// SPDX-License-Identifier: MIT
/** An exclusive lock on a whole file: PID files. @see fcntl(2) "Open file description locks" */
import { fromSystemError } from '../base/errors.js';
import { EACCES, EAGAIN, F_OFD_SETLK, F_WRLCK, lastErrno, native, SystemError } from './linux.js';

/** Size of struct flock on 64-bit Linux; a length of 0 means to the end of the file. */
const FLOCK_BYTES = 32;

/**
 * Locks the file for as long as the descriptor is open, without waiting.
 * @returns false when another open file has a lock on it
 * @throws BlockError when the file system can't lock
 */
export function tryLockFile(fd: number): boolean {
  const flock = Buffer.alloc(FLOCK_BYTES);
  flock.writeInt16LE(F_WRLCK, 0);
  if (native.fcntl(fd, F_OFD_SETLK, flock) === 0) return true;
  const errno = lastErrno();
  if (errno === EAGAIN || errno === EACCES) return false;
  throw fromSystemError(new SystemError(errno, 'fcntl'), 'cannot lock the file');
}
