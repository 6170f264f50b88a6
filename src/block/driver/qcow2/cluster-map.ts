// SPDX-License-Identifier: MIT
/**
 * From guest offsets to host clusters. What is in memory is answered at once, into an object of the
 * caller's, so that a hit allocates nothing. @see qcow2.txt "Cluster mapping"
 */
import {
  ENTRY_COMPRESSED,
  ENTRY_COPIED,
  ENTRY_ZERO,
  entryOffset,
} from '../../../../protocol/qcow2/entries.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { type Geometry, hex } from './geometry.js';
import type { L1Table } from './l1-table.js';
import type { CachedTable, TableCache } from './table-cache.js';

export const RUN_UNALLOCATED = 0;
export const RUN_ZERO = 1;
export const RUN_DATA = 2;
export const RUN_COMPRESSED = 3;
/** An entry that breaks the format's rules; `problem` says which. */
const RUN_INVALID = 4;

/** A run of guest bytes of one kind. */
export class Run {
  /** RUN_* */
  kind = RUN_UNALLOCATED;
  /** Bytes, at most what was asked for. */
  length = 0;
  /**
   * DATA: where the first byte lies. ZERO, UNALLOCATED: the same if a host cluster is kept for it, else
   * 0. COMPRESSED: nothing; see `high` and `low`.
   */
  hostOffset = 0;
  /** The host cluster is used by this entry alone. */
  copied = false;
  /** The entry of the first cluster. */
  high = 0;
  low = 0;
  problem = '';
}

/** An L2 entry's place: the slice of the table that it is in, and its number there. */
export interface EntryPlace {
  readonly sliceOffset: number;
  readonly index: number;
}

export interface ClusterMapOptions {
  readonly geometry: Geometry;
  readonly cache: TableCache;
  /** Length of a slice of an L2 table in the cache, bytes. */
  readonly sliceLength: number;
  /** Guest clusters lie in another file, at their guest offsets. */
  readonly dataFile: boolean;
  /** Says that the image is corrupt, and throws. */
  readonly corrupt: (message: string) => never;
}

export class ClusterMap {
  readonly #geometry: Geometry;
  readonly #cache: TableCache;
  readonly #sliceLength: number;
  readonly #sliceEntries: number;
  readonly #dataFile: boolean;
  readonly #corrupt: (message: string) => never;
  l1: L1Table;

  constructor(options: ClusterMapOptions, l1: L1Table) {
    this.#geometry = options.geometry;
    this.#cache = options.cache;
    this.#sliceLength = options.sliceLength;
    this.#sliceEntries = options.sliceLength / options.geometry.l2EntryLength;
    this.#dataFile = options.dataFile;
    this.#corrupt = options.corrupt;
    this.l1 = l1;
  }

  /** Clusters that one slice maps. */
  get sliceEntries(): number {
    return this.#sliceEntries;
  }

  /**
   * What the guest bytes from `offset` are, as far as one slice tells.
   * @returns false when a slice of an L2 table has to be read first: see `find`
   */
  lookup(offset: number, length: number, run: Run): boolean {
    const place = this.#sliceOf(offset);
    if (place === 0) {
      const { bytesPerL2 } = this.#geometry;
      run.kind = RUN_UNALLOCATED;
      run.hostOffset = 0;
      run.copied = false;
      run.length = Math.min(length, bytesPerL2 - (offset % bytesPerL2));
      return true;
    }
    const table = this.#cache.find(place);
    if (table === undefined) return false;
    this.describe(table, offset, length, run);
    if (run.kind === RUN_INVALID) this.#corrupt(run.problem);
    return true;
  }

