// SPDX-License-Identifier: MIT
/** A descriptor of the image with all that belongs to it: locks, holes, size limits. */
import { BlockError } from '../../../base/errors.js';
import { NODE_SIZE_MAX } from '../../../base/limits.js';
import { checkDeviceWritable, deviceBlockSize, deviceSize } from '../../../sys/block-device.js';
import { FileCopier } from '../../../sys/copy-file.js';
import { DiskFile, type OpenFileOptions } from '../../../sys/file.js';
import { FileHoles } from '../../../sys/holes.js';
import { ImageLocks } from '../../../sys/locks.js';
import { FileSender } from '../../../sys/send-file.js';
import { type BlockLimits, DEFAULT_LIMITS } from '../../block-driver.js';
import { PERMISSION_NAMES } from '../../permissions.js';

const LOCK_NAMES = PERMISSION_NAMES.map(([, name]) => name);

export type FileDriverName = 'file' | 'host_device';

/** Replaced as a whole when access or caching changes; what is in flight ends on the old one. */
export class ImageHandle {
  readonly holes: FileHoles;
  readonly locks: ImageLocks;
  readonly sender: FileSender;
  readonly copier: FileCopier;

  private constructor(
    readonly file: DiskFile,
    readonly limits: BlockLimits,
    /** Bytes, when it was opened. */
    readonly size: number,
  ) {
    this.holes = new FileHoles(file);
    this.sender = new FileSender(file);
    this.copier = new FileCopier(file);
    this.locks = new ImageLocks(file.fd, file.path, LOCK_NAMES);
  }

  /** @throws BlockError naming the path when it is missing, refused, or not what the driver serves */
  static async open(
    driver: FileDriverName,
    path: string,
    options: OpenFileOptions,
  ): Promise<ImageHandle> {
    const file = await DiskFile.open(path, options);
    try {
      checkKind(driver, file);
      if (driver === 'host_device' && options.writable) checkWritable(file);
      const size = driver === 'file' ? (await file.stat()).size : deviceSize(file);
      if (size > NODE_SIZE_MAX) {
        const message = `'${path}' has ${size} bytes, more than the ${NODE_SIZE_MAX} of a node`;
        throw new BlockError('DF_TOO_LARGE', message, { path });
      }
      return new ImageHandle(file, limitsOf(driver, file), size);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  matches(options: OpenFileOptions): boolean {
    const { writable, direct } = this.file.options;
    return writable === options.writable && direct === options.direct;
  }
}

function checkKind(driver: FileDriverName, { kind, path }: DiskFile): void {
  if (driver === 'file' && kind !== 'regular') {
    const message = `'file' driver requires '${path}' to be a regular file`;
    throw new BlockError('DF_INVALID', message, { path });
  }
  if (driver === 'host_device' && kind !== 'block' && kind !== 'character') {
    const message = `'host_device' driver requires '${path}' to be either a character or block device`;
    throw new BlockError('DF_INVALID', message, { path });
  }
}

function checkWritable(file: DiskFile): void {
  if (file.kind !== 'block') return;
  try {
    checkDeviceWritable(file);
  } catch (cause) {
    throw new BlockError('DF_ACCESS', 'The device is not writable', { path: file.path }, { cause });
  }
}

function limitsOf(driver: FileDriverName, file: DiskFile): BlockLimits {
  const limits = {
    ...DEFAULT_LIMITS,
    requestAlignment: file.alignment.request,
    memoryAlignment: file.alignment.memory,
  };
  if (driver === 'file' || file.kind !== 'block') return limits;
  const block = deviceBlockSize(file);
  return { ...limits, writeZeroesAlignment: block, discardAlignment: block };
}
