// SPDX-License-Identifier: MIT
/**
 * Works out all counts anew, from what the tables refer to: needed after a crash of who used lazy
 * refcounts. @see qcow2.txt, incompatible feature "dirty bit"
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  compressedRange,
  ENTRY_COMPRESSED,
  entryOffset,
  refcountTableOffset,
} from '../../../../protocol/qcow2/entries.js';
import { QCOW2_INCOMPAT_DIRTY } from '../../../../protocol/qcow2/header.js';
import { BlockError } from '../../../base/errors.js';
import { directoryPlace, readTable } from './bitmap-directory.js';
import type { Qcow2Image } from './image.js';
import { readPadded } from './image-io.js';
import { EntryTable, L1Table } from './l1-table.js';
import { snapshotTables } from './snapshots.js';

const PAGE = 65536;
const COUNT_MAX = 0xffff;

/** Counts of clusters, in pages where there are any. */
export class ReferenceCounts {
  readonly #pages = new Map<number, Uint16Array>();

  get(cluster: number): number {
    return this.#pages.get(Math.floor(cluster / PAGE))?.[cluster % PAGE] ?? 0;
  }

  add(cluster: number): void {
    const number = Math.floor(cluster / PAGE);
    let page = this.#pages.get(number);
    if (page === undefined) {
      page = new Uint16Array(PAGE);
      this.#pages.set(number, page);
    }
    const index = cluster % PAGE;
    const now = page[index] ?? 0;
    if (now === COUNT_MAX) throw broken(`Cluster ${cluster} has too many references to count`);
    page[index] = now + 1;
  }

  /** All clusters that are referred to, in pages by number; ascending within a page. */
  *used(): Generator<number> {
    for (const [number, page] of this.#pages) {
      for (let index = 0; index < PAGE; index++) {
        if ((page[index] ?? 0) > 0) yield number * PAGE + index;
      }
    }
  }
}

/** Puts the counts in the file right and takes the mark away. @throws BlockError DF_CORRUPT_IMAGE */
export async function repairRefcounts(image: Qcow2Image): Promise<void> {
  const counts = await countReferences(image);
  await image.allocation.run(() => correct(image, counts));
  await image.metadata.writeRefcounts();
  await image.file.flush();
  const { header } = image.header;
  await image.header.update({ incompatible: header.incompatible & ~QCOW2_INCOMPAT_DIRTY });
}

async function correct(image: Qcow2Image, counts: ReferenceCounts): Promise<void> {
  const { refcounts, geometry } = image;
  const { refcountsPerBlock: perBlock, refcountMax } = geometry;
  for (const cluster of counts.used()) {
    const wanted = counts.get(cluster);
    if (wanted > refcountMax) throw broken(`Cluster ${cluster} has more references than it can`);
    const now = await refcounts.refcount(cluster);
    if (now < wanted) await refcounts.set(cluster, wanted);
  }
  const { table } = refcounts;
  for (let number = 0; number < table.entries; number++) {
    if (refcountTableOffset(table.high(number), table.low(number)) === 0) continue;
    for (let cluster = number * perBlock; cluster < (number + 1) * perBlock; cluster++) {
      const wanted = counts.get(cluster);
      if ((await refcounts.refcount(cluster)) > wanted) await refcounts.set(cluster, wanted);
    }
    await nextTurn();
  }
}

async function countReferences(image: Qcow2Image): Promise<ReferenceCounts> {
  const counts = new ReferenceCounts();
  const { refcounts, map, file } = image;
  const { table } = refcounts;
  const mark = (offset: number, length: number): void => markRange(image, counts, offset, length);
  mark(0, 1);
  mark(table.offset, table.bytes.byteLength);
  for (let index = 0; index < table.entries; index++) {
    const offset = refcountTableOffset(table.high(index), table.low(index));
    if (offset !== 0) mark(offset, 1);
  }
  await countL1(image, counts, map.l1);
  const snapshots = await snapshotTables(image);
  mark(snapshots.offset, snapshots.length);
  for (const { offset, entries } of snapshots.tables) {
    const bytes = Buffer.alloc(entries * 8);
    await readPadded(file, offset, bytes);
    await countL1(image, counts, new L1Table(offset, bytes));
  }
  await countBitmaps(image, mark);
  return counts;
}

async function countBitmaps(
  image: Qcow2Image,
  mark: (offset: number, length: number) => void,
): Promise<void> {
  const place = directoryPlace(image);
  if (place !== undefined) mark(place.offset, place.length);
  for (const bitmap of image.storedBitmaps) {
    mark(bitmap.tableOffset, bitmap.tableEntries * 8);
    for (const cluster of await readTable(image, bitmap)) {
      if (typeof cluster === 'number') mark(cluster, 1);
    }
  }
}

async function countL1(image: Qcow2Image, counts: ReferenceCounts, l1: L1Table): Promise<void> {
  markRange(image, counts, l1.offset, l1.bytes.byteLength);
  const bytes = Buffer.alloc(image.geometry.clusterSize);
  for (let index = 0; index < l1.entries; index++) {
    const offset = l1.l2Offset(index);
    if (offset === 0) continue;
    markRange(image, counts, offset, 1);
    await readPadded(image.file, offset, bytes);
    if (!image.hasDataFile) countL2(image, counts, new EntryTable(offset, bytes));
    await nextTurn();
  }
}

function countL2(image: Qcow2Image, counts: ReferenceCounts, table: EntryTable): void {
  const { clusterBits, l2Entries, extendedL2 } = image.geometry;
  const step = extendedL2 ? 2 : 1;
  for (let index = 0; index < l2Entries; index++) {
    const high = table.high(index * step);
    const low = table.low(index * step);
    if ((high & ENTRY_COMPRESSED) !== 0) {
      const { offset, length } = compressedRange(high, low, clusterBits);
      markRange(image, counts, offset, length);
    } else if (entryOffset(high, low) !== 0) {
      markRange(image, counts, entryOffset(high, low), 1);
    }
  }
}

/** @throws BlockError DF_CORRUPT_IMAGE for a place that lies far outside the file */
function markRange(
  image: Qcow2Image,
  counts: ReferenceCounts,
  offset: number,
  length: number,
): void {
  if (length === 0) return;
  const { clusterSize } = image.geometry;
  const first = Math.floor(offset / clusterSize);
  const last = Math.floor((offset + length - 1) / clusterSize);
  // A cluster past the end may have been allocated and not written yet; far past it none can.
  if (offset > image.file.size + image.geometry.bytesPerL2) {
    throw broken(`A table refers to ${length} bytes at ${offset}, outside the file`);
  }
  for (let cluster = first; cluster <= last; cluster++) counts.add(cluster);
}

const broken = (message: string): BlockError => new BlockError('DF_CORRUPT_IMAGE', message);
