// SPDX-License-Identifier: MIT
/**
 * Other tables take the place of an image's tables, all by one write of the header: what the disk shows,
 * which snapshots there are, and how often each cluster is referred to. All that differs is written to new
 * clusters first. So the image is sound before and after, also in the marks of clusters that one table has
 * alone; what is cut off leaves clusters that nobody refers to (leaks). For an image that nobody uses
 * meanwhile and whose metadata is all in the file.
 */
import { ENTRY_LENGTH, refcountTableOffset } from '../../../../protocol/qcow2/entries.js';
import { alignUp } from '../../../base/byte-range.js';
import { allocateContiguousLocked, allocateLocked } from './allocate.js';
import type { HeaderChange } from './header-state.js';
import type { Qcow2Image } from './image.js';
import { EntryTable, L1Table } from './l1-table.js';
import { PendingFrees } from './pending-frees.js';
import type { ClusterRun } from './refcounts.js';
import { l2Tables, markTable, referenced } from './shared-clusters.js';

export interface TableSwitch {
  /** What the disk shows afterwards: the active table, or one of a snapshot that stays. */
  readonly source: L1Table;
  /** Entries of the new active table, no fewer than those of `source`. */
  readonly entries: number;
  /** Clusters below `source` get one reference more: who had them keeps them. */
  readonly gains: boolean;
  /** L1 tables that go, with their references to all below them. */
  readonly released: readonly L1Table[];
  /** An L1 table that goes with its L2 tables; their references pass to copies of these. */
  readonly replaced?: L1Table;
  /** A table of snapshots; absent: the one that there is. */
  readonly snapshots?: Uint8Array;
  /** What else the header says then. */
  readonly header: HeaderChange;
}

/** Host bytes, whole clusters. */
interface Place {
  readonly offset: number;
  readonly length: number;
}

/** Clusters for everything that is written anew; each counts as referred to once. */
interface Places {
  readonly l1: Place;
  readonly snapshots: Place;
  readonly refcountTable: Place;
  /** By the number of the block. */
  readonly blocks: ReadonlyMap<number, number>;
  /** By the index in the L1 table. */
  readonly l2: ReadonlyMap<number, number>;
}

/** @throws BlockError; the image is as it was then, but for leaks at most */
export async function switchTables(image: Qcow2Image, plan: TableSwitch): Promise<void> {
  const taken: Place[] = [];
  let decided = false;
  try {
    const touched = await touchedBlocks(image, plan);
    const places = await image.allocation.run(() => takePlaces(image, plan, touched, taken));
    await image.metadata.writeRefcounts();
    const freed = new PendingFrees();
    const table = await stageCounts(image, plan, places, freed);
    const l1 = await writeTables(image, plan, places, table);
    freeOld(image, plan, touched, freed);
    await image.file.flush();
    decided = true;
    await image.header.update({
      ...plan.header,
      l1Offset: BigInt(l1.offset),
      l1Entries: l1.entries,
      refcountTableOffset: BigInt(table.offset),
      refcountTableClusters: table.bytes.byteLength / image.geometry.clusterSize,
      ...(plan.snapshots !== undefined ? { snapshotsOffset: BigInt(places.snapshots.offset) } : {}),
    });
    adopt(image, { l1, table, touched });
    image.frees.putBack(freed.take());
  } catch (error) {
    await giveUp(image, taken, { decided });
    throw error;
  }
}

/** Numbers of the refcount blocks in which counts will differ. */
async function touchedBlocks(image: Qcow2Image, plan: TableSwitch): Promise<Set<number>> {
  const { clusterSize, refcountsPerBlock: perBlock } = image.geometry;
  const touched = new Set<number>();
  const touch = ({ first, count }: ClusterRun): void => {
    const last = Math.floor((first + count - 1) / perBlock);
    for (let number = Math.floor(first / perBlock); number <= last; number++) {
      if (touched.has(number)) continue;
      image.refcounts.requireBlock(number);
      touched.add(number);
    }
  };
  if (plan.gains) for await (const run of referenced(image, plan.source)) touch(run);
  for (const l1 of plan.released) for await (const run of referenced(image, l1)) touch(run);
  for (const offset of l2Offsets(plan.replaced)) touch({ first: offset / clusterSize, count: 1 });
  return touched;
}

function l2Offsets(l1: L1Table | undefined): number[] {
  const offsets = Array.from({ length: l1?.entries ?? 0 }, (_, index) => l1?.l2Offset(index) ?? 0);
  return offsets.filter((offset) => offset !== 0);
}

/** @param taken gets every place as soon as it is taken */
async function takePlaces(
  image: Qcow2Image,
  { source, entries, snapshots }: TableSwitch,
  touched: ReadonlySet<number>,
  taken: Place[],
): Promise<Places> {
  const { clusterSize } = image.geometry;
  const whole = async (bytes: number): Promise<Place> => {
    const clusters = Math.ceil(bytes / clusterSize);
    if (clusters === 0) return { offset: 0, length: 0 };
    const { offset } = await allocateContiguousLocked(image, clusters);
    const place = { offset, length: clusters * clusterSize };
    taken.push(place);
    return place;
  };
  const each = async (keys: readonly number[]): Promise<Map<number, number>> => {
    const places = new Map<number, number>();
    while (places.size < keys.length) {
      const { offset, clusters } = await allocateLocked(image, keys.length - places.size);
      taken.push({ offset, length: clusters * clusterSize });
      for (let nth = 0; nth < clusters; nth++) {
        places.set(keys[places.size] ?? 0, offset + nth * clusterSize);
      }
    }
    return places;
  };
  const indices = Array.from({ length: source.entries }, (_, index) => index);
  const l2 = await each(indices.filter((index) => source.l2Offset(index) !== 0));
  const blocks = await each([...touched]);
  const l1 = await whole(entries * ENTRY_LENGTH);
  const snapshotsPlace = await whole(snapshots?.byteLength ?? 0);
  for (;;) {
    const refcountTable = await whole(image.refcounts.table.bytes.byteLength);
    // Making room for it may have made the table itself longer.
    if (refcountTable.length === image.refcounts.table.bytes.byteLength) {
      return { l1, snapshots: snapshotsPlace, refcountTable, blocks, l2 };
    }
  }
}

