// SPDX-License-Identifier: MIT
/** The disk of an internal snapshot, to be read in place of the one that there is now. */
import { QCOW2_L1_TABLE_MAX } from '../../../../protocol/qcow2/header.js';
import { snapshotExtra } from '../../../../protocol/qcow2/snapshots.js';
import { BlockError } from '../../../base/errors.js';
import { NODE_SIZE_MAX } from '../../../base/limits.js';
import type { Qcow2Image } from './image.js';
import { readPadded } from './image-io.js';
import { L1Table } from './l1-table.js';
import { snapshotTables } from './snapshots.js';

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
  const size = Number(snapshotExtra(found.entry, 'diskSize') ?? BigInt(image.size));
  const entries = Math.max(found.entries, Math.ceil(size / image.geometry.bytesPerL2));
  if (size > NODE_SIZE_MAX || size % 512 !== 0 || entries * 8 > QCOW2_L1_TABLE_MAX) {
    throw new BlockError(
      'DF_CORRUPT_IMAGE',
      `Snapshot '${id}' says that its disk has ${size} bytes`,
    );
  }
  const bytes = Buffer.alloc(entries * 8);
  await readPadded(image.file, found.offset, bytes.subarray(0, found.entries * 8));
  return { l1: new L1Table(found.offset, bytes), size };
}
