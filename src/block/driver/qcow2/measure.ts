// SPDX-License-Identifier: MIT
/** How large a new image would be. @see qapi BlockMeasureInfo */
import { bitmapEntryLength } from '../../../../protocol/qcow2/bitmaps.js';
import { ENTRY_LENGTH, EXTENDED_ENTRY_LENGTH } from '../../../../protocol/qcow2/entries.js';
import { QCOW2_L1_TABLE_MAX } from '../../../../protocol/qcow2/header.js';
import { refcountsPerBlock } from '../../../../protocol/qcow2/refcounts.js';
import { alignUp } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import { KIB } from '../../../base/limits.js';
import type { BlockBackend } from '../../backend.js';
import {
  type ImageMeasure,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from '../../block-driver.js';
import { checkCreateOptions, type Qcow2CreateOptions } from './create.js';

const CLUSTER_DEFAULT = 64 * KIB;
const REFCOUNT_BITS_DEFAULT = 16;

/**
 * Tables are counted as for a full image, so that what is required is an upper bound.
 * @throws BlockError DF_INVALID for options that no image can have
 */
export async function measureQcow2(
  options: Qcow2CreateOptions,
  source: BlockBackend | undefined,
): Promise<ImageMeasure> {
  checkCreateOptions(options);
  const { clusterSize = CLUSTER_DEFAULT, preallocation, backingFile, version } = options;
  const size = alignUp(options.size, clusterSize);
  const fullyAllocated = size + tablesLength(options, size);
  const full = preallocation === 'full' || preallocation === 'falloc';
  // How much of the source the backing file has is not known: all of it may have to be written.
  const all = full || (source !== undefined && backingFile !== undefined);
  const data = all ? size : await dataLength(source, clusterSize);
  const required = fullyAllocated - size + data;
  const node = source?.root.node;
  if (version === 'v2' || node?.driver.bitmapStore === undefined) {
    return { required, fullyAllocated };
  }
  return { required, fullyAllocated, bitmaps: bitmapsLength(node.bitmaps.values(), clusterSize) };
}

/** Clusters of the new image that get data, bytes. */
async function dataLength(source: BlockBackend | undefined, clusterSize: number): Promise<number> {
  if (source === undefined) return 0;
  const wanted = STATUS_DATA | STATUS_ALLOCATED;
  let sum = 0;
  for (let at = 0; at < source.size; ) {
    const { flags, length } = await source.blockStatus(at, source.size - at);
    let end = at + length;
    if ((flags & STATUS_ZERO) === 0 && (flags & wanted) === wanted) {
      end = alignUp(end, clusterSize);
      sum += end - (at - (at % clusterSize));
    }
    at = end;
  }
  return sum;
}

/** Header, tables and counts of a full image of `size` bytes, a multiple of the cluster size. */
function tablesLength(
  { clusterSize = CLUSTER_DEFAULT, refcountBits, extendedL2 }: Qcow2CreateOptions,
  size: number,
): number {
  const entryLength = extendedL2 === true ? EXTENDED_ENTRY_LENGTH : ENTRY_LENGTH;
  const l2 = alignUp((size / clusterSize) * entryLength, clusterSize);
  const l1Entries = l2 / clusterSize;
  if (l1Entries * ENTRY_LENGTH > QCOW2_L1_TABLE_MAX) {
    const message = 'The image size is too large (try using a larger cluster size)';
    throw new BlockError('DF_INVALID', message);
  }
  const l1 = alignUp(l1Entries * ENTRY_LENGTH, clusterSize);
  const tables = clusterSize + l2 + l1;
  const order = Math.log2(refcountBits ?? REFCOUNT_BITS_DEFAULT);
  const perBlock = refcountsPerBlock(clusterSize, order);
  return tables + countsLength((tables + size) / clusterSize, { clusterSize, perBlock });
}

/** Refcount blocks and table that count so many clusters, and themselves. */
function countsLength(
  clusters: number,
  { clusterSize, perBlock }: { readonly clusterSize: number; readonly perBlock: number },
): number {
  let blocks = 0;
  let table = 0;
  for (;;) {
    const nextBlocks = Math.ceil((clusters + table + blocks) / perBlock);
    const nextTable = Math.ceil((nextBlocks * ENTRY_LENGTH) / clusterSize);
    if (nextBlocks === blocks && nextTable === table) return (blocks + table) * clusterSize;
    blocks = nextBlocks;
    table = nextTable;
  }
}

interface Measured {
  readonly name: string | undefined;
  readonly persistent: boolean;
  readonly size: number;
  readonly granularity: number;
}

function bitmapsLength(bitmaps: Iterable<Measured>, clusterSize: number): number {
  let sum = 0;
  let directory = 0;
  for (const { name = '', persistent, size, granularity } of bitmaps) {
    if (!persistent) continue;
    const bytes = Math.ceil(Math.ceil(size / granularity) / 8);
    const clusters = Math.ceil(bytes / clusterSize);
    sum += clusters * clusterSize + alignUp(clusters * 8, clusterSize);
    directory += bitmapEntryLength(Buffer.byteLength(name));
  }
  return sum + alignUp(directory, clusterSize);
}
