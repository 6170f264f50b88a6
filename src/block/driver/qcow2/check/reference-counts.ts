// SPDX-License-Identifier: MIT
/** How often each host cluster is referred to, in memory for those that are. */
import { BlockError } from '../../../../base/errors.js';

/** Clusters that one page counts. */
export const COUNT_PAGE = 4096;
/** 1 GiB of pages: the clusters of a full image of 64 TiB. */
const PAGES_MAX = 2 ** 18;
/** A byte that says this stands for a larger count, kept apart. Hardly a cluster has so many. */
const LARGE = 255;

export class ReferenceCounts {
  readonly #pages = new Map<number, Uint8Array>();
  readonly #large = new Map<number, number>();
  /** Clusters that there are: those of the file, and the last that is referred to behind them. */
  clusters: number;

  /**
   * @param clusters of the file
   * @param max the largest count that the image can hold
   */
  constructor(
    clusters: number,
    readonly max: number,
  ) {
    this.clusters = clusters;
  }

  get(cluster: number): number {
    const count = this.#pages.get(Math.floor(cluster / COUNT_PAGE))?.[cluster % COUNT_PAGE] ?? 0;
    return count === LARGE ? (this.#large.get(cluster) ?? LARGE) : count;
  }

  /**
   * One more reference. @returns false when the image can't count so many: the count stays
   * @throws BlockError DF_NO_MEMORY for references that are strewn over an absurdly large file
   */
  add(cluster: number): boolean {
    const now = this.get(cluster);
    if (now >= this.max) return false;
    const next = now + 1;
    if (next >= LARGE) this.#large.set(cluster, next);
    this.#page(Math.floor(cluster / COUNT_PAGE))[cluster % COUNT_PAGE] = Math.min(next, LARGE);
    if (cluster >= this.clusters) this.clusters = cluster + 1;
    return true;
  }

  /** Numbers of the pages that count something, ascending. */
  pageNumbers(): number[] {
    return [...this.#pages.keys()].sort((a, b) => a - b);
  }

  /** Is any of the clusters referred to? */
  any(first: number, count: number): boolean {
    const end = first + count;
    for (let at = first; at < end; ) {
      const number = Math.floor(at / COUNT_PAGE);
      const next = Math.min(end, (number + 1) * COUNT_PAGE);
      const page = this.#pages.get(number);
      const from = at - number * COUNT_PAGE;
      if (page?.subarray(from, from + next - at).some((value) => value > 0) === true) return true;
      at = next;
    }
    return false;
  }

  /** The first cluster from `from` on that nothing refers to, with `count` - 1 more behind it. */
  firstFree(from: number, count: number): number {
    let free = 0;
    for (let cluster = from; ; cluster++) {
      free = this.get(cluster) === 0 ? free + 1 : 0;
      if (free === count) return cluster - count + 1;
    }
  }

  #page(number: number): Uint8Array {
    const there = this.#pages.get(number);
    if (there !== undefined) return there;
    if (this.#pages.size === PAGES_MAX) {
      throw new BlockError(
        'DF_NO_MEMORY',
        `More than ${PAGES_MAX} parts of the file, ${COUNT_PAGE} clusters each, are in use: too many to count`,
      );
    }
    const page = new Uint8Array(COUNT_PAGE);
    this.#pages.set(number, page);
    return page;
  }
}
