// SPDX-License-Identifier: MIT
/** The counts in the file: whether their blocks are sound, and whether they tell the truth. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { refcountTableOffset } from '../../../../../protocol/qcow2/entries.js';
import { getRefcount, setRefcount } from '../../../../../protocol/qcow2/refcounts.js';
import { isZero } from '../../../shaped-requests.js';
import { readPadded } from '../image-io.js';
import { COUNT_PAGE, type ReferenceCounts } from './reference-counts.js';
import { markRange } from './references.js';
import { type CheckSubject, corruption } from './subject.js';

/** Low bits of an entry of the refcount table that must be 0. */
const RESERVED = 0x1ff;

/** A refcount block can't lie there, be it inside the file or outside. @param offset host bytes */
export const isNoPlace = (offset: number, clusterSize: number): boolean =>
  offset % clusterSize !== 0 || offset >= 2 ** 63;

/**
 * Counts the refcount blocks as well. @returns false when the blocks can't be used to count any more:
 * all of them have to be made anew
 */
export function countBlocks(subject: CheckSubject, counts: ReferenceCounts): boolean {
  const { table, geometry } = subject;
  const { clusterSize } = geometry;
  const inFile = counts.clusters;
  let sound = true;
  const bad = (text: string): void => {
    corruption(subject, text);
    sound = false;
  };
  for (let index = 0; index < table.entries; index++) {
    const low = table.low(index);
    const offset = refcountTableOffset(table.high(index), low);
    if ((low & RESERVED) !== 0) {
      bad(`refcount table entry ${index} has reserved bits set`);
    } else if (offset % clusterSize !== 0) {
      bad(`refcount block ${index} is not cluster aligned; refcount table entry corrupted`);
    } else if (offset >= inFile * clusterSize) {
      bad(`refcount block ${index} is outside image`);
    } else if (offset !== 0) {
      markRange(subject, counts, offset, clusterSize);
      const count = counts.get(offset / clusterSize);
      if (count !== 1) bad(`refcount block ${index} refcount=${count}`);
    }
  }
  return sound;
}

export interface Comparison {
  /** A cluster in use has no count at all: a block is missing, or damaged. */
  readonly rebuild: boolean;
}

/**
 * Compares the counts in the file with how often clusters are referred to, puts them right as far as
 * `fix` allows, and sums up in the tally. What is changed is durable when it returns.
 */
export async function compareCounts(
  subject: CheckSubject,
  counts: ReferenceCounts,
  fix: CheckSubject['fix'],
): Promise<Comparison> {
  const state = { rebuild: false, highest: 0 };
  for (const number of blockNumbers(subject, counts)) {
    await compareBlock({ subject, counts, fix, state }, number);
    await nextTurn();
  }
  if (fix !== 'none') await subject.file.flush();
  subject.tally.imageEndOffset = (state.highest + 1) * subject.geometry.clusterSize;
  return { rebuild: state.rebuild };
}

/** Refcount blocks that may count something other than 0, or should; ascending. */
function blockNumbers({ table, geometry }: CheckSubject, counts: ReferenceCounts): number[] {
  const { refcountsPerBlock: perBlock } = geometry;
  const numbers = new Set<number>();
  const blocks = Math.ceil(counts.clusters / perBlock);
  for (let index = 0; index < Math.min(table.entries, blocks); index++) {
    if (table.high(index) !== 0 || table.low(index) !== 0) numbers.add(index);
  }
  for (const page of counts.pageNumbers()) {
    const first = Math.floor((page * COUNT_PAGE) / perBlock);
    const last = Math.floor(((page + 1) * COUNT_PAGE - 1) / perBlock);
    for (let number = first; number <= Math.min(last, blocks - 1); number++) numbers.add(number);
  }
  return [...numbers].sort((a, b) => a - b);
}

interface Compared {
  readonly subject: CheckSubject;
  readonly counts: ReferenceCounts;
  readonly fix: CheckSubject['fix'];
  readonly state: { rebuild: boolean; highest: number };
}

async function compareBlock(compared: Compared, number: number): Promise<void> {
  const { subject, counts, state } = compared;
  const { table, geometry, tally, file } = subject;
  const { clusterSize, refcountsPerBlock: perBlock, refcountOrder: order } = geometry;
  const first = number * perBlock;
  const end = Math.min(first + perBlock, counts.clusters);
  const there = number < table.entries;
  const offset = there ? refcountTableOffset(table.high(number), table.low(number)) : 0;
  if (isNoPlace(offset, clusterSize)) {
    subject.say(
      `Can't get refcounts of clusters ${first} to ${end - 1}: their block lies where none can`,
    );
    tally.checkErrors += end - first;
    return;
  }
  const bytes = Buffer.alloc(clusterSize);
  if (offset !== 0) await readPadded(file, offset, bytes);
  if (isZero(bytes) && !counts.any(first, end - first)) return;
  const block = new DataView(bytes.buffer, bytes.byteOffset, clusterSize);
  const freed: number[] = [];
  let changed = false;
  for (let cluster = first; cluster < end; cluster++) {
    const counted = getRefcount(block, order, cluster - first);
    const wanted = counts.get(cluster);
    if (counted > 0 || wanted > 0) state.highest = cluster;
    if (counted === wanted || !mend(compared, { cluster, counted, wanted })) continue;
    setRefcount(block, order, cluster - first, wanted);
    changed = true;
    if (wanted === 0) freed.push(cluster);
  }
  if (!changed) return;
  await file.write(offset, bytes);
  await releaseClusters(subject, freed);
}

/** Tells of a count that is wrong. @returns true when it is to be put right */
function mend(
  { subject, fix, state }: Compared,
  found: { readonly cluster: number; readonly counted: number; readonly wanted: number },
): boolean {
  const { tally, say } = subject;
  const { cluster, counted, wanted } = found;
  if (counted === 0) state.rebuild = true;
  const leaked = counted > wanted;
  const repair = counted !== 0 && (leaked ? fix !== 'none' : fix === 'all');
  const what = leaked ? 'Leaked' : 'ERROR';
  say(`${repair ? 'Repairing' : what} cluster ${cluster} refcount=${counted} reference=${wanted}`);
  if (leaked && repair) tally.leaksFixed++;
  else if (leaked) tally.leaks++;
  else if (repair) tally.corruptionsFixed++;
  else tally.corruptions++;
  return repair;
}

/** Clusters that nothing refers to: their room goes back to the file system, once that is durable. */
async function releaseClusters(
  { file, geometry }: CheckSubject,
  clusters: readonly number[],
): Promise<void> {
  if (clusters.length === 0) return;
  const { clusterSize } = geometry;
  await file.flush();
  let start = 0;
  for (const [index, cluster] of clusters.entries()) {
    if (clusters[index + 1] === cluster + 1) continue;
    const offset = (clusters[start] ?? 0) * clusterSize;
    const length = Math.min((cluster + 1) * clusterSize, file.size) - offset;
    if (length > 0) await file.discard(offset, length);
    start = index + 1;
  }
}
