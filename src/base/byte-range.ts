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
  // The logarithm is rounded: beside a large power it is an integer, too.
  return Number.isSafeInteger(value) && value > 0 && 2 ** Math.round(Math.log2(value)) === value;
}
