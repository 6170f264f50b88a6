// SPDX-License-Identifier: MIT
/** What a node has done, by kind of operation. @see qapi BlockDeviceStats */
import type { RequestFlags } from './block-driver.js';
import type { LatencyHistogram } from './latency-histogram.js';

export type IoOperation = 'read' | 'write' | 'flush' | 'unmap';

const NS_PER_MS = 1e6;

/** Totals of one kind of operation since the node was opened. */
export class OperationCounters {
  /** Requests that succeeded, and their bytes. */
  operations = 0;
  bytes = 0;
  /** Requests that the driver failed. */
  failed = 0;
  /** Requests that were refused before they reached the driver. */
  invalid = 0;
  /** Latency of all requests that reached the driver, summed up, nanoseconds. */
  totalNs = 0;
  histogram: LatencyHistogram | undefined;
}

/** A write under way, for its accounting; offset and length in bytes. */
export interface StartedWrite {
  readonly operation: IoOperation;
  readonly offset: number;
  readonly length: number;
  /** As `NodeStatistics.start` gave it. */
  readonly started: number;
  readonly flags: RequestFlags;
}

/**
 * Counting costs two readings of the clock a request and allocates nothing.
 * Times are nanoseconds of a clock that starts anywhere and never steps.
 */
export class NodeStatistics {
  readonly read = new OperationCounters();
  readonly write = new OperationCounters();
  readonly flush = new OperationCounters();
  readonly unmap = new OperationCounters();
  /** End of the write that reached farthest, bytes: QMP's wr_highest_offset. */
  highestWriteEnd = 0;
  readonly #nowMs: () => number;
  #lastAccessNs = 0;

  /** @param nowMs a monotonic clock, milliseconds with fractions */
  constructor(nowMs: () => number = monotonicMs) {
    this.#nowMs = nowMs;
  }

  /** The time at which a request starts, for `done` and `failed`. */
  start(): number {
    return this.#nowMs() * NS_PER_MS;
  }

  /** A request of `length` bytes succeeded. @param started what `start` returned */
  done(operation: IoOperation, offset: number, length: number, started: number): void {
    const counters = this[operation];
    counters.operations++;
    counters.bytes += length;
    if (operation === 'write' && offset + length > this.highestWriteEnd) {
      this.highestWriteEnd = offset + length;
    }
    this.#account(counters, started);
  }

  /** The driver failed a request. Its time counts, its bytes do not. */
  failed(operation: IoOperation, _length: number, started: number): void {
    const counters = this[operation];
    counters.failed++;
    this.#account(counters, started);
  }

  /** A request was refused before it reached the driver; it took no time. */
  invalid(operation: IoOperation): void {
    this[operation].invalid++;
    this.#lastAccessNs = this.start();
  }

  /** Nanoseconds since the last request ended; undefined when there was none. */
  idleNs(): number | undefined {
    return this.#lastAccessNs === 0 ? undefined : Math.max(this.start() - this.#lastAccessNs, 0);
  }

  /**
   * Counts latencies of one kind of operation from now on, from zero.
   * @param histogram an empty one; undefined stops counting
   */
  setHistogram(operation: IoOperation, histogram: LatencyHistogram | undefined): void {
    this[operation].histogram = histogram;
  }

  #account(counters: OperationCounters, started: number): void {
    const now = this.start();
    const latency = now - started;
    counters.totalNs += latency;
    counters.histogram?.count(latency);
    this.#lastAccessNs = now;
  }
}

const monotonicMs = (): number => performance.now();