  /** As `lookup`, after reading what is missing. */
  find(offset: number, length: number, run: Run): MaybePromise<void> {
    if (this.lookup(offset, length, run)) return;
    const found = this.#cache.with(this.#sliceOf(offset), (table) => {
      this.describe(table, offset, length, run);
      if (run.kind === RUN_INVALID) this.#corrupt(run.problem);
    });
    return found;
  }

  /** Place of the entry for a guest offset; its L2 table must exist. */
  placeOf(offset: number): EntryPlace {
    const cluster = Math.floor(offset / this.#geometry.clusterSize);
    return { sliceOffset: this.#sliceOf(offset), index: cluster % this.#sliceEntries };
  }

  /** Offset of the slice in the file, bytes; 0 when the L1 entry is empty. */
  #sliceOf(offset: number): number {
    const { clusterSize, l2Entries, bytesPerL2 } = this.#geometry;
    const l1Index = Math.floor(offset / bytesPerL2);
    if (l1Index >= this.l1.entries) return 0;
    const l2Offset = this.l1.l2Offset(l1Index);
    if (l2Offset === 0) return 0;
    if (l2Offset % clusterSize !== 0) {
      this.#corrupt(`L2 table offset ${hex(l2Offset)} unaligned (L1 index: ${hex(l1Index)})`);
    }
    const index = Math.floor(offset / clusterSize) % l2Entries;
    return l2Offset + Math.floor(index / this.#sliceEntries) * this.#sliceLength;
  }

  /** As `lookup`, in a slice that is at hand; an invalid entry gives RUN_INVALID. */
  describe(table: CachedTable, offset: number, length: number, run: Run): void {
    if (this.#geometry.extendedL2) this.#describeExtended(table, offset, length, run);
    else this.#describeStandard(table, offset, length, run);
  }

  #describeStandard(table: CachedTable, offset: number, length: number, run: Run): void {
    const { clusterSize } = this.#geometry;
    const first = Math.floor(offset / clusterSize) % this.#sliceEntries;
    const inCluster = offset % clusterSize;
    const high = table.high(first);
    const low = table.low(first);
    this.#head(run, high, low, inCluster);
    run.kind = this.#standardKind(high, low);
    run.length = Math.min(length, clusterSize - inCluster);
    if (run.kind === RUN_COMPRESSED || !this.#valid(table, first, offset, run)) return;
    let next = run.hostOffset - inCluster + clusterSize;
    for (let index = first + 1; run.length < length && index < this.#sliceEntries; index++) {
      const nextHigh = table.high(index);
      const nextLow = table.low(index);
      if (this.#standardKind(nextHigh, nextLow) !== run.kind) return;
      if (run.kind === RUN_DATA) {
        if (entryOffset(nextHigh, nextLow) !== next) return;
        if (((nextHigh ^ high) & ENTRY_COPIED) !== 0) return;
        next += clusterSize;
      }
      run.length = Math.min(length, run.length + clusterSize);
    }
  }

  #standardKind(high: number, low: number): number {
    if ((high & ENTRY_COMPRESSED) !== 0) return RUN_COMPRESSED;
    if ((low & ENTRY_ZERO) !== 0) return RUN_ZERO;
    if (entryOffset(high, low) !== 0) return RUN_DATA;
    // Offset 0 can be a guest cluster only in a file of its own.
    return this.#dataFile && (high & ENTRY_COPIED) !== 0 ? RUN_DATA : RUN_UNALLOCATED;
  }

  #describeExtended(table: CachedTable, offset: number, length: number, run: Run): void {
    const { clusterSize, subclusterSize } = this.#geometry;
    let index = Math.floor(offset / clusterSize) % this.#sliceEntries;
    const inCluster = offset % clusterSize;
    const high = table.high(2 * index);
    const low = table.low(2 * index);
    this.#head(run, high, low, inCluster);
    let sub = Math.floor(inCluster / subclusterSize);
    run.kind = this.#extendedKind(table, index, sub);
    run.length = 0;
    if (run.kind === RUN_COMPRESSED) {
      run.length = Math.min(length, clusterSize - inCluster);
      return;
    }
    if (!this.#valid(table, index, offset, run)) return;
    let next = run.hostOffset - inCluster + clusterSize;
    let reach = subclusterSize - (offset % subclusterSize);
    for (;;) {
      run.length = Math.min(length, run.length + reach);
      reach = subclusterSize;
      sub++;
      if (run.length >= length) return;
      if (sub === this.#geometry.subclusters) {
        sub = 0;
        index++;
        if (index === this.#sliceEntries || !this.#goesOn(table, index, run, next)) return;
        next += clusterSize;
      }
      if (this.#extendedKind(table, index, sub) !== run.kind) return;
    }
  }

  /** The next cluster's entry is one to which the run can go on. */
  #goesOn(table: CachedTable, index: number, run: Run, next: number): boolean {
    if (run.kind !== RUN_DATA) return true;
    const high = table.high(2 * index);
    if (entryOffset(high, table.low(2 * index)) !== next) return false;
    return (high & ENTRY_COPIED) === (run.high & ENTRY_COPIED);
  }

  #extendedKind(table: CachedTable, index: number, sub: number): number {
    const high = table.high(2 * index);
    if ((high & ENTRY_COMPRESSED) !== 0) return RUN_COMPRESSED;
    const zero = (table.high(2 * index + 1) >>> sub) & 1;
    const allocated = (table.low(2 * index + 1) >>> sub) & 1;
    if (zero === 1) return allocated === 1 ? RUN_INVALID : RUN_ZERO;
    if (allocated === 0) return RUN_UNALLOCATED;
    if (entryOffset(high, table.low(2 * index)) !== 0) return RUN_DATA;
    return this.#dataFile && (high & ENTRY_COPIED) !== 0 ? RUN_DATA : RUN_INVALID;
  }

  #head(run: Run, high: number, low: number, inCluster: number): void {
    const host = entryOffset(high, low);
    run.high = high;
    run.low = low;
    run.copied = (high & ENTRY_COPIED) !== 0;
    run.hostOffset = host === 0 && !(this.#dataFile && run.copied) ? 0 : host + inCluster;
    run.problem = '';
  }

  /** Checks the first entry of a run; the others of a DATA run follow from it. */
  #valid(table: CachedTable, index: number, offset: number, run: Run): boolean {
    const { clusterSize, version } = this.#geometry;
    const inCluster = offset % clusterSize;
    const where = (): string => `(L2 offset: ${hex(table.offset)}, L2 index: ${hex(index)})`;
    if (run.kind === RUN_INVALID) run.problem = `Invalid cluster entry found ${where()}`;
    else if (run.kind === RUN_ZERO && version < 3) {
      run.problem = `Zero cluster entry found in pre-v3 image ${where()}`;
    } else if (run.kind === RUN_DATA || run.hostOffset !== 0) {
      const host = run.hostOffset - inCluster;
      if (host % clusterSize !== 0) {
        const what = run.kind === RUN_ZERO ? 'Preallocated zero cluster' : 'Cluster allocation';
        run.problem = `${what} offset ${hex(host)} unaligned ${where()}`;
      } else if (this.#dataFile && host !== offset - inCluster) {
        run.problem =
          `External data file host cluster offset ${hex(host)} does not match guest ` +
          `cluster offset: ${hex(offset - inCluster)}, ${where()}`;
      }
    }
    if (run.problem === '') return true;
    run.kind = RUN_INVALID;
    return false;
  }
}
