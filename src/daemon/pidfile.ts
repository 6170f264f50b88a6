// SPDX-License-Identifier: MIT
/**
 * `--pidfile`: the process ID, for scripts. The file is locked while the daemon lives, so that a file
 * left by a killed daemon is taken over, and that of a living one is refused.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  realpathSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { BlockError, errnoName, fromSystemError } from '../base/errors.js';
import { PIDFILE_RACE_TRIES } from '../base/limits.js';

export interface PidFileOptions {
  readonly path: string;
  readonly pid: number;
  /**
   * Takes an exclusive lock on the whole file for as long as the descriptor is open, without
   * waiting. False: another process holds one.
   */
  readonly tryLock: (fd: number) => boolean;
}

export interface PidFile {
  /** Removes the file and gives up the lock. May be called again; never throws. */
  remove(): void;
}

/**
 * Creates and locks the file, and writes `pid` and a line feed into it.
 * @throws BlockError: `cannot create PID file: ...`; DF_IN_USE when a living process has it locked
 */
export function createPidFile(options: PidFileOptions): PidFile {
  const fd = openLocked(options);
  let path = options.path;
  try {
    ftruncateSync(fd, 0);
    writeSync(fd, `${options.pid}\n`);
    // The daemon changes its directory later; the file must be found again at the end.
    path = realpathSync(options.path);
  } catch (error) {
    discard(path, fd);
    throw refused(error);
  }
  let present = true;
  return {
    remove() {
      if (!present) return;
      present = false;
      discard(path, fd);
    },
  };
}

function openLocked(options: PidFileOptions): number {
  for (let tries = 0; tries < PIDFILE_RACE_TRIES; tries++) {
    const fd = openForWriting(options.path);
    let kept = false;
    try {
      // What is removed at the end has to be ours: /dev/null is everybody's.
      if (!fstatSync(fd).isFile()) {
        throw new BlockError(
          'DF_INVALID',
          `cannot create PID file: '${options.path}' is not a regular file`,
        );
      }
      if (!options.tryLock(fd)) {
        throw new BlockError('DF_IN_USE', 'cannot create PID file: another process has it locked');
      }
      // Its owner may have removed it between our open and our lock: then we hold a dead file.
      kept = isSameFile(options.path, fd);
      if (kept) return fd;
    } finally {
      if (!kept) closeSync(fd);
    }
  }
  throw new BlockError('DF_IN_USE', 'cannot create PID file: others keep replacing it');
}

function openForWriting(path: string): number {
  try {
    // O_NONBLOCK: a FIFO without a reader is refused (ENXIO) instead of waited for.
    return openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_NONBLOCK, 0o600);
  } catch (error) {
    throw refused(error);
  }
}

function isSameFile(path: string, fd: number): boolean {
  const ours = fstatSync(fd);
  try {
    const now = statSync(path);
    return now.ino === ours.ino && now.dev === ours.dev;
  } catch (error) {
    if (errnoName(error) === 'ENOENT') return false;
    throw refused(error);
  }
}

/** Removes before it unlocks: whoever opens the path afterwards makes a file of their own. */
function discard(path: string, fd: number): void {
  for (const step of [() => unlinkSync(path), () => closeSync(fd)]) {
    try {
      step();
    } catch {
      // Gone already, or its folder is read-only now: the lock dies with the process anyway.
    }
  }
}

function refused(error: unknown): BlockError {
  return fromSystemError(error, 'cannot create PID file');
}
