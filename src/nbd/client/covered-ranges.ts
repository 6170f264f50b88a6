// SPDX-License-Identifier: MIT
/** Which bytes of a read have come, so that a server can neither send twice nor leave out any. */
import { NBD_CLIENT_FRAGMENTS_MAX } from '../../base/limits.js';

/** Disjoint, sorted, merged where they touch; nearly always one. */
export class CoveredRanges {
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  /** True when all of `start` to `end` has been added. */
  covers(start: number, end: number): boolean {
    if (start === end) return true;
    return this.#starts.length === 1 && this.#starts[0] === start && this.#ends[0] === end;
  }

  /** @returns false when the range overlaps what is there already, or there are too many pieces */
  add(start: number, end: number): boolean {
    const starts = this.#starts;
    const ends = this.#ends;
    let at = starts.length;
    while (at > 0 && (starts[at - 1] ?? 0) > start) at--;
    const next = starts[at];
    if (next !== undefined && next < end) return false;
    const previous = ends[at - 1];
    if (previous !== undefined && previous > start) return false;
    const joinsPrevious = previous === start;
    const joinsNext = next === end;
    if (joinsPrevious && joinsNext) {
      ends[at - 1] = ends[at] ?? end;
      starts.splice(at, 1);
      ends.splice(at, 1);
    } else if (joinsPrevious) {
      ends[at - 1] = end;
    } else if (joinsNext) {
      starts[at] = start;
    } else {
      if (starts.length >= NBD_CLIENT_FRAGMENTS_MAX) return false;
      starts.splice(at, 0, start);
      ends.splice(at, 0, end);
    }
    return true;
  }
}
