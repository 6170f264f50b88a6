// SPDX-License-Identifier: MIT
/** From a file name, as people and image headers write it, to the node that it means. */
import { BlockError } from '../base/errors.js';
import type { DriverOptions } from './block-driver.js';
import type { DriverRegistry } from './registry.js';

/** A name with a scheme: what stands before a colon that no slash precedes. */
const SCHEME = /^([^:/]*):/;

/**
 * The protocol node's options: `file` for a path, or what a driver makes of its own names
 * (`nbd://host/name`, a path to a block device).
 *
 * @throws BlockError DF_INVALID for an empty name, a scheme that no driver knows, or the driver's own
 */
export async function filenameOptions(
  drivers: DriverRegistry,
  filename: string,
): Promise<DriverOptions> {
  if (filename === '') {
    throw new BlockError('DF_INVALID', "The 'file' block driver requires a file name");
  }
  for (const driver of drivers.names) {
    const options = await drivers.get(driver).fromFilename?.(filename);
    if (options !== undefined) return { driver, ...options };
  }
  const scheme = SCHEME.exec(filename)?.[1];
  if (scheme === undefined) return { driver: 'file', filename };
  if (scheme === 'file') return { driver: 'file', filename: filename.slice('file:'.length) };
  throw new BlockError('DF_INVALID', `Unknown protocol '${scheme}'`);
}
