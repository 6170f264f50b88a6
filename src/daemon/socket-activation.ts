// SPDX-License-Identifier: MIT
/** Sockets that a service manager opened for us. @see sd_listen_fds(3) for the variables */
import { BlockError } from '../base/errors.js';
import { ACTIVATION_FDS_MAX } from '../base/limits.js';

export interface ActivationSocket {
  readonly fd: number;
  /** From the socket unit's `FileDescriptorName=`; undefined where none was given. */
  readonly name?: string;
}

/** The first descriptor that is passed; they follow each other. */
const FIRST_FD = 3;

/**
 * The sockets passed to process `pid`; none when the variables are absent or meant for another
 * process. Removes the variables from `env`, so that nothing we start takes them for its own.
 * @throws BlockError DF_INVALID when `LISTEN_FDS` is no sensible count
 */
export function takeActivationSockets(
  env: Record<string, string | undefined>,
  pid: number,
): ActivationSocket[] {
  const { LISTEN_PID: owner, LISTEN_FDS: count, LISTEN_FDNAMES: names } = env;
  delete env.LISTEN_PID;
  delete env.LISTEN_FDS;
  delete env.LISTEN_FDNAMES;
  if (owner === undefined || count === undefined || owner !== String(pid)) return [];
  if (!/^[0-9]{1,6}$/.test(count) || Number(count) > ACTIVATION_FDS_MAX) {
    throw new BlockError('DF_INVALID', `LISTEN_FDS='${count}' is no count of sockets`);
  }
  const nameList = names === undefined ? [] : names.split(':');
  return Array.from({ length: Number(count) }, (_, index) => {
    const name = nameList[index];
    const fd = FIRST_FD + index;
    return name !== undefined && name !== '' ? { fd, name } : { fd };
  });
}
