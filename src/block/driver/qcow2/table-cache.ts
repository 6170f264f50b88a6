// SPDX-License-Identifier: MIT
/**
 * Tables of an image (slices of L2 tables, refcount blocks) in bounded memory. A table that is looked
 * at is pinned while who waits for it has not had its turn; a changed one stays until it is written.
 */
import { ENTRY_LENGTH } from '../../../../protocol/qcow2/entries.js';
import { alignDown, alignUp } from '../../../base/byte-range.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { type ReadableIo, readPadded } from './image-io.js';

/** Changed parts of a table are written in multiples of this, bytes: what disks write whole. */
const SECTOR = 512;

/** One table, or slice of one, in memory. */
export class CachedTable {
  /** Where it lies in the file, bytes; -1 while it holds nothing. */
  offset = -1;
  /** Looked at since the cache last thought of it. */
  recent = true;
  /** Who needs it to stay, waiting or writing. */
  pins = 0;
  /** Changed bytes, [dirtyFrom, dirtyTo); none when the first is not below the second. */
  dirtyFrom = Number.POSITIVE_INFINITY;
  dirtyTo = 0;
  readonly bytes: Buffer;
  readonly view: DataView;

  /** @param changed where the table enters itself when it differs from the file */
  constructor(
    length: number,
    readonly changed: Set<CachedTable>,
  ) {
    this.bytes = Buffer.allocUnsafeSlow(length);
    this.view = new DataView(this.bytes.buffer, this.bytes.byteOffset, length);
  }

  get dirty(): boolean {
    return this.dirtyFrom < this.dirtyTo;
  }

  /** Bytes [from, to) differ from the file now. */
  markDirty(from: number, to: number): void {
    if (from < this.dirtyFrom) this.dirtyFrom = from;
    if (to > this.dirtyTo) this.dirtyTo = to;
    this.changed.add(this);
  }

  high(index: number): number {
    return this.view.getUint32(index * ENTRY_LENGTH);
  }

  low(index: number): number {
    return this.view.getUint32(index * ENTRY_LENGTH + 4);
  }

  clean(): void {
    this.dirtyFrom = Number.POSITIVE_INFINITY;
    this.dirtyTo = 0;
    this.changed.delete(this);
  }
}

/** Bytes of a table as they were at one moment, on their way to the file. */
export interface TableCopy {
  readonly table: CachedTable;
  readonly offset: number;
  readonly from: number;
  readonly bytes: Buffer;
}

export interface TableCacheOptions {
  readonly file: () => ReadableIo;
  /** Length of a table, bytes. */
  readonly tableLength: number;
  /** Tables kept; a few more when that many are waited for at a time. */
  readonly tablesMax: number;
  /** Writes back what is changed, so that room can be made. */
  readonly writeBack: () => Promise<void>;
}

export class TableCache {
  readonly #options: TableCacheOptions;
  readonly #tables = new Map<number, CachedTable>();
  readonly #loading = new Map<number, { waiters: number; readonly table: Promise<CachedTable> }>();
  /** Those for which room has been found already. */
  readonly #reading = new Set<Promise<void>>();
  /** All slots in a ring, in use or not; `#hand` goes round it for something to throw out. */
  readonly #ring: CachedTable[] = [];
  readonly #changed = new Set<CachedTable>();
  #hand = 0;
  #last: CachedTable | undefined;

  constructor(options: TableCacheOptions) {
    this.#options = options;
  }

  /** Bytes of all tables in memory. */
  get bytes(): number {
    return this.#ring.length * this.#options.tableLength;
  }

  /** The table at `offset` of the file when it is in memory. */
  find(offset: number): CachedTable | undefined {
    const last = this.#last;
    if (last !== undefined && last.offset === offset) {
      last.recent = true;
      return last;
    }
    const table = this.#tables.get(offset);
    if (table === undefined) return undefined;
    table.recent = true;
    this.#last = table;
    return table;
  }

