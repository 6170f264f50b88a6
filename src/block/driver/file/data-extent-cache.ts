// SPDX-License-Identifier: MIT
/**
 * The last run of data that was found in a file. Asking the file system costs more than the rest of a
 * status request, and clients ask piece by piece. Only data is remembered: if another process turns it
 * into a hole, calling it data is still true enough to copy by; the other way round loses data.
 */
export class DataExtentCache {
  #start = 0;
  #end = 0;
  #generation = 0;

  /** End of the known data that `offset` lies in, or 0. */
  dataEnd(offset: number): number {
    return offset >= this.#start && offset < this.#end ? this.#end : 0;
  }

  /** To be passed to `remember`: what was found before a change must not be remembered after it. */
  get generation(): number {
    return this.#generation;
  }

  remember(start: number, end: number, generation: number): void {
    if (generation !== this.#generation) return;
    this.#start = start;
    this.#end = end;
  }

  /** Some of the range may be a hole from now on. */
  forget(offset: number, length: number): void {
    this.#generation++;
    if (offset < this.#end && this.#start < offset + length) this.#end = this.#start;
  }
}
