// SPDX-License-Identifier: MIT
/** Another size for a file; none for a device, which has the size that it has. */
import { BlockError } from '../../../base/errors.js';
import { ZERO_BUFFER_LENGTH } from '../../../base/limits.js';
import type { TruncateOptions } from '../../block-driver.js';
import type { ImageHandle } from './image-handle.js';

/** Bytes. */
export interface SizeChange {
  readonly from: number;
  readonly to: number;
}

/**
 * Bytes gained read as zeroes. With preallocation a failure gives back the space that was taken.
 * @throws BlockError DF_NOT_SUPPORTED, DF_INVALID, DF_NO_SPACE
 */
export async function resizeFile(
  { file, holes }: ImageHandle,
  change: SizeChange,
  { preallocation }: TruncateOptions,
): Promise<void> {
  const { from, to } = change;
  if (preallocation === 'metadata') {
    const message = `Unsupported preallocation mode: ${preallocation}`;
    throw new BlockError('DF_NOT_SUPPORTED', message);
  }
  if (preallocation !== 'off' && to < from) {
    throw new BlockError('DF_INVALID', 'Cannot use preallocation for shrinking files');
  }
  if (preallocation === 'off' || to === from) return file.truncate(to);
  try {
    if (preallocation === 'falloc') await holes.change('allocate', from, to - from);
    else await writeZeroBytes({ file, holes }, change);
  } catch (error) {
    await file.truncate(from);
    throw error;
  }
}

async function writeZeroBytes(
  { file }: Pick<ImageHandle, 'file' | 'holes'>,
  { from, to }: SizeChange,
): Promise<void> {
  const zeroes = Buffer.alloc(Math.min(ZERO_BUFFER_LENGTH, to - from));
  for (let at = from; at < to; ) {
    const length = Math.min(zeroes.byteLength, to - at);
    await file.write(at, zeroes.subarray(0, length), 'cached');
    at += length;
  }
  await file.sync();
}

/** @throws BlockError DF_NOT_SUPPORTED for any other size than the device's, unless a larger one will do */
export function resizeDevice({ from, to }: SizeChange, options: TruncateOptions): void {
  if (options.preallocation !== 'off') {
    const message = `Preallocation mode '${options.preallocation}' unsupported for this non-regular file`;
    throw new BlockError('DF_NOT_SUPPORTED', message);
  }
  if (to !== from && options.exact) {
    throw new BlockError('DF_NOT_SUPPORTED', 'Cannot resize device files');
  }
  if (to > from) throw new BlockError('DF_INVALID', 'Cannot grow device files');
}
