// SPDX-License-Identifier: MIT
/** One page of a bit set: 32,768 bits in 32-bit words, least significant bit first. */

export const PAGE_BITS = 32768;
const PAGE_WORDS = PAGE_BITS / 32;
const ALL_ONES = 0xffff_ffff;

const HOST_IS_BIG_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 0;

/** Number of bits set in a 32-bit word. */
function popcount(word: number): number {
  let x = word - ((word >>> 1) & 0x5555_5555);
  x = (x & 0x3333_3333) + ((x >>> 2) & 0x3333_3333);
  return (((x + (x >>> 4)) & 0x0f0f_0f0f) * 0x0101_0101) >>> 24;
}

/** Bits `from` to `to` of a word, both inclusive, 0 to 31. */
function wordMask(from: number, to: number): number {
  return (ALL_ONES << from) & (ALL_ONES >>> (31 - to));
}

const lowestBit = (word: number): number => 31 - Math.clz32(word & -word);

/** The words of a page and how many of their bits are set; all positions are 0 to PAGE_BITS - 1. */
export class BitPage {
  readonly #words: Uint32Array;
  count: number;

  constructor(words = new Uint32Array(PAGE_WORDS), count = 0) {
    this.#words = words;
    this.count = count;
  }

  static full(): BitPage {
    return new BitPage(new Uint32Array(PAGE_WORDS).fill(ALL_ONES), PAGE_BITS);
  }

  clone(): BitPage {
    return new BitPage(this.#words.slice(), this.count);
  }

  test(bit: number): boolean {
    return (((this.#words[bit >>> 5] ?? 0) >>> (bit & 31)) & 1) === 1;
  }

  /** Sets one bit. @returns 1 when it was clear, else 0 */
  setOne(bit: number): 0 | 1 {
    const at = bit >>> 5;
    const mask = 1 << (bit & 31);
    const word = this.#words[at] ?? 0;
    if ((word & mask) !== 0) return 0;
    this.#words[at] = word | mask;
    this.count++;
    return 1;
  }

  /** Sets bits `from` to `to`, both inclusive. @returns how many were clear */
  set(from: number, to: number): number {
    return this.#change(from, to, ALL_ONES);
  }

  /** Clears bits `from` to `to`, both inclusive. @returns how many were set, negated */
  clear(from: number, to: number): number {
    return this.#change(from, to, 0);
  }

  #change(from: number, to: number, value: number): number {
    const words = this.#words;
    const last = to >>> 5;
    let change = 0;
    for (let at = from >>> 5; at <= last; at++) {
      const mask = wordMask(at === from >>> 5 ? from & 31 : 0, at === last ? to & 31 : 31);
      const old = words[at] ?? 0;
      const word = (old & ~mask) | (value & mask);
      words[at] = word;
      change += popcount(word) - popcount(old);
    }
    this.count += change;
    return change;
  }

  /** First set bit in `from` to `to` (inclusive), or -1. */
  nextSet(from: number, to: number): number {
    return this.#next(from, to, 0);
  }

  /** First clear bit in `from` to `to` (inclusive), or -1. */
  nextClear(from: number, to: number): number {
    return this.#next(from, to, ALL_ONES);
  }

  #next(from: number, to: number, flip: number): number {
    const words = this.#words;
    const last = to >>> 5;
    let at = from >>> 5;
    let word = ((words[at] ?? 0) ^ flip) & (ALL_ONES << (from & 31));
    while (word === 0) {
      if (++at > last) return -1;
      word = (words[at] ?? 0) ^ flip;
    }
    const bit = at * 32 + lowestBit(word);
    return bit <= to ? bit : -1;
  }

  /** Takes over all bits that are set in `other`. @returns how many were clear here */
  union(other: BitPage): number {
    const words = this.#words;
    let change = 0;
    for (let at = 0; at < PAGE_WORDS; at++) {
      const old = words[at] ?? 0;
      const word = old | (other.#words[at] ?? 0);
      if (word === old) continue;
      words[at] = word;
      change += popcount(word) - popcount(old);
    }
    this.count += change;
    return change;
  }

  /** Copies `target.byteLength` bytes from byte `from` of the page, little-endian words. Multiples of 4. */
  copyBytes(target: Buffer, from: number): void {
    Buffer.from(this.#words.buffer, from, target.byteLength).copy(target);
    if (HOST_IS_BIG_ENDIAN) target.swap32();
  }

  /** Replaces the bytes from byte `from` by `source`, little-endian words. Multiples of 4. */
  loadBytes(source: Buffer, from: number): void {
    const own = Buffer.from(this.#words.buffer, from, source.byteLength);
    source.copy(own);
    if (HOST_IS_BIG_ENDIAN) own.swap32();
    this.count = 0;
    for (const word of this.#words) this.count += popcount(word);
  }
}
