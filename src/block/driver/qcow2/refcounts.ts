// SPDX-License-Identifier: MIT
/**
 * Counts of references to host clusters, and the search for free ones. Counts go up before anything
 * refers to a cluster, and down only when what referred to it is gone from stable storage; so a refcount
 * block may be written at any time. @see qcow2.txt "Host cluster management"
 */
import { ENTRY_OFFSET_MAX, refcountTableOffset } from '../../../../protocol/qcow2/entries.js';
import { QCOW2_REFCOUNT_TABLE_MAX } from '../../../../protocol/qcow2/header.js';
import { getRefcount, refcountBytes, setRefcount } from '../../../../protocol/qcow2/refcounts.js';
import { BlockError } from '../../../base/errors.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { type Geometry, hex } from './geometry.js';
import { EntryTable } from './l1-table.js';
import type { CachedTable, TableCache } from './table-cache.js';

/** Host clusters, by number: offset divided by the cluster size. */
export interface ClusterRun {
  readonly first: number;
  readonly count: number;
}

export interface RefcountOptions {
  readonly geometry: Geometry;
  readonly cache: TableCache;
  readonly corrupt: (message: string) => never;
  /** Makes a longer table last: writes it, points the header at it. @returns when that is durable */
  readonly replaceTable: (table: EntryTable) => Promise<void>;
  readonly tableReplaced: () => void;
  /** A cluster has become a refcount block. */
  readonly blockAdded: (offset: number) => void;
  /** These have fewer references than before, maybe none. */
  readonly lowered: (run: ClusterRun) => void;
}

/** All methods but `refcount` are for one caller at a time: who holds the image's allocation lock. */
export class Refcounts {
  readonly #options: RefcountOptions;
  readonly #geometry: Geometry;
  #table: EntryTable;
  /** No cluster below this one is free. */
  #searchFrom = 0;

  constructor(options: RefcountOptions, table: EntryTable) {
    this.#options = options;
    this.#geometry = options.geometry;
    this.#table = table;
  }

  get table(): EntryTable {
    return this.#table;
  }

  /** The same blocks and others that lie elsewhere; for counts that are not in force yet. */
  staged(table: EntryTable): Refcounts {
    return new Refcounts(this.#options, table);
  }

  /** The file has another table now, whose counts are as high at least. */
  replaceTable(table: EntryTable): void {
    this.#table = table;
  }

  /** References to a cluster. */
  refcount(cluster: number): MaybePromise<number> {
    const { refcountsPerBlock: perBlock, refcountOrder: order } = this.#geometry;
    const offset = this.#blockOffset(Math.floor(cluster / perBlock));
    if (offset === 0) return 0;
    return this.#options.cache.with(offset, (block) =>
      getRefcount(block.view, order, cluster % perBlock),
    );
  }

  /** As `refcount`; undefined: it is not in memory. */
  known(cluster: number): number | undefined {
    const { refcountsPerBlock: perBlock, refcountOrder: order } = this.#geometry;
    const offset = this.#blockOffset(Math.floor(cluster / perBlock));
    if (offset === 0) return 0;
    const block = this.#options.cache.find(offset);
    return block === undefined ? undefined : getRefcount(block.view, order, cluster % perBlock);
  }

