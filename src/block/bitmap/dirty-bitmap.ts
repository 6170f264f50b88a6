// SPDX-License-Identifier: MIT
/**
 * Which granules of a node were written. The rules of who may do what with a bitmap, and the texts
 * of the refusals, are those of QMP's block-dirty-bitmap commands.
 */
import { createHash } from 'node:crypto';
import { isPowerOfTwo } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import { NODE_SIZE_MAX } from '../../base/limits.js';
import { PagedBitset } from './paged-bitset.js';

const GRANULARITY_MIN = 512;
const GRANULARITY_MAX = 2 ** 31;
/** Longest name, bytes: what qcow2 stores. */
export const BITMAP_NAME_MAX = 1023;
/** Bytes that are serialised at a time for a digest. */
const DIGEST_CHUNK = 1024 * 1024;
/** Bits in a word of the serialised form. */
const WORD_BITS = 64;

/** Where a bitmap is kept: a node. Named bitmaps are in `bitmaps`, those that record in `trackers`. */
export interface BitmapHolder {
  readonly bitmaps: Map<string, DirtyBitmap>;
  readonly trackers: DirtyBitmap[];
}

export interface DirtyBitmapOptions {
  /** Absent: an anonymous bitmap of a job. */
  readonly name?: string;
  /** Bytes that the bitmap covers. */
  readonly size: number;
  /** Bytes for each bit: a power of two, 512 to 2 GiB. */
  readonly granularity: number;
  readonly persistent?: boolean;
  readonly disabled?: boolean;
}

export interface DirtyRun {
  offset: number;
  length: number;
}

/** What a command is about to do with a bitmap, and so must be refused where it can't be. */
export interface UseCheck {
  /** The command leaves the content as it is, so a read-only bitmap will do. */
  readonly allowReadOnly?: boolean;
  /** The command bears an inconsistent bitmap (removal). */
  readonly allowInconsistent?: boolean;
}

/** The content of a bitmap at an earlier time, for transactions that fail later. */
export class BitmapBackup {
  constructor(
    readonly bits: PagedBitset,
    readonly size: number,
  ) {}
}

export class DirtyBitmap {
  readonly granularity: number;
  /** 1 / granularity: exact, and quicker to multiply by than to divide. */
  readonly #scale: number;
  #name: string | undefined;
  #size: number;
  #bits: PagedBitset;
  #enabled: boolean;
  #holder: BitmapHolder | undefined;
  #successor: DirtyBitmap | undefined;
  #inconsistent = false;
  /** An operation uses the bitmap; commands are refused. */
  busy = false;
  persistent: boolean;
  /** The image that stores it can't be written. */
  readOnly = false;

  /** @throws BlockError DF_INVALID for a granularity that is no power of two from 512 to 2 GiB */
  constructor(options: DirtyBitmapOptions) {
    checkGranularity(options.granularity);
    this.granularity = options.granularity;
    this.#scale = 1 / options.granularity;
    this.#name = options.name;
    this.#size = options.size;
    this.#bits = new PagedBitset(Math.ceil(options.size * this.#scale));
    this.#enabled = options.disabled !== true;
    this.persistent = options.persistent === true;
  }

  get name(): string | undefined {
    return this.#name;
  }

  /** Bytes that the bitmap covers. */
  get size(): number {
    return this.#size;
  }

  /** Dirty bytes, counted in whole granules (so it can exceed `size`). */
  get count(): number {
    return this.#bits.count * this.granularity;
  }

  get enabled(): boolean {
    return this.#enabled;
  }

  /** True when writes are recorded, here or in the successor. */
  get recording(): boolean {
    return this.#enabled || this.#successor?.enabled === true;
  }

  /** Was not stored properly: it may only be removed. */
  get inconsistent(): boolean {
    return this.#inconsistent;
  }

  get successor(): DirtyBitmap | undefined {
    return this.#successor;
  }

