// SPDX-License-Identifier: MIT
/**
 * Brings changed metadata into the file, in an order that leaves a sound image wherever it is cut off:
 * counts before what refers to a cluster, data and new tables before what points at them, and clusters
 * come free when nothing on stable storage points at them any more.
 */
import { QCOW2_INCOMPAT_DIRTY } from '../../../../protocol/qcow2/header.js';
import { Mutex } from '../../../base/mutex.js';
import type { Qcow2Image } from './image.js';
import type { ChunkCopy, EntryTable } from './l1-table.js';
import type { PendingFree } from './pending-frees.js';
import type { TableCopy } from './table-cache.js';

/** What one commit takes along: the state of one moment. */
interface Taken {
  readonly l2: TableCopy[];
  readonly l1: ChunkCopy[];
  readonly l1Table: EntryTable;
  readonly frees: PendingFree[];
}

export class MetadataWriter {
  readonly #image: Qcow2Image;
  readonly #commitLock = new Mutex();
  readonly #refcountLock = new Mutex();
  /** Commits that have not ended; what they have taken along is nowhere marked as changed. */
  #running = 0;
  /** Data, tables or counts were written since the last barrier. */
  #unsettled = false;

  constructor(image: Qcow2Image) {
    this.#image = image;
  }

  /** Something was written that metadata will point at. */
  unsettle(): void {
    this.#unsettled = true;
  }

