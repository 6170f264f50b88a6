// SPDX-License-Identifier: MIT
/** The disk of an internal snapshot, to be read in place of the one that there is now. */
import { BlockError } from '../../../base/errors.js';
import type { Qcow2Image } from './image.js';
import type { L1Table } from './l1-table.js';
import { diskOf, readSnapshotL1, snapshotTables } from './snapshots.js';

/**
 * @param id as `listSnapshots` tells it
 * @returns the table that maps it, and its size in bytes
 * @throws BlockError DF_NOT_FOUND, DF_CORRUPT_IMAGE
 */
export async function snapshotDisk(
  image: Qcow2Image,
  id: string,
): Promise<{ readonly l1: L1Table; readonly size: number }> {
  const { tables } = await snapshotTables(image);
  const found = tables.find(({ entry }) => Buffer.from(entry.id).toString('utf8') === id);
  if (found === undefined) throw new BlockError('DF_NOT_FOUND', `There is no snapshot '${id}'`);
  const { size, entries } = diskOf(image, found);
  return { l1: await readSnapshotL1(image, found, entries), size };
}
