// SPDX-License-Identifier: MIT
/**
 * The Linux calls that Node lacks: one table of functions, and the constants that they take.
 * Called plainly they run on the event loop; through `inPool` on libuv's thread pool.
 */
import { constants } from 'node:os';
import { getSystemErrorName } from 'node:util';
import koffi from 'koffi';

/** A C function. Arguments that are buffers are passed by address and must not be resized meanwhile. */
export interface NativeCall<A extends unknown[]> {
  (...args: A): number;
  async(...args: [...A, (error: unknown, result: number) => void]): void;
}

const libc = koffi.load(null);

function declare<A extends unknown[]>(prototype: string): NativeCall<A> {
  return libc.func(prototype) as unknown as NativeCall<A>;
}

type Descriptor = number;

export const native = {
  preadv2: declare<[Descriptor, Uint8Array, number, number, number]>(
    'long preadv2(int fd, void *iov, int iovcnt, int64_t offset, int flags)',
  ),
  pwritev2: declare<[Descriptor, Uint8Array, number, number, number]>(
    'long pwritev2(int fd, void *iov, int iovcnt, int64_t offset, int flags)',
  ),
  pread: declare<[Descriptor, Uint8Array, number, number]>(
    'long pread(int fd, void *buffer, size_t length, int64_t offset)',
  ),
  pwrite: declare<[Descriptor, Uint8Array, number, number]>(
    'long pwrite(int fd, void *buffer, size_t length, int64_t offset)',
  ),
  fallocate: declare<[Descriptor, number, number, number]>(
    'int fallocate(int fd, int mode, int64_t offset, int64_t length)',
  ),
  lseek: declare<[Descriptor, number, number]>('int64_t lseek(int fd, int64_t offset, int whence)'),
  fcntl: declare<[Descriptor, number, Uint8Array]>('int fcntl(int fd, int cmd, void *argument)'),
  setsockopt: declare<[Descriptor, number, number, Uint8Array, number]>(
    'int setsockopt(int fd, int level, int name, void *value, uint32_t length)',
  ),
  send: declare<[Descriptor, Uint8Array, number, number]>(
    'long send(int fd, void *data, size_t length, int flags)',
  ),
  sendfile: declare<[Descriptor, Descriptor, Uint8Array, number]>(
    'long sendfile64(int out, int in, void *offset, size_t count)',
  ),
  /** cachestat(2), which the C library does not have yet. */
  syscall: declare<[number, Descriptor, Uint8Array, Uint8Array, number]>(
    'long syscall(long number, int fd, void *range, void *result, unsigned int flags)',
  ),
  copyFileRange: declare<[Descriptor, Uint8Array, Descriptor, Uint8Array, number, number]>(
    'long copy_file_range(int in, void *from, int out, void *to, size_t length, unsigned int flags)',
  ),
  getpagesize: declare<[]>('int getpagesize()'),
  ioctl: declare<[Descriptor, number, Uint8Array]>(
    'int ioctl(int fd, unsigned long request, void *argument)',
  ),
};

const strerror = libc.func('const char *strerror(int errnum)') as unknown as (n: number) => string;

/** preadv2: fail with EAGAIN instead of waiting for the disk. @see readv(2) */
export const RWF_NOWAIT = 8;
/** pwritev2: as if opened with O_DSYNC, for this write. */
export const RWF_DSYNC = 2;
/** @see fallocate(2) */
export const FALLOC_FL_KEEP_SIZE = 1;
export const FALLOC_FL_PUNCH_HOLE = 2;
export const FALLOC_FL_ZERO_RANGE = 16;
/** @see lseek(2) */
export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;
/** Open file description locks. @see fcntl(2) */
export const F_OFD_GETLK = 36;
export const F_OFD_SETLK = 37;
export const F_RDLCK = 0;
export const F_WRLCK = 1;
export const F_UNLCK = 2;
/** Block device requests. @see linux/fs.h */
export const BLKROGET = 0x125e;
export const BLKSSZGET = 0x1268;
export const BLKDISCARD = 0x1277;
export const BLKGETSIZE64 = 0x80081272;
/** Bytes that a socket's peer has not taken. @see unix(7) */
export const SIOCOUTQ = 0x5411;
/** @see send(2) */
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;
export const MSG_MORE = 0x8000;
/** The number of cachestat(2), the same on all architectures that Node runs on. Linux 6.5. */
export const SYS_CACHESTAT = 451;
/** statfs(2): the type of tmpfs, whose data is always in memory. */
export const TMPFS_MAGIC = 0x01021994;

