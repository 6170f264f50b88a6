// SPDX-License-Identifier: MIT
/** Counts of requests by latency. @see qapi BlockLatencyHistogramInfo */
import { BlockError } from '../base/errors.js';

export class LatencyHistogram {
  /** Lower bounds of all bins but the first, nanoseconds, ascending. */
  readonly boundaries: readonly number[];
  /** Requests in [0, boundaries[0]), [boundaries[0], boundaries[1]), … [last, ∞). */
  readonly bins: number[];

  /**
   * @param boundaries nanoseconds; positive and strictly ascending
   * @throws BlockError DF_INVALID when they are not
   */
  constructor(boundaries: readonly number[]) {
    let previous = 0;
    for (const boundary of boundaries) {
      if (boundary <= previous) {
        throw new BlockError(
          'DF_INVALID',
          `histogram boundary ${boundary} is not above the one before it, ${previous}`,
        );
      }
      previous = boundary;
    }
    this.boundaries = [...boundaries];
    this.bins = new Array(boundaries.length + 1).fill(0);
  }

  /** @param latencyNs nanoseconds that one request took */
  count(latencyNs: number): void {
    const { boundaries, bins } = this;
    let low = 0;
    let high = boundaries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (latencyNs < (boundaries[middle] ?? 0)) high = middle;
      else low = middle + 1;
    }
    bins[low] = (bins[low] ?? 0) + 1;
  }
}