  /** Takes up to `countMax` free clusters that follow each other, the first that there are. */
  async allocate(countMax: number): Promise<ClusterRun> {
    const { refcountsPerBlock: perBlock } = this.#geometry;
    for (;;) {
      const number = Math.floor(this.#searchFrom / perBlock);
      await this.#ensureBlock(number, this.#searchFrom % perBlock);
      const first = Math.max(this.#searchFrom - number * perBlock, 0);
      const found = await this.#options.cache.with(this.#blockOffset(number), (block) =>
        this.#take(block, first, countMax),
      );
      if (found !== undefined) {
        this.#searchFrom = number * perBlock + found.first + found.count;
        return { first: number * perBlock + found.first, count: found.count };
      }
      this.#searchFrom = (number + 1) * perBlock;
    }
  }

  /**
   * Takes exactly `count` clusters, the first that are free, when they follow each other and their
   * block is in memory. @returns the first one's number
   */
  allocateNow(count: number): number | undefined {
    const { refcountsPerBlock: perBlock, refcountOrder: order } = this.#geometry;
    const number = Math.floor(this.#searchFrom / perBlock);
    const offset = this.#blockOffset(number);
    const block = offset === 0 ? undefined : this.#options.cache.find(offset);
    if (block === undefined) return undefined;
    const first = firstFree(block, order, this.#searchFrom - number * perBlock, perBlock);
    if (first + count > perBlock) return undefined;
    for (let index = first + 1; index < first + count; index++) {
      if (getRefcount(block.view, order, index) !== 0) return undefined;
    }
    this.#take(block, first, count);
    this.#searchFrom = number * perBlock + first + count;
    return number * perBlock + first;
  }

  /** Takes exactly `count` clusters that follow each other, for a table that needs more than one. */
  async allocateContiguous(count: number): Promise<number> {
    const { refcountsPerBlock: perBlock } = this.#geometry;
    // Each new block takes the first cluster that it counts: a longer run would be parted by one.
    if (count >= perBlock) return this.#allocateLong(count);
    let free = 0;
    for (let cluster = this.#searchFrom; ; cluster++) {
      free = (await this.refcount(cluster)) === 0 ? free + 1 : 0;
      if (free < count) continue;
      const first = cluster - count + 1;
      // A block that had to be made for the range lies in the range itself.
      if (!(await this.#ensureBlocks(first, count))) {
        free = 0;
        cluster = first;
        continue;
      }
      await this.add({ first, count }, 1);
      return first;
    }
  }

  /**
   * Changes the counts of clusters by `delta`.
   * @throws BlockError when a count would pass the width's limit; corrupt when one would fall below 0
   */
  async add(run: ClusterRun, delta: number): Promise<void> {
    await this.#inBlocks(run, (block, part) => this.#change(block, part, delta));
    if (delta >= 0) return;
    this.#options.lowered(run);
    if (run.first < this.#searchFrom) this.#searchFrom = run.first;
  }

  /**
   * One reference less to each cluster that has more than one.
   * @returns the others, whose counts stay
   */
  async decrementShared(run: ClusterRun): Promise<ClusterRun[]> {
    const { refcountOrder: order } = this.#geometry;
    const last: { first: number; count: number }[] = [];
    await this.#inBlocks(run, (block, { first, count, cluster: start }) => {
      for (let nth = 0; nth < count; nth++) {
        const cluster = start + nth;
        const now = getRefcount(block.view, order, first + nth);
        const before = last.at(-1);
        if (now > 1) setRefcount(block.view, order, first + nth, now - 1);
        else if (before !== undefined && before.first + before.count === cluster) before.count++;
        else last.push({ first: cluster, count: 1 });
      }
      block.markDirty(...refcountBytes(order, first, first + count - 1));
    });
    return last;
  }

  /**
   * Where a block of counts lies, by its number.
   * @throws BlockError: the image refers to clusters of which it has no counts
   */
  requireBlock(number: number): number {
    const offset = this.#blockOffset(number);
    if (offset === 0) throw this.#missing(number * this.#geometry.refcountsPerBlock);
    return offset;
  }

  /** All counts have been written anew, below another table. */
  useTable(table: EntryTable): void {
    this.#table = table;
    this.#searchFrom = 0;
    this.#options.tableReplaced();
  }

  /** Takes the first free clusters from `index` on. */
  #take(block: CachedTable, index: number, countMax: number): ClusterRun | undefined {
    const { refcountOrder: order, refcountsPerBlock: perBlock } = this.#geometry;
    const first = firstFree(block, order, index, perBlock);
    if (first === perBlock) return undefined;
    let end = first;
    while (end < perBlock && end - first < countMax) {
      if (getRefcount(block.view, order, end) !== 0) break;
      setRefcount(block.view, order, end, 1);
      end++;
    }
    block.markDirty(...refcountBytes(order, first, end - 1));
    return { first, count: end - first };
  }

  /**
   * Goes through the counts of a run block by block. @throws BlockError: a block is missing
   * @param work gets the indices of a part's counts in their block, and its first cluster
   */
  async #inBlocks(
    { first, count }: ClusterRun,
    work: (block: CachedTable, part: ClusterRun & { readonly cluster: number }) => void,
  ): Promise<void> {
    const { refcountsPerBlock: perBlock } = this.#geometry;
    for (let at = first; at < first + count; ) {
      const number = Math.floor(at / perBlock);
      const end = Math.min(first + count, (number + 1) * perBlock);
      const offset = this.#blockOffset(number);
      if (offset === 0) throw this.#missing(at);
      const part = { first: at % perBlock, count: end - at, cluster: at };
      await this.#options.cache.with(offset, (block) => work(block, part));
      at = end;
    }
  }

  #change(block: CachedTable, { first, count }: ClusterRun, delta: number): void {
    const { refcountOrder: order, refcountMax: max } = this.#geometry;
    for (let index = first; index < first + count; index++) {
      const now = getRefcount(block.view, order, index);
      if (now + delta > max) {
        throw new BlockError('DF_INVALID', `A cluster has ${max} references, the most it can have`);
      }
      if (now + delta < 0) {
        this.#options.corrupt(
          `Freeing a cluster that has ${now} references, refcount block ` +
            `offset 0x${block.offset.toString(16)}, index ${index}`,
        );
      }
    }
    for (let index = first; index < first + count; index++) {
      setRefcount(block.view, order, index, getRefcount(block.view, order, index) + delta);
    }
    block.markDirty(...refcountBytes(order, first, first + count - 1));
  }

  #missing(cluster: number): BlockError {
    return new BlockError('DF_CORRUPT_IMAGE', `Host cluster ${cluster} has no refcount block`);
  }

  /** A run behind all that is counted, with the blocks that count it in front. */
  async #allocateLong(count: number): Promise<number> {
    const { clusterSize, refcountsPerBlock: perBlock } = this.#geometry;
    let blocks = Math.ceil(count / perBlock);
    while (Math.ceil((blocks + count) / perBlock) > blocks) blocks++;
    for (;;) {
      let number = this.#table.entries;
      while (number > 0 && this.#blockOffset(number - 1) === 0) number--;
      if (number + blocks > this.#table.entries) {
        await this.#growTable(number + blocks - 1);
        continue;
      }
      const first = number * perBlock;
      this.#checkOffset((first + blocks + count) * clusterSize);
      await this.#fillNewBlocks(this.#table, { first, count: blocks + count }, blocks);
      return first + blocks;
    }
  }

  /** Where a refcount block lies, bytes; 0: nowhere, all its counts are 0. */
  #blockOffset(number: number): number {
    if (number >= this.#table.entries) return 0;
    const offset = refcountTableOffset(this.#table.high(number), this.#table.low(number));
    if (offset % this.#geometry.clusterSize !== 0) {
      this.#options.corrupt(
        `Refblock offset ${hex(offset)} unaligned (reftable index: ${hex(number)})`,
      );
    }
    return offset;
  }

  /** @returns false when a block was made, which takes clusters of those that it counts */
  async #ensureBlocks(first: number, count: number): Promise<boolean> {
    const { refcountsPerBlock: perBlock } = this.#geometry;
    let complete = true;
    for (let at = first; at < first + count; at = (Math.floor(at / perBlock) + 1) * perBlock) {
      if (await this.#ensureBlock(Math.floor(at / perBlock), at % perBlock)) complete = false;
    }
    return complete;
  }

  /**
   * Makes the refcount block where there is none; it takes the first cluster that is asked for, which
   * it counts itself. @returns true when clusters were taken for that
   */
  async #ensureBlock(number: number, index: number): Promise<boolean> {
    const { clusterSize, refcountsPerBlock: perBlock, refcountOrder: order } = this.#geometry;
    const grow = number >= this.#table.entries;
    if (grow) await this.#growTable(number);
    if (this.#blockOffset(number) !== 0) return grow;
    const offset = (number * perBlock + index) * clusterSize;
    this.#checkOffset(offset);
    await this.#options.cache.create(offset, ({ view }) => setRefcount(view, order, index, 1));
    this.#table.setOffset(number, offset);
    this.#options.blockAdded(offset);
    return true;
  }

  /** A longer table, placed with the blocks that count it where the old one's reach ends. */
  async #growTable(number: number): Promise<void> {
    const { clusterSize, refcountsPerBlock: perBlock } = this.#geometry;
    const old = this.#table;
    const perCluster = clusterSize / 8;
    const wanted = Math.max(number + 1, Math.ceil(old.entries * 1.5));
    const start = old.entries * perBlock;
    // Blocks for themselves and for the table; each adds an entry, so that this settles quickly.
    let tableClusters = Math.ceil(wanted / perCluster);
    let blocks = 1;
    for (;;) {
      const covered = Math.ceil((blocks + tableClusters) / perBlock);
      const entries = Math.max(wanted, old.entries + covered);
      const clusters = Math.ceil(entries / perCluster);
      if (covered === blocks && clusters === tableClusters) break;
      blocks = covered;
      tableClusters = clusters;
    }
    if (tableClusters * clusterSize > QCOW2_REFCOUNT_TABLE_MAX) throw tooLarge();
    this.#checkOffset((start + blocks + tableClusters) * clusterSize);
    const bytes = Buffer.alloc(tableClusters * clusterSize);
    old.bytes.copy(bytes);
    const table = new EntryTable((start + blocks) * clusterSize, bytes);
    await this.#fillNewBlocks(table, { first: start, count: blocks + tableClusters }, blocks);
    await this.#options.replaceTable(table);
    this.#table = table;
    this.#options.tableReplaced();
  }

  async #fillNewBlocks(table: EntryTable, used: ClusterRun, blocks: number): Promise<void> {
    const { clusterSize, refcountsPerBlock: perBlock, refcountOrder: order } = this.#geometry;
    for (let nth = 0; nth < blocks; nth++) {
      const offset = (used.first + nth) * clusterSize;
      const count = Math.min(perBlock, used.count - nth * perBlock);
      await this.#options.cache.create(offset, ({ view }) => {
        for (let index = 0; index < count; index++) setRefcount(view, order, index, 1);
      });
      table.setOffset(used.first / perBlock + nth, offset);
      this.#options.blockAdded(offset);
    }
  }

  #checkOffset(offset: number): void {
    if (offset >= Math.min(ENTRY_OFFSET_MAX, Number.MAX_SAFE_INTEGER)) throw tooLarge();
  }
}

/** @returns `end` when there is none */
function firstFree(block: CachedTable, order: number, from: number, end: number): number {
  let index = from;
  while (index < end && getRefcount(block.view, order, index) !== 0) index++;
  return index;
}

const tooLarge = (): BlockError =>
  new BlockError('DF_NO_SPACE', 'The image file can not grow any further');
