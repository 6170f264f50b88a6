// SPDX-License-Identifier: MIT
/**
 * Entries of L1, L2 and refcount tables. They are 64 bits wide and read once for each request, so they
 * are taken as two 32-bit words (`high`, `low`) and not as a bigint. @see qcow2.txt "Cluster mapping"
 */

/** Bits of the high word. */
export const ENTRY_COPIED = 0x8000_0000;
export const ENTRY_COMPRESSED = 0x4000_0000;
const OFFSET_HIGH_MASK = 0x00ff_ffff;
const OFFSET_LOW_MASK = 0xffff_fe00;
/** Bits that are zero in an L1 entry, by words. */
export const L1_RESERVED_HIGH = 0x7f00_0000;
export const L1_RESERVED_LOW = 0x1ff;
/** Bits that are zero in an L2 entry that is not compressed, by words. */
export const L2_RESERVED_HIGH = 0x3f00_0000;
export const L2_RESERVED_LOW = 0x1fe;
/** Bit 0 of the low word: the cluster reads as zeroes. Not with extended entries. */
export const ENTRY_ZERO = 1;

const WORD = 0x1_0000_0000;

/** Bytes of an L1 entry, a refcount table entry and a standard L2 entry. */
export const ENTRY_LENGTH = 8;
/** Bytes of an extended L2 entry. */
export const EXTENDED_ENTRY_LENGTH = 16;
/** Subclusters of a cluster with extended L2 entries. */
export const SUBCLUSTERS = 32;
/** Offsets that an L1 or L2 entry can hold lie below this, bytes. */
export const ENTRY_OFFSET_MAX = 2 ** 56;

/** Bits 9 to 55 as a host offset in bytes; 0: none. Not exact from 2^53 on, where no file reaches. */
export function entryOffset(high: number, low: number): number {
  return (high & OFFSET_HIGH_MASK) * WORD + ((low & OFFSET_LOW_MASK) >>> 0);
}

/** High word of an entry for a host offset below 2^56. */
export function highWord(offset: number): number {
  return Math.floor(offset / WORD);
}

export function lowWord(offset: number): number {
  return offset % WORD;
}

/** Bits 9 to 63 of a refcount table entry: where the refcount block is, bytes. */
export function refcountTableOffset(high: number, low: number): number {
  return high * WORD + ((low & OFFSET_LOW_MASK) >>> 0);
}

/** Where a compressed cluster lies, bytes; its end is rounded up to 512. */
export interface CompressedRange {
  readonly offset: number;
  readonly length: number;
}

/** @see qcow2.txt "Compressed Clusters Descriptor" */
export function compressedRange(high: number, low: number, clusterBits: number): CompressedRange {
  // Bits of the offset that lie in the high word; between 62 - (21 - 8) - 32 = 17 and 29.
  const shift = 62 - (clusterBits - 8) - 32;
  const flagsOff = high & 0x3fff_ffff;
  const sectors = (flagsOff >>> shift) + 1;
  const offset = (flagsOff & (2 ** shift - 1)) * WORD + low;
  return { offset, length: sectors * 512 - (offset % 512) };
}

/** The reverse: [high, low] of a compressed cluster of `length` bytes at `offset`. */
export function compressedEntry(
  { offset, length }: CompressedRange,
  clusterBits: number,
): readonly [high: number, low: number] {
  const shift = 62 - (clusterBits - 8) - 32;
  const sectors = Math.ceil(((offset % 512) + length) / 512) - 1;
  const high = (ENTRY_COMPRESSED | (sectors << shift) | highWord(offset)) >>> 0;
  return [high, lowWord(offset)];
}
