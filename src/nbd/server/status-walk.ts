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

/** A chunk for each context, each with at least one extent and none beyond the range. */
export function walkStatus(
  backend: Pick<ExportBackend, 'blockStatus'>,
  contexts: readonly MetaContext[],
  query: StatusQuery,
): MaybePromise<StatusChunk[]> {
  const max = query.one ? 1 : NBD_STATUS_EXTENTS_MAX;
  const chunks: StatusChunk[] = [];
  const ofChain: { kind: 'allocation' | 'depth'; list: ExtentList }[] = [];
  for (const { id, kind, bitmap } of contexts) {
    const list = new ExtentList(max);
    chunks.push({ contextId: id, extents: list.values });
    if (kind !== 'dirty') ofChain.push({ kind, list });
    else if (bitmap !== undefined) {
      let done = 0;
      while (done < query.length) {
        const { length, dirty } = bitmap.nextExtent(query.offset + done, query.length - done);
        if (!list.add(length, dirtyFlags(dirty))) break;
        done += length;
      }
    }
  }
  if (ofChain.length === 0) return chunks;

  let done = 0;
  let turn = 0;
  /** Returns false when the walk has come to its end. */
  const take = (extent: ChainExtent): boolean => {
    turn++;
    let open = false;
    for (const entry of ofChain) {
      const flags = entry.kind === 'depth' ? extent.depth : allocationFlags(extent.flags);
      // A full list must not go on behind a gap, so it takes no further part.
      if (!entry.list.add(extent.length, flags)) ofChain.splice(ofChain.indexOf(entry), 1);
      else open = true;
    }
    done += extent.length;
    return open && done < query.length;
  };
  const walk = (): MaybePromise<StatusChunk[]> => {
    while (turn < NBD_STATUS_TURN) {
      const extent = backend.blockStatus(query.offset + done, query.length - done);
      if (extent instanceof Promise) {
        return extent.then((value) => (take(value) ? walk() : chunks));
      }
      if (!take(extent)) return chunks;
    }
    turn = 0;
    return new Promise<void>((resolve) => setImmediate(resolve)).then(walk);
  };
  return walk();
}
