// SPDX-License-Identifier: MIT
/**
 * Buffers by size class, used again and again: a fresh 1 MiB buffer costs more in page faults than
 * the read that fills it. What a buffer held before is still in it; who sends must have filled.
 */
import { BUFFER_POOL_IDLE_MAX, KIB, MIB } from './limits.js';

/**
 * Room in front of a payload: a reply's head lies there, so that both go out in one write and the
 * payload keeps the alignment of the buffer. Bytes.
 */
export const BUFFER_HEADROOM = 4 * KIB;

/** Usable sizes, bytes. From 64 KiB on with room for a head in front of a payload of round size. */
const SIZE_CLASSES = [
  4 * KIB,
  16 * KIB,
  64 * KIB + BUFFER_HEADROOM,
  128 * KIB + BUFFER_HEADROOM,
  256 * KIB + BUFFER_HEADROOM,
  1 * MIB + BUFFER_HEADROOM,
  4 * MIB + BUFFER_HEADROOM,
  16 * MIB + BUFFER_HEADROOM,
  32 * MIB + BUFFER_HEADROOM,
] as const;

/** Makes the memory of a new buffer. Replaceable where memory of a known alignment can be had. */
export type AllocateBuffer = (size: number) => Buffer;

/** A buffer with owners; the last one to release gives it back. */
export class PooledBuffer {
  readonly view: DataView;
  #owners = 0;
  readonly #pool: BufferPool;

  constructor(
    pool: BufferPool,
    readonly bytes: Buffer,
  ) {
    this.#pool = pool;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Bytes. */
  get size(): number {
    return this.bytes.byteLength;
  }

  /** True when nobody but the caller holds it, so that it may be written anew. */
  get sole(): boolean {
    return this.#owners === 1;
  }

  retain(): this {
    this.#owners++;
    return this;
  }

  /** @throws Error when it was given back already: a bug */
  release(): void {
    if (this.#owners === 0) throw new Error('a pooled buffer was released twice');
    this.#owners--;
    if (this.#owners === 0) this.#pool.giveBack(this);
  }
}

export class BufferPool {
  readonly #allocate: AllocateBuffer;
  readonly #idleMax: number;
  readonly #idle: PooledBuffer[][] = SIZE_CLASSES.map(() => []);
  #idleBytes = 0;
  #takenBytes = 0;
  #taken = 0;
  /** Called when memory comes back, for those who wait for it. */
  onRelease: (() => void) | undefined;

  constructor(options: { allocate?: AllocateBuffer; idleMax?: number } = {}) {
    this.#allocate = options.allocate ?? ((size) => Buffer.allocUnsafeSlow(size));
    this.#idleMax = options.idleMax ?? BUFFER_POOL_IDLE_MAX;
  }

  /** Bytes that are out. */
  get takenBytes(): number {
    return this.#takenBytes;
  }

  /** Buffers that are out; 0 when nothing leaks. */
  get taken(): number {
    return this.#taken;
  }

  /** Bytes that wait for their next use. */
  get idleBytes(): number {
    return this.#idleBytes;
  }

  /** A buffer of at least `size` bytes with one owner, the caller. Its content is arbitrary. */
  take(size: number): PooledBuffer {
    const index = classOf(size);
    const free = index === -1 ? undefined : this.#idle[index]?.pop();
    let buffer = free;
    if (buffer === undefined) {
      buffer = new PooledBuffer(this, this.#allocate(SIZE_CLASSES[index] ?? size));
    } else {
      this.#idleBytes -= buffer.size;
    }
    this.#taken++;
    this.#takenBytes += buffer.size;
    return buffer.retain();
  }

  /** For PooledBuffer.release alone. */
  giveBack(buffer: PooledBuffer): void {
    const { size } = buffer;
    this.#taken--;
    this.#takenBytes -= size;
    const index = classOf(size);
    const idle = this.#idle[index];
    if (idle !== undefined && this.#idleBytes + size <= this.#idleMax) {
      idle.push(buffer);
      this.#idleBytes += size;
    }
    this.onRelease?.();
  }
}

/** Index of the smallest class that holds `size` bytes; -1 when none does. */
function classOf(size: number): number {
  for (let index = 0; index < SIZE_CLASSES.length; index++) {
    if (size <= (SIZE_CLASSES[index] ?? 0)) return index;
  }
  return -1;
}
