// SPDX-License-Identifier: MIT
/** Whether the active tables mark as theirs alone what they have alone, by the counts in the file. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { ENTRY_COPIED, refcountTableOffset } from '../../../../../protocol/qcow2/entries.js';
import { getRefcount } from '../../../../../protocol/qcow2/refcounts.js';
import { readPadded } from '../image-io.js';
import { EntryTable } from '../l1-table.js';
import { hex, l2Entry } from './l2-table.js';
import { isOthersPlace } from './places.js';
import { isNoPlace } from './refcount-blocks.js';
import type { CheckSubject } from './subject.js';

/** Memory for refcount blocks, bytes; two of them at least. */
const BLOCKS_LENGTH = 16 * 1024 * 1024;

/** Tells of marks that are wrong, and puts them right where `fix` allows it; durable then. */
export async function checkCopiedMarks(subject: CheckSubject): Promise<void> {
  const { l1, file, geometry, tally, fix } = subject;
  const { clusterSize } = geometry;
  // With leaks alone to be mended, only if the counts can be trusted.
  const clean = tally.checkErrors === 0 && tally.corruptions === 0 && tally.leaks === 0;
  const repair = fix === 'all' || (fix === 'leaks' && clean);
  const counts = new CountsInFile(subject);
  const bytes = Buffer.alloc(clusterSize);
  for (let index = 0; index < l1.entries; index++) {
    const offset = l1.l2Offset(index);
    if (offset === 0) continue;
    const count = await counts.get(offset);
    if (count === undefined) continue;
    const found = { high: l1.high(index), low: l1.low(index), count };
    const copied = checkMark(subject, found, {
      what: `L2 cluster: l1_index=${index} l1_entry`,
      repair,
    });
    if (copied !== undefined) {
      l1.set(index, copied, found.low);
      await file.write(l1.offset + index * 8, l1.bytes.subarray(index * 8, index * 8 + 8));
    }
    await readPadded(file, offset, bytes);
    await checkTable(subject, new EntryTable(offset, bytes), { counts, repair });
    await nextTurn();
  }
  l1.takeDirty();
  if (repair) await file.flush();
}

async function checkTable(
  subject: CheckSubject,
  table: EntryTable,
  { counts, repair }: { readonly counts: CountsInFile; readonly repair: boolean },
): Promise<void> {
  const { geometry, hasDataFile, file } = subject;
  let mayRepair: boolean | undefined;
  for (let index = 0; index < geometry.l2Entries; index++) {
    const { high, low, kind, offset } = l2Entry(subject, table, index);
    if (kind !== 'allocated') continue;
    const known = hasDataFile ? 1 : counts.get(offset);
    const count = typeof known === 'object' ? await known : known;
    if (count === undefined || (count === 1) === ((high & ENTRY_COPIED) !== 0)) continue;
    mayRepair ??= repair && !isOthersPlace(subject, table.offset, { active: true });
    const found = { high, low, count };
    const copied = checkMark(subject, found, { what: 'data cluster: l2_entry', repair: mayRepair });
    if (copied !== undefined) table.set(geometry.extendedL2 ? index * 2 : index, copied, low);
  }
  if (table.dirty) await file.write(table.offset, table.bytes);
}

/** @returns the high word as it has to be, when that is another and is to be mended */
function checkMark(
  { say, tally }: CheckSubject,
  { high, low, count }: { readonly high: number; readonly low: number; readonly count: number },
  { what, repair }: { readonly what: string; readonly repair: boolean },
): number | undefined {
  if ((count === 1) === ((high & ENTRY_COPIED) !== 0)) return undefined;
  say(`${repair ? 'Repairing' : 'ERROR'} OFLAG_COPIED ${what}=${hex(high, low)} refcount=${count}`);
  if (!repair) {
    tally.corruptions++;
    return undefined;
  }
  tally.corruptionsFixed++;
  return (count === 1 ? high | ENTRY_COPIED : high & ~ENTRY_COPIED) >>> 0;
}

/** Counts as the file has them; blocks that were asked for last stay in memory. */
class CountsInFile {
  readonly #subject: CheckSubject;
  readonly #blocks = new Map<number, DataView | undefined>();
  readonly #blocksMax: number;

  constructor(subject: CheckSubject) {
    this.#subject = subject;
    this.#blocksMax = Math.max(2, BLOCKS_LENGTH / subject.geometry.clusterSize);
  }

  /** @param offset host bytes @returns undefined where the count can't be had */
  get(offset: number): number | undefined | Promise<number | undefined> {
    const { clusterSize, refcountsPerBlock: perBlock } = this.#subject.geometry;
    const cluster = Math.floor(offset / clusterSize);
    const number = Math.floor(cluster / perBlock);
    const index = cluster % perBlock;
    const there = this.#blocks.get(number);
    if (there !== undefined) {
      return getRefcount(there, this.#subject.geometry.refcountOrder, index);
    }
    return this.#read(number, index);
  }

  async #read(number: number, index: number): Promise<number | undefined> {
    const { table, geometry, file } = this.#subject;
    const { clusterSize, refcountOrder: order } = geometry;
    const there = number < table.entries;
    const offset = there ? refcountTableOffset(table.high(number), table.low(number)) : 0;
    if (offset === 0) return 0;
    if (isNoPlace(offset, clusterSize)) return undefined;
    const bytes = Buffer.alloc(clusterSize);
    await readPadded(file, offset, bytes);
    const [oldest] = this.#blocks.keys();
    if (this.#blocks.size >= this.#blocksMax && oldest !== undefined) this.#blocks.delete(oldest);
    const view = new DataView(bytes.buffer, bytes.byteOffset, clusterSize);
    this.#blocks.set(number, view);
    return getRefcount(view, order, index);
  }
}
