// SPDX-License-Identifier: MIT
/** What `file` and `host_device` are told, at first and by blockdev-reopen. @see qapi BlockdevOptionsFile */
import { BlockError } from '../../../base/errors.js';
import type { OpenFileOptions } from '../../../sys/file.js';
import type { DriverOptions } from '../../block-driver.js';
import { PERM_RESIZE, PERM_WRITE, PERM_WRITE_UNCHANGED } from '../../permissions.js';

export interface FileOptions {
  readonly filename: string;
  readonly locking: 'auto' | 'on' | 'off';
}

/** What the node says of access; may change while it is open. */
export interface AccessMode {
  readonly readOnly: boolean;
  readonly autoReadOnly: boolean;
  readonly forceShare: boolean;
  readonly direct: boolean;
  readonly noFlush: boolean;
}

const DRIVER_KEYS = ['filename', 'locking', 'aio'] as const;
const WRITERS = PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE;

/** @throws BlockError DF_INVALID naming the option */
export function parseFileOptions(given: DriverOptions): FileOptions {
  const { filename, locking = 'auto', aio = 'threads' } = given;
  if (typeof filename !== 'string' || filename === '') {
    throw new BlockError('DF_INVALID', "The 'file' block driver requires a file name");
  }
  // The operating system would take it for the end of the path.
  if (filename.includes('\0')) throw invalid('filename', filename);
  if (locking !== 'auto' && locking !== 'on' && locking !== 'off')
    throw invalid('locking', locking);
  if (aio !== 'threads') throw invalid('aio', aio);
  return { filename, locking };
}

function invalid(key: string, value: unknown): BlockError {
  return new BlockError(
    'DF_INVALID',
    `Parameter '${key}' does not accept value '${String(value)}'`,
  );
}

/**
 * blockdev-reopen may change how the file is accessed, not which file it is.
 * @throws BlockError DF_INVALID naming the option that can't change
 */
export function checkUnchanged(before: DriverOptions, after: DriverOptions): void {
  const defaults: DriverOptions = { locking: 'auto', aio: 'threads' };
  for (const key of DRIVER_KEYS) {
    if ((before[key] ?? defaults[key]) === (after[key] ?? defaults[key])) continue;
    throw new BlockError('DF_INVALID', `Cannot change the option '${key}'`);
  }
}

/** With auto-read-only the file is open for writing only while somebody may write. */
export function descriptorOptions(mode: AccessMode, taken: number): OpenFileOptions {
  const wanted = !mode.autoReadOnly || (taken & WRITERS) !== 0;
  return { writable: !mode.readOnly && wanted, direct: mode.direct };
}
