// SPDX-License-Identifier: MIT
/** The active L1 table: in memory as a whole, with notes on which parts are not in the file yet. */
import {
  ENTRY_COPIED,
  ENTRY_LENGTH,
  entryOffset,
  highWord,
  lowWord,
} from '../../../../protocol/qcow2/entries.js';

/** Changed parts are written in pieces of this, bytes. */
const CHUNK = 512;

/** A piece of a table on its way to the file. */
export interface ChunkCopy {
  /** Bytes from the start of the table. */
  readonly from: number;
  readonly bytes: Buffer;
}

/** A table of 64-bit entries in memory. The refcount table is one too. */
export class EntryTable {
  readonly bytes: Buffer;
  readonly view: DataView;
  readonly #changed = new Set<number>();

  /**
   * @param offset where the table lies in the file, bytes
   * @param bytes its content; a multiple of 8 bytes
   */
  constructor(
    readonly offset: number,
    bytes: Buffer,
  ) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get entries(): number {
    return this.bytes.byteLength / ENTRY_LENGTH;
  }

  high(index: number): number {
    return this.view.getUint32(index * ENTRY_LENGTH);
  }

  low(index: number): number {
    return this.view.getUint32(index * ENTRY_LENGTH + 4);
  }

  /** In memory only, until the changes are taken and written. */
  set(index: number, high: number, low: number): void {
    this.view.setUint32(index * ENTRY_LENGTH, high);
    this.view.setUint32(index * ENTRY_LENGTH + 4, low);
    this.#changed.add(Math.floor((index * ENTRY_LENGTH) / CHUNK));
  }

  /** An entry that is an offset and nothing else, as those of the refcount table are. */
  setOffset(index: number, offset: number): void {
    this.set(index, highWord(offset), lowWord(offset));
  }

  get dirty(): boolean {
    return this.#changed.size > 0;
  }

  /** Copies of what has changed; counts as unchanged from now on. */
  takeDirty(): ChunkCopy[] {
    const copies = [...this.#changed].map((chunk) => {
      const from = chunk * CHUNK;
      return { from, bytes: Buffer.from(this.bytes.subarray(from, from + CHUNK)) };
    });
    this.#changed.clear();
    return copies;
  }

  /** Writing them failed: they are to be written another time. */
  putBack(copies: readonly ChunkCopy[]): void {
    for (const { from } of copies) this.#changed.add(from / CHUNK);
  }
}

export class L1Table extends EntryTable {
  /** Where the L2 table lies, bytes; 0: there is none. Not checked for alignment. */
  l2Offset(index: number): number {
    return entryOffset(this.high(index), this.low(index));
  }

  /** The L2 table is used by the active L1 table alone. */
  isCopied(index: number): boolean {
    return (this.high(index) & ENTRY_COPIED) !== 0;
  }

  /** Points at an L2 table that nobody else uses; 0: at none. */
  setL2(index: number, offset: number): void {
    const copied = offset === 0 ? 0 : ENTRY_COPIED;
    this.set(index, (highWord(offset) | copied) >>> 0, lowWord(offset));
  }
}
