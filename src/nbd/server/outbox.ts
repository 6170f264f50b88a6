// SPDX-License-Identifier: MIT
/**
 * Replies on their way out. Small ones are built one behind the other in an arena and leave in one
 * write; large ones come in their own buffer. Memory is held until the transport has taken it.
 */
import type { PooledBuffer } from '../../base/buffer-pool.js';
import { KIB, NBD_REPLY_ARENA } from '../../base/limits.js';
import type { MemoryBudget } from './memory-budget.js';

/** Where bytes go. True: all are taken, the memory is free again. False: `sent` follows later. */
export interface ByteSink {
  write(part: Buffer): boolean;
  writeAll(parts: Buffer[]): boolean;
  /** A descriptor that may be sent to past `write` while all that was written is taken. */
  readonly directSocket?: number | undefined;
}

/** A place in an arena for a reply that is not ready yet. */
export interface Region {
  readonly buffer: PooledBuffer;
  readonly start: number;
  readonly size: number;
}

interface Segment {
  readonly buffer: PooledBuffer;
  readonly start: number;
  end: number;
}

const ARENA_SCARCE = 64 * KIB;

export class Outbox {
  readonly #budget: MemoryBudget;
  readonly #sink: ByteSink;
  #arena: PooledBuffer | undefined;
  /** Bytes of the arena from here to `#at` are not queued yet. */
  #from = 0;
  #at = 0;
  readonly #queue: Segment[] = [];
  #queuedBytes = 0;
  #sending: PooledBuffer[] = [];
  #sendingBytes = 0;
  #closed = false;
  readonly #waiters: (() => void)[] = [];

  constructor(budget: MemoryBudget, sink: ByteSink) {
    this.#budget = budget;
    this.#sink = sink;
  }

  /** Bytes that the client has not taken. */
  get unsentBytes(): number {
    return this.#queuedBytes + this.#sendingBytes + (this.#at - this.#from);
  }

  /** True while the transport has not taken all that it was given. */
  get blocked(): boolean {
    return this.#sending.length > 0;
  }

  /**
   * Makes room for `size` bytes in the arena; they begin at the returned position of `arena`.
   * Nothing is sent of them before `commit`; reserving again without that gives the same place.
   */
  reserve(size: number): number {
    if (this.#arena !== undefined && this.#at + size <= this.#arena.size) return this.#at;
    this.#leaveArena();
    const wanted = this.#budget.scarce ? ARENA_SCARCE : NBD_REPLY_ARENA;
    this.#arena = this.#budget.pool.take(Math.max(size, wanted));
    this.#from = 0;
    this.#at = 0;
    return 0;
  }

  /** The buffer in which `reserve` made room. */
  get arena(): PooledBuffer {
    if (this.#arena === undefined) throw new Error('nothing is reserved');
    return this.#arena;
  }

  /** The first `size` bytes that were reserved are a reply. */
  commit(size: number): void {
    this.#at += size;
  }

  /** Keeps the `size` bytes that were reserved for later, while others go on behind them. */
  detach(size: number): Region {
    const buffer = this.arena.retain();
    this.#queueRun();
    const region = { buffer, start: this.#at, size };
    this.#at += size;
    this.#from = this.#at;
    return region;
  }

  /** Queues bytes of a buffer. One ownership of it passes to the outbox. */
  append(buffer: PooledBuffer, start: number, end: number): void {
    if (this.#closed) {
      buffer.release();
      return;
    }
    this.#queueRun();
    this.#push(buffer, start, end);
  }

  /** Hands all that is queued to the transport, unless it is still busy. */
  flush(): void {
    if (this.#closed) {
      this.#dropRun();
    } else if (!this.blocked) {
      if (this.#queue.length === 0) this.#flushRun();
      else this.#flushQueue();
    }
    // An arena that nobody reads or fills any more goes back; quiet connections hold no memory.
    if (this.#arena?.sole === true && this.#at === this.#from) {
      this.#arena.release();
      this.#arena = undefined;
    }
  }

  /** Where a reply may go directly, because all before it is with the kernel; undefined: nowhere. */
  directSocket(): number | undefined {
    if (this.#sink.directSocket === undefined) return undefined;
    this.flush();
    return this.#closed || this.unsentBytes > 0 ? undefined : this.#sink.directSocket;
  }

  /** The transport has taken all that it was given. */
  sent(): void {
    this.#releaseSending();
    this.flush();
    this.#wake();
  }

  /** Resolves when at most `bytes` are unsent, or the outbox is closed. */
  async whenBelow(bytes: number): Promise<void> {
    while (!this.#closed && this.unsentBytes > bytes) {
      this.flush();
      if (this.unsentBytes <= bytes) return;
      await new Promise<void>((resolve) => {
        this.#waiters.push(resolve);
      });
    }
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** The transport is gone: everything is dropped, now and from now on. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#releaseSending();
    for (const { buffer } of this.#queue.splice(0)) buffer.release();
    this.#queuedBytes = 0;
    this.#dropRun();
    this.#arena?.release();
    this.#arena = undefined;
    this.#wake();
  }

  #flushRun(): void {
    const arena = this.#arena;
    if (arena === undefined || this.#at === this.#from) return;
    const size = this.#at - this.#from;
    const part = arena.bytes.subarray(this.#from, this.#at);
    this.#from = this.#at;
    if (this.#sink.write(part)) return;
    if (this.#closed) return;
    this.#sending.push(arena.retain());
    this.#sendingBytes = size;
  }

  #flushQueue(): void {
    this.#queueRun();
    const segments = this.#queue.splice(0);
    const size = this.#queuedBytes;
    this.#queuedBytes = 0;
    const parts = segments.map(({ buffer, start, end }) => buffer.bytes.subarray(start, end));
    const [only] = parts;
    const taken =
      parts.length === 1 && only !== undefined
        ? this.#sink.write(only)
        : this.#sink.writeAll(parts);
    if (taken || this.#closed) {
      for (const { buffer } of segments) buffer.release();
      return;
    }
    for (const { buffer } of segments) this.#sending.push(buffer);
    this.#sendingBytes = size;
  }

  #queueRun(): void {
    if (this.#arena === undefined || this.#at === this.#from) return;
    const start = this.#from;
    this.#from = this.#at;
    this.#push(this.#arena.retain(), start, this.#at);
  }

  #push(buffer: PooledBuffer, start: number, end: number): void {
    this.#queuedBytes += end - start;
    const last = this.#queue[this.#queue.length - 1];
    if (last !== undefined && last.buffer === buffer && last.end === start) {
      last.end = end;
      buffer.release();
      return;
    }
    this.#queue.push({ buffer, start, end });
  }

  #leaveArena(): void {
    if (this.#arena === undefined) return;
    this.#queueRun();
    this.#arena.release();
    this.#arena = undefined;
    this.#from = 0;
    this.#at = 0;
  }

  #dropRun(): void {
    this.#from = this.#at;
  }

  #releaseSending(): void {
    const sending = this.#sending;
    this.#sending = [];
    this.#sendingBytes = 0;
    for (const buffer of sending) buffer.release();
  }

  #wake(): void {
    for (const resolve of this.#waiters.splice(0)) resolve();
  }
}
