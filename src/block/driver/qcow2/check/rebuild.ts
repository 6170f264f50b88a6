// SPDX-License-Identifier: MIT
/** All counts written anew, in clusters that nothing refers to, when those that there are are damaged. */
import { QCOW2_REFCOUNT_TABLE_MAX } from '../../../../../protocol/qcow2/header.js';
import { setRefcount } from '../../../../../protocol/qcow2/refcounts.js';
import { BlockError } from '../../../../base/errors.js';
import { EntryTable } from '../l1-table.js';
import { COUNT_PAGE, type ReferenceCounts } from './reference-counts.js';
import type { CheckSubject } from './subject.js';

/**
 * The old table and its blocks stay as they are, so that the image is as before until the header, last
 * of all, points at the new table; they are leaks then.
 *
 * @param counts complete; the new structures are added to it
 * @throws BlockError DF_TOO_LARGE when the table would be longer than a table may be
 */
export async function rebuildCounts(subject: CheckSubject, counts: ReferenceCounts): Promise<void> {
  const { file, geometry, header } = subject;
  const { clusterSize } = geometry;
  subject.say('Rebuilding refcount structure');
  const { places, table, tableCluster } = placeStructures(subject, counts);
  for (const [number, cluster] of places) {
    table.setOffset(number, cluster * clusterSize);
    await file.write(cluster * clusterSize, blockOf(subject, counts, number));
  }
  await file.write(tableCluster * clusterSize, table.bytes);
  await file.flush();
  await header.update({
    refcountTableOffset: BigInt(tableCluster * clusterSize),
    refcountTableClusters: table.bytes.byteLength / clusterSize,
  });
  subject.table = table;
}

interface Placed {
  /** Cluster of each refcount block, by its number. */
  readonly places: ReadonlyMap<number, number>;
  readonly table: EntryTable;
  readonly tableCluster: number;
}

/** Finds room for the blocks, then for the table, which may need further blocks, and so on. */
function placeStructures({ geometry }: CheckSubject, counts: ReferenceCounts): Placed {
  const { clusterSize, refcountsPerBlock: perBlock } = geometry;
  const places = new Map<number, number>();
  placeBlocks(places, counts, perBlock);
  for (let clusters = 0; ; ) {
    const last = [...places.keys()].reduce((a, b) => Math.max(a, b), 0);
    const needed = Math.ceil(((last + 1) * 8) / clusterSize);
    if (needed * clusterSize > QCOW2_REFCOUNT_TABLE_MAX) {
      throw new BlockError('DF_TOO_LARGE', 'The counts need a longer table than an image may have');
    }
    clusters = Math.max(needed, clusters + 1);
    const tableCluster = counts.firstFree(0, clusters);
    const before = places.size;
    for (let nth = 0; nth < clusters; nth++) counts.add(tableCluster + nth);
    placeBlocks(places, counts, perBlock);
    const reach = ((clusters * clusterSize) / 8) * perBlock;
    if (before === places.size || counts.clusters <= reach) {
      const bytes = Buffer.alloc(clusters * clusterSize);
      return { places, table: new EntryTable(tableCluster * clusterSize, bytes), tableCluster };
    }
    // What was taken for a table that is too short stays taken: the next check frees it.
  }
}

/** Finds a cluster for each block that has anything to count, until those of the blocks are counted. */
function placeBlocks(places: Map<number, number>, counts: ReferenceCounts, perBlock: number): void {
  const missing = (): number[] =>
    usedBlocks(counts, perBlock).filter((number) => !places.has(number));
  for (let wanted = missing(); wanted.length > 0; wanted = missing()) {
    let from = 0;
    for (const number of wanted) {
      const cluster = counts.firstFree(Math.max(from, number * perBlock), 1);
      from = cluster + 1;
      counts.add(cluster);
      places.set(number, cluster);
    }
  }
}

/** Numbers of refcount blocks with anything to count, ascending. */
function usedBlocks(counts: ReferenceCounts, perBlock: number): number[] {
  const numbers = new Set<number>();
  for (const page of counts.pageNumbers()) {
    const first = page * COUNT_PAGE;
    for (let at = first; at < first + COUNT_PAGE; ) {
      const number = Math.floor(at / perBlock);
      const next = Math.min(first + COUNT_PAGE, (number + 1) * perBlock);
      if (!numbers.has(number) && counts.any(at, next - at)) numbers.add(number);
      at = next;
    }
  }
  return [...numbers].sort((a, b) => a - b);
}

function blockOf({ geometry }: CheckSubject, counts: ReferenceCounts, number: number): Buffer {
  const { clusterSize, refcountsPerBlock: perBlock, refcountOrder: order } = geometry;
  const bytes = Buffer.alloc(clusterSize);
  const view = new DataView(bytes.buffer, bytes.byteOffset, clusterSize);
  for (let index = 0; index < perBlock; index++) {
    const count = counts.get(number * perBlock + index);
    if (count > 0) setRefcount(view, order, index, count);
  }
  return bytes;
}
