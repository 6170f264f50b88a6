// SPDX-License-Identifier: MIT
/**
 * A large set of bits that costs memory only where some, but not all, bits of a page are set. Clean
 * and full pages are entries of a table, which exists in pieces too; scans pass them at once.
 */
import { BitPage, PAGE_BITS } from './bit-page.js';

/** Pages in one piece of the table. */
const CHUNK_PAGES = 1024;
const CHUNK_SHIFT = 10;
const PAGE_BYTES = PAGE_BITS / 8;
/** Stands for every page whose bits are all set; never written to. */
const FULL = BitPage.full();

/** Pages that differ from clean; `used` counts them, so that an empty chunk can go. */
interface Chunk {
  readonly pages: (BitPage | undefined)[];
  used: number;
}

export class PagedBitset {
  #size: number;
  #count = 0;
  #chunks: (Chunk | undefined)[];

  /** @param size bits, 0 to 2^46 */
  constructor(size: number) {
    this.#size = size;
    this.#chunks = new Array(chunkCount(size)).fill(undefined);
  }

  /** Bits, set or not. */
  get size(): number {
    return this.#size;
  }

  /** Bits that are set. */
  get count(): number {
    return this.#count;
  }

  /** False for a bit past the end. */
  test(bit: number): boolean {
    const index = pageOf(bit);
    return this.#page(index)?.test(bit - index * PAGE_BITS) ?? false;
  }

  /** Sets bits `first` to `last`, both inclusive and below `size`. */
  set(first: number, last: number): void {
    const index = pageOf(first);
    const end = pageOf(last);
    if (first === last) {
      const page = this.#page(index);
      if (page === FULL) return;
      if (page !== undefined && page.count < PAGE_BITS - 1) {
        this.#count += page.setOne(first - index * PAGE_BITS);
        return;
      }
    }
    for (let at = index; at <= end; at++) {
      const from = at === index ? first - at * PAGE_BITS : 0;
      const to = at === end ? last - at * PAGE_BITS : PAGE_BITS - 1;
      this.#setInPage(at, from, to);
    }
  }

