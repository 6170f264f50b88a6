// SPDX-License-Identifier: MIT
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError } from '../../../../src/base/errors.js';
import {
  type BlockLimits,
  DEFAULT_LIMITS,
  REQ_NO_FALLBACK,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from '../../../../src/block/block-driver.js';
import type { ExportBackend } from '../../../../src/nbd/server/export.js';

/** What a request of the backend was, as tests compare it. */
export interface Seen {
  readonly op: 'read' | 'write' | 'writeZeroes' | 'discard' | 'flush';
  readonly offset?: number;
  readonly length?: number;
  readonly flags?: number;
}

export interface MemoryBackendOptions {
  readonly size: number;
  readonly limits?: Partial<BlockLimits>;
  readonly readOnly?: boolean;
  /** Every request waits that long; absent: completes at once. */
  readonly delayMs?: number;
  /** Requests that touch this range fail with DF_IO. */
  readonly bad?: { readonly offset: number; readonly length: number };
  /** Writing zeroes is no faster than writing. */
  readonly slowZeroes?: boolean;
}

const GRANULE = 4096;

/** A node of plain memory, at once or with delay. */
export class MemoryBackend implements ExportBackend {
  readonly content: Buffer;
  readonly limits: BlockLimits;
  readonly readOnly: boolean;
  readonly seen: Seen[] = [];
  /** Requests wait until this settles. */
  gate: Promise<void> | undefined;
  readonly #options: MemoryBackendOptions;

  constructor(options: MemoryBackendOptions) {
    this.#options = options;
    this.content = Buffer.alloc(options.size);
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.readOnly = options.readOnly ?? false;
  }

  get size(): number {
    return this.content.byteLength;
  }

  read(offset: number, buffer: Buffer, flags = 0): void | Promise<void> {
    const length = buffer.byteLength;
    return this.#do({ op: 'read', offset, length, flags }, () => {
      this.content.copy(buffer, 0, offset, offset + length);
    });
  }

  write(offset: number, buffer: Buffer, flags = 0): void | Promise<void> {
    const length = buffer.byteLength;
    return this.#do({ op: 'write', offset, length, flags }, () => {
      buffer.copy(this.content, offset);
    });
  }

  writeZeroes(offset: number, length: number, flags = 0): void | Promise<void> {
    return this.#do({ op: 'writeZeroes', offset, length, flags }, () => {
      if (this.#options.slowZeroes && (flags & REQ_NO_FALLBACK) !== 0) {
        throw new BlockError('DF_NOT_SUPPORTED', 'zeroes are slow here');
      }
      this.content.fill(0, offset, offset + length);
    });
  }

  discard(offset: number, length: number): void | Promise<void> {
    return this.#do({ op: 'discard', offset, length }, () => {
      this.content.fill(0, offset, offset + length);
    });
  }

  flush(): void | Promise<void> {
    return this.#do({ op: 'flush' }, () => undefined);
  }

  blockStatus(offset: number, length: number) {
    const run = Math.min(length, GRANULE - (offset % GRANULE));
    const zero = this.content.subarray(offset, offset + run).every((byte) => byte === 0);
    return zero
      ? { length: run, flags: STATUS_ZERO, depth: 0 }
      : { length: run, flags: STATUS_DATA | STATUS_ALLOCATED, depth: 1 };
  }

  #do(what: Seen, work: () => void): void | Promise<void> {
    const { delayMs } = this.#options;
    if (delayMs === undefined && this.gate === undefined) {
      this.#execute(what, work);
      return;
    }
    return this.#later(what, work, delayMs ?? 0);
  }

  async #later(what: Seen, work: () => void, delayMs: number): Promise<void> {
    await sleep(delayMs);
    await this.gate;
    this.#execute(what, work);
  }

  #execute(what: Seen, work: () => void): void {
    this.seen.push(what);
    const { bad } = this.#options;
    const { offset = 0, length = 0 } = what;
    if (bad !== undefined && offset < bad.offset + bad.length && bad.offset < offset + length) {
      throw new BlockError('DF_IO', 'the medium is broken here');
    }
    work();
  }
}
