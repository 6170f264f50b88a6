// SPDX-License-Identifier: MIT
/** The send buffer of a socket, which Node can't set or look into. @see socket(7), tcp(7) */
import { native, SIOCOUTQ } from './linux.js';

const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
/** As SO_SNDBUF, past the system's limit; for the superuser only. */
const SO_SNDBUFFORCE = 32;

const value = Buffer.alloc(4);

/**
 * Lets the kernel take up to `bytes` that the peer has not read yet. Without the right to pass the
 * system's limit it is that limit; a failure changes nothing.
 */
export function setSendBuffer(fd: number, bytes: number): void {
  value.writeInt32LE(bytes);
  if (native.setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, value, value.byteLength) === 0) return;
  native.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, value, value.byteLength);
}

const queued = new Int32Array(1);
const queuedMemory = Buffer.from(queued.buffer);

/**
 * Bytes that were written and that the peer does not have: on TCP its system, on UNIX sockets the
 * program itself. Undefined when `fd` is no socket that can tell.
 */
export function queuedBytes(fd: number): number | undefined {
  return native.ioctl(fd, SIOCOUTQ, queuedMemory) === 0 ? queued[0] : undefined;
}
