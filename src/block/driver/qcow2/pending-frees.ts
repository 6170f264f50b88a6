// SPDX-License-Identifier: MIT
/**
 * Host clusters that nothing in memory refers to any more, while the file may still do. They lose their
 * count, and so become free, only when the file has been brought up to date.
 */

export interface PendingFree {
  /** Host bytes, whole clusters. */
  readonly offset: number;
  length: number;
  /** The clusters held a table, which may be in a cache. */
  readonly table: boolean;
  /** Tell the file below that the bytes are not needed. */
  readonly discard: boolean;
}

export class PendingFrees {
  #runs: PendingFree[] = [];
  #bytes = 0;

  get count(): number {
    return this.#runs.length;
  }

  get bytes(): number {
    return this.#bytes;
  }

  add(run: PendingFree): void {
    this.#bytes += run.length;
    const last = this.#runs.at(-1);
    const joins =
      last !== undefined &&
      last.offset + last.length === run.offset &&
      last.table === run.table &&
      last.discard === run.discard;
    if (joins) last.length += run.length;
    else this.#runs.push({ ...run });
  }

  /** All of them; the caller sees to it that they come free, or puts them back. */
  take(): PendingFree[] {
    const runs = this.#runs;
    this.#runs = [];
    this.#bytes = 0;
    return runs;
  }

  putBack(runs: readonly PendingFree[]): void {
    for (const run of runs) this.add(run);
  }
}
