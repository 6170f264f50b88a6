// SPDX-License-Identifier: MIT
/** What passed through a connection or an export; plain numbers, counted on every request. */

export type RequestCounter =
  | 'reads'
  | 'writes'
  | 'flushes'
  | 'trims'
  | 'caches'
  | 'writeZeroes'
  | 'blockStatuses'
  | 'errors';
export type ByteCounter = 'readBytes' | 'writtenBytes' | 'trimmedBytes' | 'zeroedBytes';

export class TrafficCounters {
  reads = 0;
  writes = 0;
  flushes = 0;
  trims = 0;
  writeZeroes = 0;
  caches = 0;
  blockStatuses = 0;
  /** Requests that ended in an error reply, refused ones included. */
  errors = 0;
  /** Bytes asked for and delivered, holes at their length. */
  readBytes = 0;
  writtenBytes = 0;
  trimmedBytes = 0;
  zeroedBytes = 0;

  /** Requests of all kinds that were answered. */
  get requests(): number {
    return (
      this.reads +
      this.writes +
      this.flushes +
      this.trims +
      this.writeZeroes +
      this.caches +
      this.blockStatuses
    );
  }
}
