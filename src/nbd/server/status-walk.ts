// SPDX-License-Identifier: MIT
/** Extents of several contexts over one range. */
import { NBD_STATUS_EXTENTS_MAX, NBD_STATUS_TURN } from '../../base/limits.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { ChainExtent } from '../../block/block-status.js';
import type { ExportBackend } from './export.js';
import { allocationFlags, dirtyFlags, type MetaContext } from './meta-contexts.js';
import type { StatusChunk } from './replies.js';

export interface StatusQuery {
  /** Bytes, checked against the export's size. */
  readonly offset: number;
  readonly length: number;
  /** One extent a context is enough. */
  readonly one: boolean;
}

/** Extents of one context: neighbours of equal flags are one. */
class ExtentList {
  /** [length, flags, length, flags ...]. */
  readonly values: number[] = [];
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
  }

  /** Returns false when the list is full and the extent is not in it. */
  add(length: number, flags: number): boolean {
    const { values } = this;
    const last = values.length - 2;
    if (last >= 0 && values[last + 1] === flags) {
      values[last] = (values[last] ?? 0) + length;
      return true;
    }
    if (values.length / 2 >= this.#max) return false;
    values.push(length, flags);
    return true;
  }
}

type StatusSource = Pick<ExportBackend, 'blockStatus'>;

/** A chunk for each context, each with at least one extent and none beyond the range. */
export function walkStatus(
  backend: StatusSource,
  contexts: readonly MetaContext[],
  query: StatusQuery,
): MaybePromise<StatusChunk[]> {
  const max = query.one ? 1 : NBD_STATUS_EXTENTS_MAX;
  const chunks: StatusChunk[] = [];
  const ofChain: ChainList[] = [];
  for (const { id, kind, bitmap } of contexts) {
    const list = new ExtentList(max);
    chunks.push({ contextId: id, extents: list.values });
    if (kind !== 'dirty') ofChain.push({ kind, list, isFull: false });
    else if (bitmap !== undefined) addDirty(list, bitmap, query);
  }
  if (ofChain.length === 0) return chunks;
  const pending = new ChainWalk(backend, ofChain, query).run();
  return pending === undefined ? chunks : pending.then(() => chunks);
}

function addDirty(
  list: ExtentList,
  bitmap: NonNullable<MetaContext['bitmap']>,
  { offset, length: total }: StatusQuery,
): void {
  let done = 0;
  while (done < total) {
    const { length, dirty } = bitmap.nextExtent(offset + done, total - done);
    if (!list.add(length, dirtyFlags(dirty))) return;
    done += length;
  }
}

/** The list of a context that the node's chain answers. */
interface ChainList {
  readonly kind: 'allocation' | 'depth';
  readonly list: ExtentList;
  /** It takes no further part: it must not go on behind a gap. */
  isFull: boolean;
}

/** Asks the chain extent by extent, so many in a turn, until all lists are full or the range is done. */
class ChainWalk {
  readonly #backend: StatusSource;
  readonly #lists: readonly ChainList[];
  readonly #query: StatusQuery;
  #done = 0;
  /** Extents since others had their turn; promises that are fulfilled at once give them none. */
  #turn = 0;

  constructor(backend: StatusSource, lists: readonly ChainList[], query: StatusQuery) {
    this.#backend = backend;
    this.#lists = lists;
    this.#query = query;
  }

  run(): MaybePromise<void> {
    while (this.#turn < NBD_STATUS_TURN) {
      const { offset, length } = this.#query;
      const extent = this.#backend.blockStatus(offset + this.#done, length - this.#done);
      if (extent instanceof Promise) {
        return extent.then((value) => (this.#take(value) ? this.run() : undefined));
      }
      if (!this.#take(extent)) return;
    }
    this.#turn = 0;
    return new Promise<void>((resolve) => setImmediate(resolve)).then(() => this.run());
  }

  /** Returns false when the walk has come to its end. */
  #take(extent: ChainExtent): boolean {
    this.#turn++;
    let isOpen = false;
    for (const entry of this.#lists) {
      if (entry.isFull) continue;
      const flags = entry.kind === 'depth' ? extent.depth : allocationFlags(extent.flags);
      entry.isFull = !entry.list.add(extent.length, flags);
      isOpen ||= !entry.isFull;
    }
    this.#done += extent.length;
    return isOpen && this.#done < this.#query.length;
  }
}