  /** True when the file has all metadata (but for counts, while the image is marked dirty). */
  get clean(): boolean {
    const { l2, map, frees, refcountCache, refcounts } = this.#image;
    if (this.#running > 0) return false;
    if (l2.anyDirty || map.l1.dirty || frees.count > 0) return false;
    return this.#lazy || !(refcountCache.anyDirty || refcounts.table.dirty);
  }

  /** The image is marked so that counts are worked out anew after a crash. */
  get #lazy(): boolean {
    return (this.#image.header.header.incompatible & QCOW2_INCOMPAT_DIRTY) !== 0n;
  }

  /** Writes all that has changed up to now; it is durable when the files below are flushed next. */
  async commit(): Promise<void> {
    this.#running++;
    try {
      await this.#commitLock.run(() => this.#commit());
    } finally {
      this.#running--;
    }
  }

  /** Writes everything, counts too, so that the file can be left as it is. */
  async finish(): Promise<void> {
    const { header, compressedSpace } = this.#image;
    await compressedSpace.padFile();
    for (let round = 0; round < 4 && !this.clean; round++) await this.commit();
    if (!this.#lazy) return;
    await this.writeRefcounts();
    await this.#barrier('all');
    await header.update({ incompatible: header.header.incompatible & ~QCOW2_INCOMPAT_DIRTY });
  }

  /** Before the first change with lazy refcounts: marks the image, durably. */
  async markDirty(): Promise<void> {
    const { header } = this.#image;
    if (this.#lazy) return;
    await header.update({ incompatible: header.header.incompatible | QCOW2_INCOMPAT_DIRTY });
  }

  async #commit(): Promise<void> {
    const { l2, map, frees, file } = this.#image;
    const taken: Taken = {
      l2: l2.takeDirty(),
      l1: map.l1.takeDirty(),
      l1Table: map.l1,
      frees: frees.take(),
    };
    try {
      // Even then every cluster in use has a refcount block, whatever that says.
      if (!this.#lazy || this.#image.refcounts.table.dirty) await this.writeRefcounts();
      if (taken.l2.length + taken.l1.length > 0) await this.#writeTables(taken);
      l2.written(taken.l2, 'done');
      taken.l2.length = 0;
      if (taken.frees.length > 0) await file.flush();
    } catch (error) {
      l2.written(taken.l2, 'failed');
      taken.l1Table.putBack(taken.l1);
      frees.putBack(taken.frees);
      throw error;
    }
    if (taken.frees.length > 0) await this.#free(taken.frees);
  }

  async #writeTables({ l2, l1, l1Table }: Taken): Promise<void> {
    const { file, guard, options } = this.#image;
    await this.#barrier('needed');
    const { sliceLength } = options;
    for (const { offset } of l2) this.#checkTable(offset, sliceLength, 'active L2 table');
    await this.#writeCopies(l2);
    if (l1.length === 0) return;
    if (l2.length > 0) await file.flush();
    for (const { from, bytes } of l1) await file.write(l1Table.offset + from, bytes);
    guard?.refresh();
  }

  /** A table that lies on structures of another kind is not written. */
  #checkTable(offset: number, size: number, own: 'active L2 table' | 'refcount block'): void {
    const what = this.#image.guard?.find(offset, size);
    if (what === undefined || what === own) return;
    this.#image.corrupt({
      message: `Preventing invalid write on metadata (overlaps with ${what})`,
      offset,
      size,
      fatal: true,
    });
  }

  async #writeCopies(copies: readonly TableCopy[]): Promise<void> {
    const { file } = this.#image;
    const waiting: Promise<void>[] = [];
    for (const { offset, from, bytes } of copies) {
      const pending = file.write(offset + from, bytes);
      if (pending !== undefined) waiting.push(pending);
    }
    if (waiting.length > 0) await Promise.all(waiting);
  }

  /** What was written before is on stable storage afterwards. */
  async #barrier(kind: 'needed' | 'all'): Promise<void> {
    if (kind === 'needed' && !this.#unsettled) return;
    this.#unsettled = false;
    const { file, data } = this.#image;
    try {
      await Promise.all([file.flush(), data === file ? undefined : data.flush()]);
    } catch (error) {
      this.#unsettled = true;
      throw error;
    }
  }

  /** Writes changed refcount blocks, and then the table where it has got new ones. */
  writeRefcounts(): Promise<void> {
    return this.#refcountLock.run(async () => {
      const { refcountCache, refcounts, file, geometry } = this.#image;
      const { table } = refcounts;
      const blocks = refcountCache.takeDirty();
      const chunks = table.takeDirty();
      try {
        for (const { offset } of blocks) {
          this.#checkTable(offset, geometry.clusterSize, 'refcount block');
        }
        await this.#writeCopies(blocks);
        if (chunks.length > 0) {
          await file.flush();
          for (const { from, bytes } of chunks) await file.write(table.offset + from, bytes);
        }
      } catch (error) {
        refcountCache.written(blocks, 'failed');
        table.putBack(chunks);
        throw error;
      }
      // Not before: a barrier that came meanwhile did not take them along.
      if (blocks.length + chunks.length > 0) this.#unsettled = true;
      refcountCache.written(blocks, 'done');
    });
  }

  /** For who holds the allocation lock: a longer refcount table takes the old one's place, durably. */
  async replaceRefcountTable(table: EntryTable): Promise<void> {
    const { file, header, refcounts, frees, geometry } = this.#image;
    const old = refcounts.table;
    await this.writeRefcounts();
    table.takeDirty();
    await file.write(table.offset, table.bytes);
    await file.flush();
    await header.update({
      refcountTableOffset: BigInt(table.offset),
      refcountTableClusters: table.bytes.byteLength / geometry.clusterSize,
    });
    const { length } = old.bytes;
    const discard = this.#image.options.passDiscard.other;
    frees.add({ offset: old.offset, length, table: true, discard });
  }

  /** Nothing in the file refers to these any more; what is under way on them ends first. */
  async #free(frees: readonly PendingFree[]): Promise<void> {
    const { hostIo, l2, allocation, decompressed, guard } = this.#image;
    await Promise.allSettled(hostIo);
    await l2.settled();
    decompressed.clear();
    await allocation.run(async () => {
      for (const run of frees) {
        if (run.table) {
          l2.drop(run.offset, run.length);
          guard?.remove(run.offset, run.length);
        }
        await this.#freeRun(run);
      }
    });
  }

  async #freeRun({ offset, length, discard }: PendingFree): Promise<void> {
    const { refcounts, geometry, file } = this.#image;
    const { clusterSize } = geometry;
    const first = Math.floor(offset / clusterSize);
    const count = Math.ceil((offset + length) / clusterSize) - first;
    if (discard) {
      for (let at = first; at < first + count; ) {
        let end = at;
        for (; end < first + count; end++) {
          const left = refcounts.refcount(end);
          if ((typeof left === 'number' ? left : await left) !== 1) break;
        }
        const bytes = Math.min(end * clusterSize, file.size) - at * clusterSize;
        if (bytes > 0 && end > at) await file.discard(at * clusterSize, bytes);
        at = Math.max(end, at + 1);
      }
    }
    await refcounts.add({ first, count }, -1);
  }
}
