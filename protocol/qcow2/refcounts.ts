// SPDX-License-Identifier: MIT
/** Counts in a refcount block: 1 to 64 bits wide. @see qcow2.txt "Host cluster management" */

const WORD = 0x1_0000_0000;

/** The largest count that `order` (log2 of the width in bits) can hold; 64 bits: what a number counts. */
export function refcountMax(order: number): number {
  return order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** (2 ** order) - 1;
}

/** Counts in a block of `blockLength` bytes. */
export function refcountsPerBlock(blockLength: number, order: number): number {
  return (blockLength * 8) / 2 ** order;
}

/**
 * @param order log2 of the width in bits, 0 to 6
 * @returns the count; from 2^53 on not exact
 */
export function getRefcount(block: DataView, order: number, index: number): number {
  switch (order) {
    case 3:
      return block.getUint8(index);
    case 4:
      return block.getUint16(index * 2);
    case 5:
      return block.getUint32(index * 4);
    case 6:
      return block.getUint32(index * 8) * WORD + block.getUint32(index * 8 + 4);
    default: {
      const width = 1 << order;
      const bit = index * width;
      return (block.getUint8(bit >>> 3) >>> (bit & 7)) & ((1 << width) - 1);
    }
  }
}

/** @param value at most `refcountMax(order)` */
export function setRefcount(block: DataView, order: number, index: number, value: number): void {
  switch (order) {
    case 3:
      block.setUint8(index, value);
      return;
    case 4:
      block.setUint16(index * 2, value);
      return;
    case 5:
      block.setUint32(index * 4, value);
      return;
    case 6:
      block.setUint32(index * 8, Math.floor(value / WORD));
      block.setUint32(index * 8 + 4, value % WORD);
      return;
    default: {
      const width = 1 << order;
      const bit = index * width;
      const mask = ((1 << width) - 1) << (bit & 7);
      const byte = block.getUint8(bit >>> 3);
      block.setUint8(bit >>> 3, (byte & ~mask) | (value << (bit & 7)));
    }
  }
}

/** Bytes of the block that hold the counts from `first` to `last`: [start, end). */
export function refcountBytes(order: number, first: number, last: number): [number, number] {
  const width = 2 ** order;
  return [Math.floor((first * width) / 8), Math.ceil(((last + 1) * width) / 8)];
}
