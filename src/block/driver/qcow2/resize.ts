// SPDX-License-Identifier: MIT
/** Another virtual size: longer tables, clusters given up, clusters got ready ahead. */
import { ENTRY_LENGTH } from '../../../../protocol/qcow2/entries.js';
import { QCOW2_L1_TABLE_MAX } from '../../../../protocol/qcow2/header.js';
import { alignDown, alignUp } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import type { TruncateOptions } from '../../block-driver.js';
import { allocateContiguousLocked } from './allocate.js';
import { readsAsZero } from './copy-on-write.js';
import { discardClusters } from './discard.js';
import type { Qcow2Image } from './image.js';
import { L1Table } from './l1-table.js';
import { preallocate } from './preallocate.js';
import { prepareWrite } from './prepare-write.js';
import { writeRuns } from './write.js';
import { zeroLocked } from './zero.js';

/** Virtual sizes are counted in these, bytes. */
const SECTOR = 512;
/** Zeroes written at a time where they can't be marked, bytes. */
const ZERO_STEP = 1024 * 1024;

export interface ResizeOptions extends TruncateOptions {
  /** Gives up getting clusters ready. */
  readonly signal?: AbortSignal;
}

/**
 * Changes the virtual size, while nobody uses the image.
 * @throws BlockError in QEMU's words; the size is as before then
 */
export async function resizeGuest(
  image: Qcow2Image,
  size: number,
  options: ResizeOptions,
): Promise<void> {
  if (size % SECTOR !== 0) throw invalid(`The new size must be a multiple of ${SECTOR}`);
  await prepareWrite(image);
  const { snapshotCount, version } = image.header.header;
  if (snapshotCount > 0 && version < 3) {
    throw new BlockError('DF_NOT_SUPPORTED', "Can't resize a v2 image which has snapshots");
  }
  if (size < image.size) await shrink(image, size, options);
  else await grow(image, size, options);
  await image.metadata.commit();
}

async function grow(image: Qcow2Image, size: number, options: ResizeOptions): Promise<void> {
  const { header, geometry } = image;
  const before = image.size;
  const entries = Math.ceil(size / geometry.bytesPerL2);
  if (entries * ENTRY_LENGTH > QCOW2_L1_TABLE_MAX) {
    throw new BlockError('DF_TOO_LARGE', 'Failed to grow the L1 table: File too large');
  }
  if (entries > image.map.l1.entries) await growL1(image, entries);
  image.size = size;
  try {
    await zeroNew(image, before, size);
    const { preallocation, signal } = options;
    // A raw data file has to show what the disk shows: every cluster is at its place, and zero.
    const mode = preallocation === 'off' && image.dataFileRaw ? 'metadata' : preallocation;
    if (mode !== 'off') {
      await preallocate(image, { from: before, to: size, mode }, signal);
    } else if (image.hasDataFile && image.data.size < size) {
      await image.data.truncate(size, { exact: false, preallocation: 'off' });
    }
    await image.metadata.commit();
    await header.update({ size: BigInt(size) });
  } catch (error) {
    image.size = before;
    throw error;
  }
}

/** What comes into view must be zero: the rest of the last cluster, and a backing file that is longer. */
async function zeroNew(image: Qcow2Image, before: number, size: number): Promise<void> {
  const { clusterSize, version } = image.geometry;
  const { backing } = image;
  const visible = Math.max(alignUp(before, clusterSize), backing?.size ?? 0);
  const end = Math.min(size, alignUp(visible, clusterSize));
  if (end <= before || (await readsAsZero(image, before, end - before))) return;
  if (version >= 3) {
    await zeroLocked(image, { offset: before, end }, 0);
    return;
  }
  const zeroes = Buffer.alloc(Math.min(ZERO_STEP, end - before));
  for (let at = before; at < end; at += zeroes.byteLength) {
    await writeRuns(image, at, zeroes.subarray(0, Math.min(zeroes.byteLength, end - at)));
  }
}

/** A longer L1 table takes the old one's place, durably. */
async function growL1(image: Qcow2Image, entries: number): Promise<void> {
  const { geometry, metadata, file, header, map, frees } = image;
  await metadata.commit();
  await image.allocation.run(async () => {
    const length = entries * ENTRY_LENGTH;
    const clusters = Math.ceil(length / geometry.clusterSize);
    const { offset } = await allocateContiguousLocked(image, clusters);
    const bytes = Buffer.alloc(length);
    const old = map.l1;
    old.bytes.copy(bytes);
    await metadata.writeRefcounts();
    await file.write(offset, bytes);
    await file.flush();
    await header.update({ l1Offset: BigInt(offset), l1Entries: entries });
    map.l1 = new L1Table(offset, bytes);
    image.guard?.refresh();
    const freed = alignUp(old.bytes.byteLength, geometry.clusterSize);
    if (freed > 0) {
      const discard = image.options.passDiscard.other;
      frees.add({ offset: old.offset, length: freed, table: true, discard });
    }
  });
}

async function shrink(image: Qcow2Image, size: number, options: TruncateOptions): Promise<void> {
  if (options.preallocation !== 'off') {
    throw invalid("Preallocation can't be used for shrinking an image");
  }
  const { geometry, header, map, frees, metadata } = image;
  const { clusterSize, bytesPerL2 } = geometry;
  const from = alignUp(size, clusterSize);
  const to = alignUp(image.size, clusterSize);
  if (from < to) await discardClusters(image, { from, to, how: 'unallocated' });
  await metadata.commit();
  for (let index = Math.ceil(size / bytesPerL2); index < map.l1.entries; index++) {
    const offset = map.l1.l2Offset(index);
    if (offset === 0) continue;
    map.l1.setL2(index, 0);
    const discard = image.options.passDiscard.other;
    frees.add({ offset, length: clusterSize, table: true, discard });
  }
  await metadata.commit();
  await header.update({ size: BigInt(size) });
  image.size = size;
  if (image.hasDataFile && options.exact && image.data.size > size) {
    await image.data.truncate(size, { exact: false, preallocation: 'off' });
  }
  await cutFile(image);
}

/** Gives back the end of the file that no cluster uses. A node below that can't shrink stays as it is. */
async function cutFile(image: Qcow2Image): Promise<void> {
  const { file, geometry, refcounts, metadata } = image;
  await metadata.commit();
  const { clusterSize } = geometry;
  let clusters = Math.ceil(file.size / clusterSize);
  while (clusters > 0 && (await refcounts.refcount(clusters - 1)) === 0) clusters--;
  const end = clusters * clusterSize;
  if (end >= alignDown(file.size, clusterSize)) return;
  // Counts that take the image's own tables for free are damaged: what they say is no reason to cut.
  if (end === 0 || image.guard?.find(end, file.size - end) !== undefined) return;
  try {
    await file.truncate(end, { exact: false, preallocation: 'off' });
  } catch (error) {
    if (error instanceof BlockError && error.code === 'DF_NOT_SUPPORTED') return;
    throw error;
  }
  image.freshFrom = Math.max(file.size, end);
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
