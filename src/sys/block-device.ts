// SPDX-License-Identifier: MIT
/** What only block devices have: requests by ioctl. @see linux/fs.h */
import type { DiskFile } from './file.js';
import {
  BLKDISCARD,
  BLKGETSIZE64,
  BLKROGET,
  BLKSSZGET,
  EACCES,
  inPool,
  lastErrno,
  native,
} from './linux.js';

/** Size of a device, bytes; of character devices too, where they have one. */
export function deviceSize(file: DiskFile): number {
  const size = new BigUint64Array(1);
  ask(file, BLKGETSIZE64, new Uint8Array(size.buffer), 'get the size');
  return Number(size[0]);
}

/** The device's logical block, bytes: the least that it reads or writes. */
export function deviceBlockSize(file: DiskFile): number {
  const size = new Int32Array(1);
  ask(file, BLKSSZGET, new Uint8Array(size.buffer), 'get the block size');
  return size[0] ?? 0;
}

/** @throws BlockError DF_ACCESS for a device that the administrator has set read-only */
export function checkDeviceWritable(file: DiskFile): void {
  const readOnly = new Int32Array(1);
  ask(file, BLKROGET, new Uint8Array(readOnly.buffer), 'get the read-only flag');
  if (readOnly[0] !== 0) throw file.error(EACCES, 'open for writing', 0, 0);
}

/**
 * Tells the device that a range is not needed; its content is undefined afterwards.
 * @throws BlockError DF_NOT_SUPPORTED
 */
export function discardDevice(file: DiskFile, offset: number, length: number): Promise<void> {
  return file.run('discard', offset, length, async () => {
    const range = new BigUint64Array([BigInt(offset), BigInt(length)]);
    await inPool(native.ioctl, 'ioctl', file.fd, BLKDISCARD, new Uint8Array(range.buffer));
  });
}

function ask(file: DiskFile, request: number, answer: Uint8Array, what: string): void {
  if (native.ioctl(file.fd, request, answer) < 0) throw file.error(lastErrno(), what, 0, 0);
}
