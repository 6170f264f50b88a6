// SPDX-License-Identifier: MIT
/** Keeps data from being written over the image's own structures, when its tables lie. */

import { refcountTableOffset } from '../../../../protocol/qcow2/entries.js';
import { directoryPlace } from './bitmap-directory.js';
import type { Qcow2Image } from './image.js';
import { readPadded } from './image-io.js';
import { L1Table } from './l1-table.js';
import type { OverlapCheck } from './options.js';
import { snapshotTables } from './snapshots.js';

interface Guarded {
  readonly offset: number;
  readonly end: number;
  readonly what: string;
}

/** QEMU's names for the structures, as they stand in messages. */
const NAMES: Readonly<Record<OverlapCheck, string>> = {
  'main-header': 'qcow2_header',
  'active-l1': 'active L1 table',
  'active-l2': 'active L2 table',
  'refcount-table': 'refcount table',
  'refcount-block': 'refcount block',
  'snapshot-table': 'snapshot table',
  'inactive-l1': 'inactive L1 table',
  'inactive-l2': 'inactive L2 table',
  'bitmap-directory': 'bitmap directory',
};

export class OverlapGuard {
  readonly #image: Qcow2Image;
  /** Tables of one cluster, by cluster number. */
  readonly #tables = new Map<number, OverlapCheck>();
  #ranges: Guarded[] = [];

  private constructor(image: Qcow2Image) {
    this.#image = image;
  }

  /** Takes in what the image has; later tables are added one by one. */
  static async create(image: Qcow2Image): Promise<OverlapGuard> {
    const guard = new OverlapGuard(image);
    const { l1 } = image.map;
    for (let index = 0; index < l1.entries; index++) guard.add('active-l2', l1.l2Offset(index));
    const { table } = image.refcounts;
    for (let index = 0; index < table.entries; index++) {
      guard.add('refcount-block', refcountTableOffset(table.high(index), table.low(index)));
    }
    await guard.#addSnapshots();
    guard.refresh();
    return guard;
  }

  /** A cluster has become a table. */
  add(what: OverlapCheck, offset: number): void {
    if (offset === 0 || !this.#image.options.overlapChecks.has(what)) return;
    this.#tables.set(Math.floor(offset / this.#image.geometry.clusterSize), what);
  }

  /** A cluster is no table any more. */
  remove(offset: number, length: number): void {
    const { clusterSize } = this.#image.geometry;
    for (let at = offset; at < offset + length; at += clusterSize) {
      this.#tables.delete(Math.floor(at / clusterSize));
    }
  }

  /** Where the structures lie that can move as a whole. */
  refresh(): void {
    const { geometry, map, refcounts, options } = this.#image;
    const at = (what: OverlapCheck, offset: number, length: number): Guarded[] =>
      offset > 0 || what === 'main-header'
        ? options.overlapChecks.has(what)
          ? [{ offset, end: offset + length, what: NAMES[what] }]
          : []
        : [];
    const directory = directoryPlace(this.#image);
    this.#ranges = [
      ...this.#ranges.filter(
        ({ what }) => what === NAMES['inactive-l1'] || what === NAMES['snapshot-table'],
      ),
      ...at('main-header', 0, geometry.clusterSize),
      ...at('active-l1', map.l1.offset, map.l1.bytes.byteLength),
      ...at('refcount-table', refcounts.table.offset, refcounts.table.bytes.byteLength),
      ...(directory === undefined
        ? []
        : at('bitmap-directory', directory.offset, directory.length)),
    ];
  }

  /** What the bytes of the file belong to that must not be written as data; undefined: free to write. */
  find(offset: number, length: number): string | undefined {
    const end = offset + length;
    for (const range of this.#ranges) {
      if (offset < range.end && range.offset < end) return range.what;
    }
    if (this.#tables.size === 0) return undefined;
    const { clusterSize } = this.#image.geometry;
    const last = Math.floor((end - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) {
      const what = this.#tables.get(cluster);
      if (what !== undefined) return NAMES[what];
    }
    return undefined;
  }

  async #addSnapshots(): Promise<void> {
    const { overlapChecks } = this.#image.options;
    const { tables, offset, length } = await snapshotTables(this.#image);
    if (length > 0 && overlapChecks.has('snapshot-table')) {
      this.#ranges.push({ offset, end: offset + length, what: NAMES['snapshot-table'] });
    }
    for (const table of tables) {
      if (overlapChecks.has('inactive-l1')) {
        this.#ranges.push({
          offset: table.offset,
          end: table.offset + table.entries * 8,
          what: NAMES['inactive-l1'],
        });
      }
      if (!overlapChecks.has('inactive-l2')) continue;
      const bytes = Buffer.alloc(table.entries * 8);
      await readPadded(this.#image.file, table.offset, bytes);
      const l1 = new L1Table(table.offset, bytes);
      for (let index = 0; index < l1.entries; index++) this.#addInactive(l1.l2Offset(index));
    }
  }

  /** A table that the active L1 table shares keeps its name. */
  #addInactive(offset: number): void {
    if (!this.#tables.has(Math.floor(offset / this.#image.geometry.clusterSize))) {
      this.add('inactive-l2', offset);
    }
  }
}
