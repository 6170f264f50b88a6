// SPDX-License-Identifier: MIT
/** Arithmetic of offsets and lengths in bytes. Safe for all integers below 2^53 (no bit operators). */

/** The largest multiple of `alignment` that is not above `value`. */
export function alignDown(value: number, alignment: number): number {
  return value - (value % alignment);
}

/** The smallest multiple of `alignment` that is not below `value`. */
export function alignUp(value: number, alignment: number): number {
  const rest = value % alignment;
  return rest === 0 ? value : value + (alignment - rest);
}

/** True for 1, 2, 4, 8 … up to 2^52. */
export function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0 && Number.isInteger(Math.log2(value));
}

export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/** True when the two have a byte in common; an empty range has none. */
export function overlaps(a: ByteRange, b: ByteRange): boolean {
  if (a.length === 0 || b.length === 0) return false;
  return a.offset < b.offset + b.length && b.offset < a.offset + a.length;
}

/** True when `length` bytes at `offset` lie within `size` bytes; false for anything but safe integers. */
export function isInside(offset: number, length: number, size: number): boolean {
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length)) return false;
  return offset >= 0 && length >= 0 && length <= size && offset <= size - length;
}