  /**
   * Calls `use` with the table, now or when it has been read. It stays in memory until `use` has
   * returned, which must not wait.
   */
  with<T>(offset: number, use: (table: CachedTable) => T): MaybePromise<T> {
    const table = this.find(offset);
    if (table !== undefined) return use(table);
    return this.#load(offset).then((loaded) => {
      loaded.pins--;
      return use(loaded);
    });
  }

  /**
   * A table that is not read from the file: its cluster has just been allocated. It is all zero when
   * `fill` gets it, which must not wait, and counts as changed as a whole.
   */
  async create(offset: number, fill: (table: CachedTable) => void): Promise<void> {
    const table = await this.#slot();
    table.pins--;
    this.drop(offset, 1);
    table.bytes.fill(0);
    this.#put(table, offset);
    fill(table);
    table.markDirty(0, this.#options.tableLength);
  }

  /** Copies of all changed parts; the tables count as unchanged and stay until `written`. */
  takeDirty(): TableCopy[] {
    const copies: TableCopy[] = [];
    for (const table of this.#changed) {
      const from = alignDown(table.dirtyFrom, SECTOR);
      const to = alignUp(table.dirtyTo, SECTOR);
      copies.push({
        table,
        offset: table.offset,
        from,
        bytes: Buffer.from(table.bytes.subarray(from, to)),
      });
      table.clean();
      table.pins++;
    }
    return copies;
  }

  get anyDirty(): boolean {
    return this.#changed.size > 0;
  }

  /** The copies are in the file, or failed and are to be written another time. */
  written(copies: readonly TableCopy[], outcome: 'done' | 'failed'): void {
    for (const { table, offset, from, bytes } of copies) {
      table.pins--;
      // Its cluster may have been given up meanwhile.
      if (outcome === 'failed' && table.offset === offset) {
        table.markDirty(from, from + bytes.byteLength);
      }
    }
  }

  /** Forgets the tables that lie in the range, changed or not: the clusters are no tables any more. */
  drop(offset: number, length: number): void {
    for (const table of this.#ring) {
      if (table.offset >= offset && table.offset < offset + length) this.#forget(table);
    }
  }

  /** Fulfilled when no table is being read of those that are now. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#reading);
  }

  /** Gives back the memory of tables that nobody has looked at since the last call. */
  trim(): void {
    for (let index = this.#ring.length - 1; index >= 0; index--) {
      const table = this.#ring[index];
      if (table === undefined || table.pins > 0 || table.dirty) continue;
      if (table.recent && table.offset >= 0) {
        table.recent = false;
        continue;
      }
      this.#forget(table);
      this.#ring.splice(index, 1);
    }
    this.#hand = 0;
  }

  /** Forgets everything. Only while nothing is changed and nobody waits. */
  clear(): void {
    this.#tables.clear();
    this.#changed.clear();
    this.#ring.length = 0;
    this.#last = undefined;
    this.#hand = 0;
  }

  /** @returns the table, with one pin for the caller */
  #load(offset: number): Promise<CachedTable> {
    const running = this.#loading.get(offset);
    if (running !== undefined) {
      running.waiters++;
      return running.table;
    }
    const loading = { waiters: 1, table: this.#read(offset) };
    this.#loading.set(offset, loading);
    return loading.table;
  }

  /** Every waiter has its pin when this is fulfilled, so that none finds the table gone. */
  async #read(offset: number): Promise<CachedTable> {
    try {
      const table = await this.#slot();
      try {
        const pending = readPadded(this.#options.file(), offset, table.bytes);
        if (pending !== undefined) await this.#whileReading(pending);
      } finally {
        table.pins--;
      }
      const raced = this.#tables.get(offset);
      if (raced === undefined) this.#put(table, offset);
      const loaded = raced ?? table;
      loaded.pins += this.#loading.get(offset)?.waiters ?? 0;
      return loaded;
    } finally {
      this.#loading.delete(offset);
    }
  }

  async #whileReading(pending: Promise<void>): Promise<void> {
    this.#reading.add(pending);
    try {
      await pending;
    } finally {
      this.#reading.delete(pending);
    }
  }

  #put(table: CachedTable, offset: number): void {
    table.offset = offset;
    table.recent = true;
    table.clean();
    this.#tables.set(offset, table);
  }

  #forget(table: CachedTable): void {
    if (this.#tables.get(table.offset) === table) this.#tables.delete(table.offset);
    table.offset = -1;
    table.clean();
    if (this.#last === table) this.#last = undefined;
  }

  /** An empty slot with one pin. */
  async #slot(): Promise<CachedTable> {
    const { tableLength, tablesMax, writeBack } = this.#options;
    for (let attempt = 0; this.#ring.length >= tablesMax && attempt < 2; attempt++) {
      const victim = this.#victim();
      if (victim !== undefined) {
        this.#forget(victim);
        victim.pins++;
        this.#shrink();
        return victim;
      }
      if (attempt === 0 && this.#changed.size > 0) {
        await writeBack();
      }
    }
    const table = new CachedTable(tableLength, this.#changed);
    table.pins++;
    this.#ring.push(table);
    return table;
  }

  /** Lets go of tables beyond the limit, taken while all others were pinned. */
  #shrink(): void {
    while (this.#ring.length > this.#options.tablesMax) {
      const extra = this.#victim();
      if (extra === undefined) return;
      this.#forget(extra);
      this.#ring.splice(this.#ring.indexOf(extra), 1);
    }
  }

  /** The first from the hand on that is unchanged, unpinned and was not looked at lately. */
  #victim(): CachedTable | undefined {
    for (let steps = 2 * this.#ring.length; steps > 0; steps--) {
      this.#hand = (this.#hand + 1) % this.#ring.length;
      const table = this.#ring[this.#hand];
      if (table === undefined || table.pins > 0 || table.dirty) continue;
      if (table.offset < 0 || !table.recent) return table;
      table.recent = false;
    }
    return undefined;
  }
}