  /** Clears bits `first` to `last`, both inclusive and below `size`. */
  clear(first: number, last: number): void {
    if (this.#count === 0) return;
    const end = pageOf(last);
    for (let at = pageOf(first); at <= end; at++) {
      if (this.#chunks[at >>> CHUNK_SHIFT] === undefined) {
        at |= CHUNK_PAGES - 1;
        continue;
      }
      const from = Math.max(first - at * PAGE_BITS, 0);
      const to = Math.min(last - at * PAGE_BITS, PAGE_BITS - 1);
      this.#clearInPage(at, from, to);
    }
  }

  clearAll(): void {
    this.#count = 0;
    this.#chunks.fill(undefined);
  }

  /** First set bit in [from, limit), or -1. */
  nextSet(from: number, limit: number): number {
    const end = Math.min(limit, this.#size);
    if (this.#count === 0) return -1;
    for (let at = pageOf(from); at * PAGE_BITS < end; at++) {
      const chunk = this.#chunks[at >>> CHUNK_SHIFT];
      if (chunk === undefined) {
        at |= CHUNK_PAGES - 1;
        continue;
      }
      const page = chunk.pages[at & (CHUNK_PAGES - 1)];
      if (page === undefined) continue;
      const start = at * PAGE_BITS;
      const found = page.nextSet(Math.max(from - start, 0), Math.min(end - start, PAGE_BITS) - 1);
      if (found >= 0) return start + found;
    }
    return -1;
  }

  /** First clear bit in [from, limit), or -1. */
  nextClear(from: number, limit: number): number {
    const end = Math.min(limit, this.#size);
    for (let at = pageOf(from); at * PAGE_BITS < end; at++) {
      const page = this.#page(at);
      const start = at * PAGE_BITS;
      if (page === FULL) continue;
      const first = Math.max(from - start, 0);
      if (page === undefined) return first + start < end ? first + start : -1;
      const found = page.nextClear(first, Math.min(end - start, PAGE_BITS) - 1);
      if (found >= 0) return start + found;
    }
    return -1;
  }

  /** Bits that are lost are gone; bits gained are clear. */
  resize(size: number): void {
    if (size < this.#size) this.clear(size, this.#size - 1);
    const chunks = chunkCount(size);
    while (this.#chunks.length < chunks) this.#chunks.push(undefined);
    this.#chunks.length = chunks;
    this.#size = size;
  }

  /** Sets every bit that is set in `other`, which has the same size. */
  union(other: PagedBitset): void {
    if (other.#size !== this.#size) throw new RangeError('bit sets of different sizes');
    for (const [index, page] of other.#usedPages()) {
      if (page === FULL) this.#setInPage(index, 0, PAGE_BITS - 1);
      else if (this.#page(index) === undefined) {
        this.#store(index, page.clone());
        this.#count += page.count;
      } else if (this.#page(index) !== FULL) {
        const own = this.#writable(index);
        this.#count += own.union(page);
        this.#settle(index, own);
      }
    }
  }

  clone(): PagedBitset {
    const copy = new PagedBitset(this.#size);
    for (const [index, page] of this.#usedPages()) {
      copy.#store(index, page === FULL ? FULL : page.clone());
    }
    copy.#count = this.#count;
    return copy;
  }

  /** Fills `target` with the bits from `firstBit` on, 8 bytes a 64-bit little-endian word. */
  copyBits(target: Buffer, firstBit: number): void {
    eachPiece(target, firstBit, (index, from, bytes) => {
      const page = this.#page(index);
      if (page === undefined) bytes.fill(0);
      else page.copyBytes(bytes, from);
    });
  }

  /** Replaces the bits from `firstBit` on by `source`'s; bits past the end are dropped. */
  loadBits(source: Buffer, firstBit: number): void {
    eachPiece(source, firstBit, (index, from, bytes) => {
      const start = index * PAGE_BITS;
      if (start >= this.#size) return;
      if (this.#page(index) === undefined && isClear(bytes)) return;
      const page = this.#writable(index);
      const before = page.count;
      page.loadBytes(bytes, from);
      if (this.#size - start < PAGE_BITS) page.clear(this.#size - start, PAGE_BITS - 1);
      this.#count += page.count - before;
      this.#settle(index, page);
    });
  }

  #page(index: number): BitPage | undefined {
    return this.#chunks[index >>> CHUNK_SHIFT]?.pages[index & (CHUNK_PAGES - 1)];
  }

  *#usedPages(): Generator<[number, BitPage]> {
    for (const [at, chunk] of this.#chunks.entries()) {
      if (chunk === undefined) continue;
      for (const [slot, page] of chunk.pages.entries()) {
        if (page !== undefined) yield [at * CHUNK_PAGES + slot, page];
      }
    }
  }

  #setInPage(index: number, from: number, to: number): void {
    const page = this.#page(index);
    if (page === FULL) return;
    if (from === 0 && to === PAGE_BITS - 1) {
      this.#count += PAGE_BITS - (page?.count ?? 0);
      this.#store(index, FULL);
      return;
    }
    const own = this.#writable(index);
    this.#count += own.set(from, to);
    this.#settle(index, own);
  }

  #clearInPage(index: number, from: number, to: number): void {
    const page = this.#page(index);
    if (page === undefined) return;
    if (from === 0 && to === PAGE_BITS - 1) {
      this.#count -= page.count;
      this.#store(index, undefined);
      return;
    }
    const own = this.#writable(index);
    this.#count += own.clear(from, to);
    this.#settle(index, own);
  }

  /** The page to write to, made where there is none, and in place of the shared full one. */
  #writable(index: number): BitPage {
    const page = this.#page(index);
    if (page !== undefined && page !== FULL) return page;
    const own = page === undefined ? new BitPage() : page.clone();
    this.#store(index, own);
    return own;
  }

  /** Gives a page's memory back when it became clean or full. */
  #settle(index: number, page: BitPage): void {
    if (page.count === 0) this.#store(index, undefined);
    else if (page.count === PAGE_BITS) this.#store(index, FULL);
  }

  #store(index: number, page: BitPage | undefined): void {
    const at = index >>> CHUNK_SHIFT;
    let chunk = this.#chunks[at];
    if (chunk === undefined) {
      if (page === undefined) return;
      chunk = { pages: new Array(CHUNK_PAGES).fill(undefined), used: 0 };
      this.#chunks[at] = chunk;
    }
    const slot = index & (CHUNK_PAGES - 1);
    chunk.used += (page === undefined ? 0 : 1) - (chunk.pages[slot] === undefined ? 0 : 1);
    chunk.pages[slot] = page;
    if (chunk.used === 0) this.#chunks[at] = undefined;
  }
}

/** Bits reach past 2^32, page numbers do not. */
const pageOf = (bit: number): number => Math.floor(bit / PAGE_BITS);

const chunkCount = (size: number): number => Math.ceil(size / (PAGE_BITS * CHUNK_PAGES));

const isClear = (bytes: Buffer): boolean => bytes.every((byte) => byte === 0);

/** Cuts a run of bits at page borders; `from` is a byte in the page. */
function eachPiece(
  bytes: Buffer,
  firstBit: number,
  visit: (index: number, from: number, piece: Buffer) => void,
): void {
  const firstByte = firstBit / 8;
  for (let at = 0; at < bytes.byteLength; ) {
    const index = Math.floor((firstByte + at) / PAGE_BYTES);
    const from = firstByte + at - index * PAGE_BYTES;
    const length = Math.min(PAGE_BYTES - from, bytes.byteLength - at);
    visit(index, from, bytes.subarray(at, at + length));
    at += length;
  }
}
