// SPDX-License-Identifier: MIT
/**
 * `null-co` and `null-aio`: store nothing. The smallest driver there is: read this one first.
 *
 * A driver is a class that does the work of one node (BlockDriver) and a definition that makes
 * instances of it (DriverDefinition). Bounds, alignment and statistics are the node's business.
 */
import { BlockError } from '../../base/errors.js';
import { NODE_SIZE_MAX } from '../../base/limits.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import {
  type BlockDriver,
  DEFAULT_LIMITS,
  type DriverDefinition,
  type DriverFeatures,
  type DriverOptions,
  type Extent,
  STATUS_ALLOCATED,
  STATUS_OFFSET_VALID,
  STATUS_ZERO,
} from '../block-driver.js';

const SIZE_DEFAULT = 2 ** 30;
const NS_PER_MS = 1e6;
/** setTimeout's resolution; a shorter latency is waited for turn by turn of the event loop. */
const TIMER_MIN_MS = 1;
/** setTimeout's longest delay, and so the longest latency. */
const LATENCY_MAX_MS = 2 ** 31 - 1;

const FEATURES: DriverFeatures = {
  fua: true,
  writeZeroes: true,
  discard: true,
  backing: false,
  multiConn: true,
};

class NullDriver implements BlockDriver {
  readonly features = FEATURES;
  readonly limits = DEFAULT_LIMITS;
  readonly filename: string;
  readonly size: number;
  readonly #latencyMs: number;
  readonly #statusFlags: number;

  constructor(
    readonly name: 'null-co' | 'null-aio',
    options: { size: number; latencyMs: number; readZeroes: boolean },
  ) {
    this.filename = `${name}://`;
    this.size = options.size;
    this.#latencyMs = options.latencyMs;
    // Without read-zeroes nothing is promised of the content.
    const zero = options.readZeroes ? STATUS_ZERO : 0;
    this.#statusFlags = STATUS_ALLOCATED | STATUS_OFFSET_VALID | zero;
  }

  /** Zeroes, promised or not: a buffer from the pool may hold another client's data. */
  read(_offset: number, buffer: Buffer): MaybePromise<void> {
    buffer.fill(0);
    return this.#finish();
  }

  write(): MaybePromise<void> {
    return this.#finish();
  }

  writeZeroes(): MaybePromise<void> {
    return this.#finish();
  }

  discard(): MaybePromise<void> {
    return this.#finish();
  }

  flush(): MaybePromise<void> {
    return this.#finish();
  }

  blockStatus(offset: number, length: number): Extent {
    return { length, flags: this.#statusFlags, hostOffset: offset };
  }

  allocatedSize(): number {
    return 0;
  }

  /** Nothing to release: a node is closed when no request, and so no timer, is left. */
  close(): void {}

  /** `null-co` is done at once, `null-aio` in a later turn of the event loop, both after the latency. */
  #finish(): MaybePromise<void> {
    const latencyMs = this.#latencyMs;
    if (latencyMs >= TIMER_MIN_MS) {
      return new Promise((resolve) => {
        setTimeout(resolve, latencyMs);
      });
    }
    if (latencyMs > 0 || this.name === 'null-aio') return waitTurns(latencyMs);
  }
}

function waitTurns(delayMs: number): Promise<void> {
  const dueMs = performance.now() + delayMs;
  return new Promise((resolve) => {
    const turn = (): void => {
      if (performance.now() >= dueMs) resolve();
      else setImmediate(turn);
    };
    setImmediate(turn);
  });
}

function open(name: 'null-co' | 'null-aio', options: DriverOptions): BlockDriver {
  const size = Number(options.size ?? SIZE_DEFAULT);
  if (!(size >= 0 && size <= NODE_SIZE_MAX)) {
    const message = `Parameter 'size' expects a number of bytes up to ${NODE_SIZE_MAX}`;
    throw new BlockError('DF_INVALID', message);
  }
  const latencyMs = Number(options['latency-ns'] ?? 0) / NS_PER_MS;
  if (!(latencyMs >= 0 && latencyMs <= LATENCY_MAX_MS)) {
    throw new BlockError('DF_INVALID', 'latency-ns is invalid');
  }
  return new NullDriver(name, { size, latencyMs, readZeroes: options['read-zeroes'] === true });
}

export const nullCoDriver: DriverDefinition = {
  name: 'null-co',
  kind: 'protocol',
  children: [],
  open: (options) => open('null-co', options),
};

export const nullAioDriver: DriverDefinition = {
  name: 'null-aio',
  kind: 'protocol',
  children: [],
  open: (options) => open('null-aio', options),
};
