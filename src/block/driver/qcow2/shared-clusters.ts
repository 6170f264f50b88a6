// SPDX-License-Identifier: MIT
/** Clusters that several L1 tables refer to: their counts, and the marks of those that one has alone. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  compressedRange,
  ENTRY_COMPRESSED,
  ENTRY_COPIED,
  entryOffset,
} from '../../../../protocol/qcow2/entries.js';
import { BlockError } from '../../../base/errors.js';
import type { Qcow2Image } from './image.js';
import { readPadded } from './image-io.js';
import { EntryTable, type L1Table } from './l1-table.js';
import type { ClusterRun } from './refcounts.js';

/** An L2 table of an L1 table, as it stands in the file. */
interface L2InFile {
  /** In the L1 table. */
  readonly index: number;
  readonly table: EntryTable;
}

/** @throws BlockError DF_CORRUPT_IMAGE for a table that lies where none can be */
async function* l2Tables(image: Qcow2Image, l1: L1Table): AsyncGenerator<L2InFile> {
  const { clusterSize } = image.geometry;
  for (let index = 0; index < l1.entries; index++) {
    const offset = l1.l2Offset(index);
    if (offset === 0) continue;
    if (offset % clusterSize !== 0 || offset >= image.file.size) {
      throw new BlockError('DF_CORRUPT_IMAGE', `An L2 table at ${offset} can not be`, { offset });
    }
    const bytes = Buffer.alloc(clusterSize);
    await readPadded(image.file, offset, bytes);
    yield { index, table: new EntryTable(offset, bytes) };
    await nextTurn();
  }
}

/** The host clusters of one entry; undefined: it has none. */
function clustersOf(image: Qcow2Image, high: number, low: number): ClusterRun | undefined {
  const { clusterBits, clusterSize } = image.geometry;
  if ((high & ENTRY_COMPRESSED) !== 0) {
    const { offset, length } = compressedRange(high, low, clusterBits);
    const first = Math.floor(offset / clusterSize);
    return { first, count: Math.floor((offset + length - 1) / clusterSize) - first + 1 };
  }
  const offset = entryOffset(high, low);
  return offset === 0 ? undefined : { first: Math.floor(offset / clusterSize), count: 1 };
}

/** Indices of words: an extended entry has two, of which the first tells the cluster. */
const entryStep = (image: Qcow2Image): number => (image.geometry.extendedL2 ? 2 : 1);

/** All runs of clusters that a table and its L2 tables refer to; not the table's own. */
async function* referenced(
  image: Qcow2Image,
  l1: L1Table,
): AsyncGenerator<ClusterRun & { readonly table: boolean }> {
  const { clusterSize } = image.geometry;
  const step = entryStep(image);
  for await (const { table } of l2Tables(image, l1)) {
    yield { first: table.offset / clusterSize, count: 1, table: true };
    for (let index = 0; index < table.entries; index += step) {
      const run = clustersOf(image, table.high(index), table.low(index));
      if (run !== undefined) yield { ...run, table: false };
    }
  }
}

/**
 * One reference more to everything below an L1 table; in memory until counts are written.
 * @throws BlockError when a count can't be; all are as before then
 */
export async function addReferences(image: Qcow2Image, l1: L1Table): Promise<void> {
  const { allocation, refcounts } = image;
  let done = 0;
  const change = async (delta: 1 | -1, most: number): Promise<void> => {
    let count = 0;
    for await (const run of referenced(image, l1)) {
      for (let first = run.first; first < run.first + run.count; first++) {
        if (count++ === most) return;
        await allocation.run(() => refcounts.add({ first, count: 1 }, delta));
        if (delta === 1) done++;
      }
    }
  };
  try {
    await change(1, Number.POSITIVE_INFINITY);
  } catch (error) {
    await change(-1, done);
    throw error;
  }
}

/**
 * One reference less to everything below an L1 table that nothing on stable storage refers to. Clusters
 * that nobody refers to any more come free.
 */
export async function dropReferences(image: Qcow2Image, l1: L1Table): Promise<void> {
  const { clusterSize } = image.geometry;
  const discard = image.options.passDiscard.snapshot;
  for await (const { first, count, table } of referenced(image, l1)) {
    if (table) await image.metadata.commit();
    const offset = first * clusterSize;
    image.frees.add({ offset, length: count * clusterSize, table, discard });
  }
  await image.metadata.commit();
}

/**
 * Marks in the active tables what they have alone, by the counts, so that all else is copied before it is
 * written to. For an image that nobody uses and whose metadata is all in the file; durable when done.
 */
export async function markCopied(image: Qcow2Image): Promise<void> {
  const { map, l2, file, refcounts } = image;
  const { clusterSize } = image.geometry;
  for await (const { index, table } of l2Tables(image, map.l1)) {
    await markTable(image, table);
    if (table.dirty) {
      l2.drop(table.offset, clusterSize);
      await file.write(table.offset, table.bytes);
    }
    const alone = (await refcounts.refcount(table.offset / clusterSize)) === 1;
    setCopied(map.l1, index, alone);
  }
  image.metadata.unsettle();
  await image.metadata.commit();
  await file.flush();
}

async function markTable(image: Qcow2Image, table: EntryTable): Promise<void> {
  const step = entryStep(image);
  for (let index = 0; index < table.entries; index += step) {
    const high = table.high(index);
    if ((high & ENTRY_COMPRESSED) !== 0) continue;
    const run = clustersOf(image, high, table.low(index));
    if (run === undefined) continue;
    setCopied(table, index, (await image.refcounts.refcount(run.first)) === 1);
  }
}

function setCopied(table: EntryTable, index: number, copied: boolean): void {
  const high = table.high(index);
  const wanted = (copied ? high | ENTRY_COPIED : high & ~ENTRY_COPIED) >>> 0;
  if (wanted !== high) table.set(index, wanted, table.low(index));
}
