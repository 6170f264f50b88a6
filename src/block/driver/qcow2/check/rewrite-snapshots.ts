// SPDX-License-Identifier: MIT
/** The table of snapshots written anew, elsewhere in the file, when its entries are not as they must be. */
import { refcountTableOffset } from '../../../../../protocol/qcow2/entries.js';
import { setRefcount } from '../../../../../protocol/qcow2/refcounts.js';
import {
  completeSnapshot,
  encodeSnapshotTables,
  QCOW2_SNAPSHOT_TABLE_MAX,
} from '../../../../../protocol/qcow2/snapshots.js';
import { alignDown } from '../../../../base/byte-range.js';
import { BlockError } from '../../../../base/errors.js';
import { readPadded } from '../image-io.js';
import { rebuildCounts } from './rebuild.js';
import { compareCounts, countBlocks } from './refcount-blocks.js';
import type { ReferenceCounts } from './reference-counts.js';
import { countReferences } from './references.js';
import { type CheckSubject, newTally } from './subject.js';

/**
 * Until the header points at the new table, last of all, the image is as before; then the old one comes
 * free. What is there is counted right. Durable when it is done.
 * @throws BlockError DF_TOO_LARGE when the table becomes longer than it may be
 */
export async function rewriteSnapshots(subject: CheckSubject): Promise<void> {
  const { file, geometry, header, snapshots, size } = subject;
  const { clusterSize } = geometry;
  const entries = snapshots.entries.map((entry) => completeSnapshot(entry, alignDown(size, 512)));
  const bytes = Buffer.from(encodeSnapshotTables(entries));
  if (bytes.byteLength > QCOW2_SNAPSHOT_TABLE_MAX) {
    throw new BlockError('DF_TOO_LARGE', 'The snapshot table would become too long');
  }
  const quiet = { ...subject, say: () => undefined, tally: newTally() };
  const counts = await count(quiet);
  const clusters = Math.ceil(bytes.byteLength / clusterSize);
  const place = placeOf(quiet, counts, clusters);
  const first = place ?? counts.firstFree(0, clusters);
  for (let cluster = first; cluster < first + clusters; cluster++) counts.add(cluster);
  if (place === undefined) await rebuildCounts(quiet, counts);
  else await countOnce(quiet, place, clusters);
  const offset = first * clusterSize;
  await file.write(offset, bytes);
  await file.flush();
  await header.update({ snapshotsOffset: BigInt(offset), snapshotCount: entries.length });
  quiet.snapshots = { offset, length: bytes.byteLength, entries };
  await compareCounts(quiet, await count(quiet), 'leaks');
  subject.snapshots = quiet.snapshots;
  subject.table = quiet.table;
  subject.tally.imageEndOffset = quiet.tally.imageEndOffset;
}

async function count(subject: CheckSubject): Promise<ReferenceCounts> {
  const counts = await countReferences(subject);
  countBlocks(subject, counts);
  return counts;
}

/** The first of so many free clusters that there are counts for; undefined: there are none. */
function placeOf(
  { table, geometry }: CheckSubject,
  counts: ReferenceCounts,
  clusters: number,
): number | undefined {
  const { refcountsPerBlock: perBlock } = geometry;
  for (let from = 0; from < table.entries * perBlock; ) {
    const first = counts.firstFree(from, clusters);
    const last = Math.floor((first + clusters - 1) / perBlock);
    let block = Math.floor(first / perBlock);
    while (block <= last && block < table.entries && blockAt(table, block) !== 0) block++;
    if (block > last) return first;
    from = (block + 1) * perBlock;
  }
  return undefined;
}

const blockAt = (table: CheckSubject['table'], block: number): number =>
  refcountTableOffset(table.high(block), table.low(block));

/** Clusters that nobody refers to yet: leaks, should this be the end. */
async function countOnce(
  { file, geometry, table }: CheckSubject,
  first: number,
  clusters: number,
): Promise<void> {
  const { clusterSize, refcountsPerBlock: perBlock, refcountOrder: order } = geometry;
  const bytes = Buffer.alloc(clusterSize);
  const view = new DataView(bytes.buffer, bytes.byteOffset, clusterSize);
  for (let cluster = first; cluster < first + clusters; ) {
    const block = Math.floor(cluster / perBlock);
    const end = Math.min(first + clusters, (block + 1) * perBlock);
    const offset = blockAt(table, block);
    await readPadded(file, offset, bytes);
    for (; cluster < end; cluster++) setRefcount(view, order, cluster % perBlock, 1);
    await file.write(offset, bytes);
  }
}