  /** Marks all granules that the range touches. A range past the end makes the bitmap grow. */
  setDirty(offset: number, length: number): void {
    if (length <= 0) return;
    const end = offset + length;
    if (end > this.#size) this.resize(end);
    this.#bits.set(Math.floor(offset * this.#scale), Math.floor((end - 1) * this.#scale));
  }

  /**
   * Marks granules clean that lie in the range as a whole; the last granule of the node is whole
   * when the range reaches the end.
   */
  resetDirty(offset: number, length: number): void {
    const end = Math.min(offset + length, this.#size);
    const first = Math.ceil(offset * this.#scale);
    const limit = end === this.#size ? this.#bits.size : Math.floor(end * this.#scale);
    if (first < limit) this.#bits.clear(first, limit - 1);
  }

  isDirty(offset: number): boolean {
    return this.#bits.test(Math.floor(offset * this.#scale));
  }

  /** First dirty byte in the range, or -1. */
  nextDirty(offset: number, length = this.#size - offset): number {
    const end = Math.min(offset + length, this.#size);
    if (offset >= end) return -1;
    const bit = this.#bits.nextSet(Math.floor(offset * this.#scale), this.#granules(end));
    return bit < 0 ? -1 : Math.max(offset, bit * this.granularity);
  }

  /** First clean byte in the range, or -1. */
  nextClean(offset: number, length = this.#size - offset): number {
    const end = Math.min(offset + length, this.#size);
    if (offset >= end) return -1;
    const bit = this.#bits.nextClear(Math.floor(offset * this.#scale), this.#granules(end));
    return bit < 0 ? -1 : Math.max(offset, bit * this.granularity);
  }

  /**
   * The first run of dirty bytes at or after `offset`, cut at `maxLength` and at the node's end.
   * Clean areas are passed in time that does not depend on their length.
   */
  nextDirtyRun(offset: number, maxLength: number): DirtyRun | undefined {
    const start = this.nextDirty(offset);
    if (start < 0) return undefined;
    const limit = Math.min(maxLength, this.#size - start);
    const clean = this.nextClean(start, limit);
    return { offset: start, length: clean < 0 ? limit : clean - start };
  }

  /** Is the byte at `offset` dirty, and for how many bytes (at most `length`) does that stay so? */
  status(offset: number, length: number): { readonly dirty: boolean; readonly length: number } {
    const dirty = this.isDirty(offset);
    const limit = Math.min(length, this.#size - offset);
    const change = dirty ? this.nextClean(offset, limit) : this.nextDirty(offset, limit);
    return { dirty, length: change < 0 ? limit : change - offset };
  }

  /** Registers with a node: by name, and among those that see its writes while recording. */
  attach(holder: BitmapHolder): void {
    this.#holder = holder;
    if (this.#name !== undefined) holder.bitmaps.set(this.#name, this);
    this.#updateTracking();
  }

  /** Leaves its node. */
  detach(): void {
    const holder = this.#holder;
    if (holder === undefined) return;
    this.#holder = undefined;
    if (this.#name !== undefined && holder.bitmaps.get(this.#name) === this) {
      holder.bitmaps.delete(this.#name);
    }
    removeFrom(holder.trackers, this);
  }

  /** Records from now on. Content is kept. */
  enable(): void {
    this.#enabled = true;
    this.#updateTracking();
  }

  /** Records no more. Content is kept. */
  disable(): void {
    this.#enabled = false;
    this.#updateTracking();
  }

  /** Content can't be relied on; records nothing from now on. */
  markInconsistent(): void {
    this.#inconsistent = true;
    this.disable();
  }

  /** @throws BlockError DF_IN_USE, DF_READ_ONLY or DF_INVALID, in QEMU's words */
  checkUse(check: UseCheck = {}): void {
    if (this.busy) {
      throw new BlockError(
        'DF_IN_USE',
        `Bitmap '${this.#name}' is currently in use by another operation and cannot be used`,
      );
    }
    if (this.readOnly && check.allowReadOnly !== true) {
      throw new BlockError(
        'DF_READ_ONLY',
        `Bitmap '${this.#name}' is readonly and cannot be modified`,
      );
    }
    if (this.#inconsistent && check.allowInconsistent !== true) {
      throw new BlockError(
        'DF_INVALID',
        `Bitmap '${this.#name}' is inconsistent and cannot be used`,
      );
    }
  }

  /** All clean. @returns what `restore` needs to undo it */
  clear(): BitmapBackup {
    const backup = new BitmapBackup(this.#bits, this.#size);
    this.#bits = new PagedBitset(this.#bits.size);
    return backup;
  }

  /** Undoes a `clear` or `merge`: the content is as it was before it. */
  restore(backup: BitmapBackup): void {
    this.#bits = backup.bits;
    this.#size = backup.size;
  }

  /**
   * Adds what is dirty in `source`, whose granularity may differ.
   * @returns what `restore` needs to undo it
   * @throws BlockError DF_INVALID for bitmaps of different sizes; nothing has changed then
   */
  merge(source: DirtyBitmap): BitmapBackup {
    if (source.#size !== this.#size) {
      throw new BlockError(
        'DF_INVALID',
        `Bitmaps are of different sizes (destination size is ${this.#size}, ` +
          `source size is ${source.#size}) and can't be merged`,
      );
    }
    const backup = new BitmapBackup(this.#bits.clone(), this.#size);
    this.#absorb(source);
    return backup;
  }

  /**
   * Freezes the content for an operation: from now on an anonymous successor records in its place.
   * @throws BlockError DF_IN_USE
   */
  createSuccessor(): DirtyBitmap {
    this.checkUse({ allowReadOnly: true, allowInconsistent: true });
    if (this.#successor !== undefined) {
      throw new BlockError(
        'DF_IN_USE',
        'Cannot create a successor for a bitmap that already has one',
      );
    }
    const successor = new DirtyBitmap({
      size: this.#size,
      granularity: this.granularity,
      disabled: !this.#enabled,
    });
    this.disable();
    this.#successor = successor;
    this.busy = true;
    if (this.#holder !== undefined) successor.attach(this.#holder);
    return successor;
  }

  /** The operation succeeded: the successor takes this one's name and place. @returns the successor */
  abdicate(): DirtyBitmap {
    const successor = this.#takeSuccessor(
      "Cannot relinquish control if there's no successor present",
    );
    const holder = this.#holder;
    this.detach();
    successor.#name = this.#name;
    successor.persistent = this.persistent;
    this.#name = undefined;
    this.persistent = false;
    this.busy = false;
    if (holder !== undefined) successor.attach(holder);
    return successor;
  }

  /** The operation failed: what the successor has recorded comes back into this one. */
  reclaim(): void {
    const successor = this.#takeSuccessor('Cannot reclaim a successor when none is present');
    successor.detach();
    this.resize(Math.max(this.#size, successor.#size));
    successor.resize(this.#size);
    this.#absorb(successor);
    this.busy = false;
    this.#enabled = successor.#enabled;
    this.#updateTracking();
  }

  /** The node's size changed. Granules gained are clean. */
  resize(size: number): void {
    if (size > NODE_SIZE_MAX) throw new RangeError(`bitmap of ${size} bytes`);
    this.#bits.resize(Math.ceil(size * this.#scale));
    this.#size = size;
    this.#successor?.resize(size);
  }

  /** Bytes of the serialised form: 64-bit little-endian words, granule 0 in the lowest bit. */
  get serializedLength(): number {
    return Math.max(Math.ceil(this.#bits.size / WORD_BITS), 1) * 8;
  }

  /**
   * Fills `target` with the serialised form from byte `position` of it.
   * @param position a multiple of 8; so is `target.byteLength`, and both end within `serializedLength`
   */
  serialize(target: Buffer, position: number): void {
    this.#bits.copyBits(target, position * 8);
  }

  /** Replaces content by serialised bytes from `position` on; bits past the end are dropped. */
  deserialize(source: Buffer, position: number): void {
    this.#bits.loadBits(source, position * 8);
  }

  /** Hexadecimal SHA-256 of the serialised form. @see qapi x-debug-block-dirty-bitmap-sha256 */
  sha256(): string {
    const hash = createHash('sha256');
    const length = this.serializedLength;
    const chunk = Buffer.alloc(Math.min(length, DIGEST_CHUNK));
    for (let at = 0; at < length; at += chunk.byteLength) {
      const part = chunk.subarray(0, Math.min(chunk.byteLength, length - at));
      this.serialize(part, at);
      hash.update(part);
    }
    return hash.digest('hex');
  }

  #granules(end: number): number {
    return Math.ceil(end * this.#scale);
  }

  /** Adds what is dirty in a bitmap of the same size. */
  #absorb(source: DirtyBitmap): void {
    if (source === this) return;
    if (source.granularity === this.granularity) {
      this.#bits.union(source.#bits);
      return;
    }
    for (let at = 0; ; ) {
      const run = source.nextDirtyRun(at, Number.POSITIVE_INFINITY);
      if (run === undefined) return;
      this.setDirty(run.offset, run.length);
      at = run.offset + run.length;
    }
  }

  #takeSuccessor(complaint: string): DirtyBitmap {
    const successor = this.#successor;
    if (successor === undefined) throw new BlockError('DF_INVALID', complaint);
    this.#successor = undefined;
    return successor;
  }

  #updateTracking(): void {
    const holder = this.#holder;
    if (holder === undefined) return;
    if (!this.#enabled) removeFrom(holder.trackers, this);
    else if (!holder.trackers.includes(this)) holder.trackers.push(this);
  }
}

/** @throws BlockError DF_INVALID, in QEMU's words */
export function checkGranularity(granularity: number): void {
  const isInRange = granularity >= GRANULARITY_MIN && granularity <= GRANULARITY_MAX;
  if (!isInRange || !isPowerOfTwo(granularity)) {
    throw new BlockError('DF_INVALID', 'Granularity must be power of 2 and at least 512');
  }
}

function removeFrom(list: DirtyBitmap[], bitmap: DirtyBitmap): void {
  const at = list.indexOf(bitmap);
  if (at >= 0) list.splice(at, 1);
}
