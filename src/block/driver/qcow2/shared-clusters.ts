// SPDX-License-Identifier: MIT
/** Clusters that several L1 tables refer to: which they are, and the marks of those that one has alone. */
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
import type { ClusterRun, Refcounts } from './refcounts.js';

/** An L2 table of an L1 table, as it stands in the file. */
interface L2InFile {
  /** In the L1 table. */
  readonly index: number;
  readonly table: EntryTable;
}

/** @throws BlockError DF_CORRUPT_IMAGE for a table that lies where none can be */
export async function* l2Tables(image: Qcow2Image, l1: L1Table): AsyncGenerator<L2InFile> {
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

/** All runs of clusters, as long as they are, that a table and its L2 tables refer to; not the table's own. */
export async function* referenced(
  image: Qcow2Image,
  l1: L1Table,
): AsyncGenerator<ClusterRun & { readonly table: boolean }> {
  const { clusterSize } = image.geometry;
  for await (const { table } of l2Tables(image, l1)) {
    yield { first: table.offset / clusterSize, count: 1, table: true };
    for (const run of runsOf(image, table)) yield run;
  }
}

/** Clusters that the entries of an L2 table refer to; joined when they are. */
type DataRun = { readonly first: number; count: number; readonly table: false };

/** What an L2 table refers to. Not part of the generator above: there it would be six times slower. */
function runsOf(image: Qcow2Image, table: EntryTable): DataRun[] {
  const runs: DataRun[] = [];
  const step = entryStep(image);
  const { entries } = table;
  for (let index = 0; index < entries; index += step) {
    join(image, runs, table.high(index), table.low(index));
  }
  return runs;
}

/** One entry. A function of its own for the reason that `markKnown` is one. */
function join(image: Qcow2Image, runs: DataRun[], high: number, low: number): void {
  const run = clustersOf(image, high, low);
  if (run === undefined) return;
  const last = runs[runs.length - 1];
  if (last !== undefined && last.first + last.count === run.first) last.count += run.count;
  else runs.push({ first: run.first, count: run.count, table: false });
}

/** Marks in an L2 table what it has alone, by `counts`, so that all else is copied before it is written to. */
export async function markTable(
  image: Qcow2Image,
  table: EntryTable,
  counts: Refcounts,
): Promise<void> {
  for (let index = 0; index < table.entries; index += entryStep(image)) {
    index = markAtOnce(image, table, counts, index);
    const run = clustersOf(image, table.high(index), table.low(index));
    if (run !== undefined) mark(table, index, await counts.refcount(run.first));
  }
}

/** @returns the index of the first entry whose count is not in memory, or of the last */
function markAtOnce(image: Qcow2Image, table: EntryTable, counts: Refcounts, from: number): number {
  const step = entryStep(image);
  const last = table.entries - step;
  for (let index = from; index < last; index += step) {
    if (!markKnown(image, table, counts, index)) return index;
  }
  return last;
}

/**
 * One entry, when its count is in memory. A function of its own: called so often, it is compiled long
 * before a loop around its body would be.
 */
function markKnown(
  { geometry }: Qcow2Image,
  table: EntryTable,
  counts: Refcounts,
  index: number,
): boolean {
  const high = table.high(index);
  if ((high & ENTRY_COMPRESSED) !== 0) return true;
  const offset = entryOffset(high, table.low(index));
  if (offset === 0) return true;
  const count = counts.known(Math.floor(offset / geometry.clusterSize));
  if (count === undefined) return false;
  mark(table, index, count);
  return true;
}

function mark(table: EntryTable, index: number, count: number): void {
  const high = table.high(index);
  if ((high & ENTRY_COMPRESSED) !== 0) return;
  const wanted = (count === 1 ? high | ENTRY_COPIED : high & ~ENTRY_COPIED) >>> 0;
  if (wanted !== high) table.set(index, wanted, table.low(index));
}