/**
 * Counts as they are to be, in new blocks.
 * @param freed gets what nobody refers to then; its count is 1 until it is freed
 * @returns the table of the blocks, not written yet
 */
async function stageCounts(
  image: Qcow2Image,
  plan: TableSwitch,
  { refcountTable, blocks }: Places,
  freed: PendingFrees,
): Promise<EntryTable> {
  const { refcountCache: cache, refcounts, geometry } = image;
  const { table: old } = refcounts;
  const table = new EntryTable(refcountTable.offset, Buffer.from(old.bytes));
  for (const [number, offset] of blocks) {
    const from = refcounts.requireBlock(number);
    const bytes = await cache.with(from, (block) => Buffer.from(block.bytes));
    await cache.create(offset, (block) => bytes.copy(block.bytes));
    table.setOffset(number, offset);
  }
  const staged = refcounts.staged(table);
  if (plan.gains) {
    for await (const run of referenced(image, plan.source)) {
      if (!run.table) await staged.add(run, 1);
    }
  }
  const { clusterSize } = geometry;
  const discard = image.options.passDiscard.snapshot;
  const drop = async (run: ClusterRun & { readonly table: boolean }): Promise<void> => {
    for (const { first, count } of await staged.decrementShared(run)) {
      const [offset, length] = [first * clusterSize, count * clusterSize];
      freed.add({ offset, length, table: run.table, discard });
    }
  };
  for (const l1 of plan.released) for await (const run of referenced(image, l1)) await drop(run);
  for (const offset of l2Offsets(plan.replaced)) {
    await drop({ first: offset / clusterSize, count: 1, table: true });
  }
  return table;
}

/** Writes all that is new, in no order: nothing refers to it yet. */
async function writeTables(
  image: Qcow2Image,
  { source, entries, snapshots }: TableSwitch,
  places: Places,
  table: EntryTable,
): Promise<L1Table> {
  const { file, refcounts, metadata } = image;
  const l1 = new L1Table(places.l1.offset, Buffer.alloc(entries * ENTRY_LENGTH));
  const counts = refcounts.staged(table);
  for await (const { index, table: l2 } of l2Tables(image, source)) {
    const offset = places.l2.get(index) ?? 0;
    await markTable(image, l2, counts);
    await file.write(offset, l2.bytes);
    l1.setL2(index, offset);
  }
  l1.takeDirty();
  if (entries > 0) await file.write(l1.offset, l1.bytes);
  if (snapshots !== undefined && snapshots.byteLength > 0) {
    await file.write(places.snapshots.offset, Buffer.from(snapshots));
  }
  table.takeDirty();
  await file.write(table.offset, table.bytes);
  await metadata.writeRefcounts();
  return l1;
}

/** What the old structures themselves lie in. */
function freeOld(
  image: Qcow2Image,
  { released, replaced }: TableSwitch,
  touched: ReadonlySet<number>,
  freed: PendingFrees,
): void {
  const { clusterSize } = image.geometry;
  const { table } = image.refcounts;
  const discard = image.options.passDiscard.other;
  const free = (offset: number, bytes: number): void => {
    const length = alignUp(bytes, clusterSize);
    if (length > 0) freed.add({ offset, length, table: true, discard });
  };
  for (const l1 of [...released, ...(replaced === undefined ? [] : [replaced])]) {
    free(l1.offset, l1.bytes.byteLength);
  }
  for (const number of touched) {
    free(refcountTableOffset(table.high(number), table.low(number)), clusterSize);
  }
  free(table.offset, table.bytes.byteLength);
}

/** The header has been written: what is in memory follows. */
function adopt(
  image: Qcow2Image,
  next: {
    readonly l1: L1Table;
    readonly table: EntryTable;
    readonly touched: ReadonlySet<number>;
  },
): void {
  const { refcounts, refcountCache, geometry } = image;
  const { table: old } = refcounts;
  for (const number of next.touched) {
    const offset = refcountTableOffset(old.high(number), old.low(number));
    refcountCache.drop(offset, geometry.clusterSize);
  }
  refcounts.replaceTable(next.table);
  image.map.l1 = next.l1;
  image.l2.drop(0, Number.POSITIVE_INFINITY);
  image.decompressed.clear();
}

/** Gives back what was taken. Once the header may have been written, that could be in use. */
async function giveUp(
  image: Qcow2Image,
  taken: readonly Place[],
  { decided }: { readonly decided: boolean },
): Promise<void> {
  for (const { offset, length } of taken) image.refcountCache.drop(offset, length);
  if (decided) return;
  for (const { offset, length } of taken) {
    image.frees.add({ offset, length, table: true, discard: false });
  }
  // Where this fails too, they come free with the next change, or are leaks.
  await image.metadata.commit().catch(() => undefined);
}
