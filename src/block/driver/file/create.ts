// SPDX-License-Identifier: MIT
/** `blockdev-create` of a file. @see qapi BlockdevCreateOptionsFile */
import { BlockError, fromSystemError } from '../../../base/errors.js';
import { MIB } from '../../../base/limits.js';
import { NewFile } from '../../../sys/new-file.js';
import type { CreateContext, DriverOptions, PreallocationMode } from '../../block-driver.js';
import { PERM_ALL, PERM_RESIZE, PERM_WRITE } from '../../permissions.js';
import { ImageHandle } from './image-handle.js';
import { resizeFile } from './resize.js';

/** Space is taken in steps of so many bytes, between which the job can be cancelled. */
const STEP_LENGTH = 256 * MIB;

/** The members of BlockdevCreateOptionsFile. */
interface FileCreateOptions {
  readonly filename: string;
  readonly size: number;
  readonly preallocation?: PreallocationMode;
}

/**
 * Makes the file, or empties the one that is there, while nobody else has it open for what that would
 * disturb. When it fails later on, a file that was there is left empty, and a new one goes again.
 * @throws BlockError DF_LOCKED, DF_NO_SPACE, DF_NOT_SUPPORTED …
 */
export async function createFile(
  options: DriverOptions,
  { signal, madeFile }: Pick<CreateContext, 'signal' | 'madeFile'>,
): Promise<void> {
  const { filename } = options as unknown as FileCreateOptions;
  if (filename.includes('\0')) {
    throw new BlockError('DF_INVALID', "Parameter 'filename' does not accept NUL characters");
  }
  const made = await NewFile.make(filename);
  if (made !== undefined) madeFile(() => made.remove());
  await makeImage(options as unknown as FileCreateOptions, signal);
}

async function makeImage(
  { filename, size, preallocation = 'off' }: FileCreateOptions,
  signal: AbortSignal,
): Promise<void> {
  const handle = await ImageHandle.open('file', filename, {
    writable: true,
    direct: false,
    create: true,
  });
  try {
    const permissions = { taken: PERM_WRITE | PERM_RESIZE, shared: PERM_ALL & ~PERM_RESIZE };
    handle.locks.add(permissions);
    handle.locks.check(permissions);
    await resizing(() => handle.file.truncate(0));
    await fill(handle, { size, preallocation, signal });
    // The name of a new file goes to stable storage with its first sync.
    await handle.file.sync();
  } finally {
    await handle.file.close();
  }
}

async function fill(
  handle: ImageHandle,
  {
    size,
    preallocation,
    signal,
  }: {
    readonly size: number;
    readonly preallocation: PreallocationMode;
    readonly signal: AbortSignal;
  },
): Promise<void> {
  const step = preallocation === 'off' ? Math.max(size, 1) : STEP_LENGTH;
  const options = { exact: true, preallocation };
  try {
    if (size === 0) return await resizeFile(handle, { from: 0, to: 0 }, options);
    for (let from = 0; from < size; from += step) {
      signal.throwIfAborted();
      const to = Math.min(size, from + step);
      await resizing(() => resizeFile(handle, { from, to }, options));
    }
  } catch (error) {
    await handle.file.truncate(0);
    throw error;
  }
}

/** The operating system's refusal, in QEMU's words. */
async function resizing(act: () => Promise<void>): Promise<void> {
  try {
    await act();
  } catch (error) {
    if (error instanceof BlockError && error.cause === undefined) throw error;
    const cause = error instanceof BlockError ? error.cause : error;
    throw fromSystemError(cause, 'Could not resize file');
  }
}
