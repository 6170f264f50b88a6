// SPDX-License-Identifier: MIT
/**
 * Where copies have missed writes that were acknowledged because enough others took them. Such a
 * copy has old content there, which must not pass for the truth however the votes fall.
 */
import { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import type { ChildEdge } from '../../edge.js';

/** Bytes for each bit. */
const GRANULARITY = 512;

export class MissedWrites {
  readonly #bitmaps = new Map<ChildEdge, DirtyBitmap>();
  readonly #size: number;

  /** @param size of the copies, bytes */
  constructor(size: number) {
    this.#size = size;
  }

  add(copy: ChildEdge, offset: number, length: number): void {
    let bitmap = this.#bitmaps.get(copy);
    if (bitmap === undefined) {
      bitmap = new DirtyBitmap({ size: this.#size, granularity: GRANULARITY });
      this.#bitmaps.set(copy, bitmap);
    }
    bitmap.setDirty(offset, length);
  }

  /** The copy has taken a write of the range. */
  remove(copy: ChildEdge, offset: number, length: number): void {
    const bitmap = this.#bitmaps.get(copy);
    if (bitmap === undefined) return;
    bitmap.resetDirty(offset, length);
    if (bitmap.count === 0) this.#bitmaps.delete(copy);
  }

  /** The copy is gone, or has become another. */
  forget(copy: ChildEdge): void {
    this.#bitmaps.delete(copy);
  }

  has(copy: ChildEdge, offset: number): boolean {
    return this.#bitmaps.get(copy)?.isDirty(offset) === true;
  }

  /** For how many bytes from `offset`, at most `length`, `has` stays the same for all copies. */
  uniformLength(offset: number, length: number): number {
    let uniform = length;
    for (const bitmap of this.#bitmaps.values()) {
      if (uniform > 0) uniform = bitmap.status(offset, uniform).length;
    }
    return uniform;
  }
}
