// SPDX-License-Identifier: MIT
/**
 * QEMU's image locks: one byte of the file for each permission that a process takes, one for each that
 * it does not share. Holders take read locks, which don't exclude each other; whether somebody's lock
 * stands in the way is found by asking for a write lock without taking it. They belong to the open
 * file description, so closing the descriptor gives them up.
 */
import { BlockError } from '../base/errors.js';
import {
  EACCES,
  EAGAIN,
  F_OFD_GETLK,
  F_OFD_SETLK,
  F_RDLCK,
  F_UNLCK,
  F_WRLCK,
  lastErrno,
  native,
  SystemError,
} from './linux.js';

/** Byte of the first permission that is taken, and of the first that is not shared. */
const TAKEN_BASE = 100;
const UNSHARED_BASE = 200;
/** A permission's place in the list is its byte's place after the base. */
export type LockNames = readonly string[];

export interface LockSet {
  /** Bit n: the n-th permission is taken. */
  readonly taken: number;
  /** Bit n: others may take the n-th permission. */
  readonly shared: number;
}

/** struct flock on 64-bit Linux: type, whence (16 bit), start, length (64 bit, at 8 and 16), pid. */
const flock = new DataView(new ArrayBuffer(32));
const flockBytes = new Uint8Array(flock.buffer);
const LITTLE_ENDIAN = true;

export class ImageLocks {
  #taken = 0;
  #unshared = 0;
  readonly #fd: number;
  readonly #path: string;
  readonly #names: LockNames;

  /** @param names of the permissions in the order of their bits, for error texts */
  constructor(fd: number, path: string, names: LockNames) {
    this.#fd = fd;
    this.#path = path;
    this.#names = names;
  }

  /** Takes the locks that are missing; gives up none. @throws BlockError DF_LOCKED */
  add({ taken, shared }: LockSet): void {
    for (let bit = 0; bit < this.#names.length; bit++) {
      const mask = 1 << bit;
      if ((taken & ~this.#taken & mask) !== 0) {
        this.#lock(TAKEN_BASE + bit);
        this.#taken |= mask;
      }
    }
    for (let bit = 0; bit < this.#names.length; bit++) {
      const mask = 1 << bit;
      if ((~shared & ~this.#unshared & mask) !== 0) {
        this.#lock(UNSHARED_BASE + bit);
        this.#unshared |= mask;
      }
    }
  }

  /**
   * Looks for locks of others that exclude this set. After `add`, so that of two processes that do
   * both at once at least one sees the other.
   * @throws BlockError DF_LOCKED in QEMU's words
   */
  check({ taken, shared }: LockSet): void {
    this.#names.forEach((name, bit) => {
      if ((taken & (1 << bit)) === 0) return;
      if (this.#excluded(UNSHARED_BASE + bit)) throw this.#locked(`Failed to get "${name}" lock`);
    });
    this.#names.forEach((name, bit) => {
      if ((shared & (1 << bit)) !== 0) return;
      if (this.#excluded(TAKEN_BASE + bit)) {
        throw this.#locked(`Failed to get shared "${name}" lock`);
      }
    });
  }

  /** Gives up what is not in the set. A failure leaves too much locked, which harms no data. */
  reduce({ taken, shared }: LockSet): void {
    for (let bit = 0; bit < this.#names.length; bit++) {
      const mask = 1 << bit;
      if ((this.#taken & ~taken & mask) !== 0 && this.#unlock(TAKEN_BASE + bit)) {
        this.#taken &= ~mask;
      }
      if ((this.#unshared & shared & mask) !== 0 && this.#unlock(UNSHARED_BASE + bit)) {
        this.#unshared &= ~mask;
      }
    }
  }

  #lock(byte: number): void {
    fill(F_RDLCK, byte);
    if (native.fcntl(this.#fd, F_OFD_SETLK, flockBytes) === 0) return;
    const errno = lastErrno();
    // Somebody holds a write lock there: common enough to need no cause.
    const conflict = errno === EAGAIN || errno === EACCES;
    throw this.#locked(
      `Failed to lock byte ${byte}`,
      conflict ? undefined : new SystemError(errno, 'fcntl'),
    );
  }

  #unlock(byte: number): boolean {
    fill(F_UNLCK, byte);
    return native.fcntl(this.#fd, F_OFD_SETLK, flockBytes) === 0;
  }

  #excluded(byte: number): boolean {
    fill(F_WRLCK, byte);
    if (native.fcntl(this.#fd, F_OFD_GETLK, flockBytes) < 0) {
      throw this.#locked(`Failed to test lock byte ${byte}`, new SystemError(lastErrno(), 'fcntl'));
    }
    return flock.getInt16(0, LITTLE_ENDIAN) !== F_UNLCK;
  }

  #locked(message: string, cause?: SystemError): BlockError {
    const context = {
      path: this.#path,
      hint: `Is another process using the image [${this.#path}]?`,
    };
    return new BlockError('DF_LOCKED', message, context, cause === undefined ? {} : { cause });
  }
}

function fill(type: number, byte: number): void {
  flockBytes.fill(0);
  flock.setInt16(0, type, LITTLE_ENDIAN);
  flock.setBigInt64(8, BigInt(byte), LITTLE_ENDIAN);
  flock.setBigInt64(16, 1n, LITTLE_ENDIAN);
}