export const { EAGAIN, EINTR, EINVAL, ENXIO, EOPNOTSUPP, ENOSYS, EACCES } = constants.errno;

/** The errno of the last native call that returned -1; read it before anything else is called. */
export function lastErrno(): number {
  return koffi.errno();
}

/** The operating system's "no": `code` is the errno's name, the message what strerror says. */
export class SystemError extends Error {
  override readonly name = 'SystemError';
  readonly code: string;
  constructor(
    readonly errno: number,
    readonly syscall: string,
  ) {
    super(strerror(errno));
    this.code = getSystemErrorName(-errno);
  }
}

/** Node's errors of fs calls in our form; anything else as it is. */
export function toSystemError(error: unknown): unknown {
  if (!(error instanceof Error) || !('errno' in error)) return error;
  if (error instanceof SystemError || typeof error.errno !== 'number') return error;
  const syscall = 'syscall' in error ? String(error.syscall) : '';
  return new SystemError(Math.abs(error.errno), syscall);
}

/** Calls in the pool at a time, those that wait for a thread included: koffi refuses the 257th. */
const POOL_CALLS_MAX = 192;
let poolCalls = 0;
const poolQueue: (() => void)[] = [];

/** Starts a call on the thread pool, or has it wait for its turn: there may be any number of them. */
export function startInPool<A extends unknown[]>(
  call: NativeCall<A>,
  args: A,
  done: (error: unknown, result: number) => void,
): void {
  if (poolCalls >= POOL_CALLS_MAX) {
    poolQueue.push(() => startInPool(call, args, done));
    return;
  }
  poolCalls++;
  const ended = (error: unknown, result: number): void => {
    poolCalls--;
    // First: the errno of the call is that of the last one on this thread.
    done(error, result);
    poolQueue.shift()?.();
  };
  try {
    call.async(...args, ended);
  } catch (error) {
    ended(error, -1);
  }
}

/** Runs a call on the thread pool, again when a signal interrupted it. @throws SystemError */
export function inPool<A extends unknown[]>(
  call: NativeCall<A>,
  name: string,
  ...args: A
): Promise<number> {
  return new Promise((resolve, reject) => {
    const submit = (): void =>
      startInPool(call, args, (error, result) => {
        if (error !== null && error !== undefined) return reject(error);
        if (result >= 0) return resolve(result);
        const errno = koffi.errno();
        if (errno === EINTR) return submit();
        reject(new SystemError(errno, name));
      });
    submit();
  });
}

const TWO_POW_32 = 2 ** 32;
const addresses = new WeakMap<ArrayBufferLike, number>();

/**
 * Where a buffer's first byte lies in memory. Node keeps array buffers off the JavaScript heap, where
 * they don't move; so one question per array buffer is enough.
 */
export function addressOf(buffer: Uint8Array): number {
  let base = addresses.get(buffer.buffer);
  if (base === undefined) {
    base = Number(koffi.address(buffer)) - buffer.byteOffset;
    addresses.set(buffer.buffer, base);
  }
  return base + buffer.byteOffset;
}

/** One `struct iovec`, filled anew for each call. Not to be changed while a call in the pool uses it. */
export class IoVector {
  readonly bytes = new Uint8Array(16);
  readonly #words = new Uint32Array(this.bytes.buffer);

  set(buffer: Uint8Array): Uint8Array {
    const words = this.#words;
    const address = addressOf(buffer);
    words[0] = address % TWO_POW_32;
    words[1] = address / TWO_POW_32;
    words[2] = buffer.byteLength;
    words[3] = 0;
    return this.bytes;
  }
}
