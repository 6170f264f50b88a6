// SPDX-License-Identifier: MIT
/**
 * The pipeline that empties a dirty bitmap: takes runs of dirty granules, asks the source what they
 * are, copies data and writes zeroes to the target, with a window of bytes in flight.
 *
 * A granule's bit is cleared before it is read; a write that comes in between sets it again, so the
 * granule is copied again. Two copies of one range are never in flight together: each holds its range
 * of a lock, which others may share to keep copies out of theirs.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { isPromise, type MaybePromise } from '../base/maybe-promise.js';
import { type RangeHold, RangeLock } from '../base/range-lock.js';
import type { RateLimit } from '../base/rate-limit.js';
import type { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { REQ_MAY_UNMAP, STATUS_DATA, STATUS_ZERO } from '../block/block-driver.js';
import type { ChainExtent } from '../block/block-status.js';
import type { FileRange, RangeUse } from '../block/file-range.js';
import { InFlight } from '../block/in-flight.js';
import { isZero } from '../block/shaped-requests.js';
import { CopyError, passRange } from './copy-pass.js';
import { CopyWindow } from './copy-window.js';

/** Longest run that is zeroed at once, bytes; bounds what one request holds up. */
export const ZERO_RUN_MAX = 1 << 30;

export interface CopySource {
  read(offset: number, buffer: Buffer): MaybePromise<void>;
  /** @see BlockNode.readRange. Absent: everything is read. */
  readRange?(offset: number, length: number, use: RangeUse): MaybePromise<number>;
  blockStatus(offset: number, length: number): MaybePromise<ChainExtent>;
  /** Counts changes of the source; equal before and after means that a status still holds. */
  readonly generation: number;
}

export interface CopyTarget {
  write(offset: number, buffer: Buffer): MaybePromise<void>;
  /** @see BlockNode.writeFrom. Never succeeds with nothing but zeroes. Absent: everything is written. */
  writeFrom?(offset: number, range: FileRange): MaybePromise<number>;
  /** How long a `writeFrom` may be where it succeeds, bytes. Absent: no other bound than that of a write. */
  readonly passLength?: number | undefined;
  writeZeroes(offset: number, length: number, flags: number): MaybePromise<void>;
}

export interface CopyLoopOptions {
  readonly bitmap: DirtyBitmap;
  readonly size: number;
  readonly source: CopySource;
  readonly target: CopyTarget;
  readonly rate: RateLimit;
  /** Longest data request, bytes; a multiple of the bitmap's granularity. */
  readonly chunkLength: number;
  /** Bytes in flight at most, over a target that answers at once. */
  readonly windowLength: number;
  /** Bytes in flight at most over a link with delay. Default: `windowLength`. */
  readonly windowLengthMax?: number | undefined;
  /** How long the way there and back is known to be, milliseconds. Default: it is found out. */
  readonly roundTripMs?: number | undefined;
  /** Zeroes may become holes in the target. */
  readonly unmap: boolean;
  readonly copied: (length: number) => void;
  /** Requests in flight at most. Default: as many as the window takes. */
  readonly requestsMax?: number;
  /** Ranges in it are left out; in whole granules. `wakeUp` tells of their release. Default: an own one. */
  readonly lock?: RangeLock;
  /** Longest run that is zeroed at once, bytes; asked each time. Default: ZERO_RUN_MAX. */
  readonly zeroRunMax?: () => number;
  /**
   * Called when a range is taken, in the same instant as its bits are cleared; what it returns is
   * called when its copy has ended, well or not.
   */
  readonly taken?: (offset: number, length: number) => () => void;
  /** An error's consequence: true to go on (the range is dirty again), false to fail the loop. */
  readonly failed: (operation: 'read' | 'write', error: unknown) => boolean;
}

interface Operation {
  readonly offset: number;
  readonly length: number;
}

/** What the source said of a range, and when. */
interface KnownStatus {
  readonly extent: ChainExtent;
  readonly offset: number;
  readonly generation: number;
}

interface Picked extends Operation {
  readonly zero: boolean;
  readonly hold: RangeHold;
  readonly release: (() => void) | undefined;
}

/** Why `run` returned. */
export type CopyLoopEnd = 'clean' | 'yielded';

/**
 * Bytes read and sent in one turn of the event loop, after which clients of the source have theirs: one
 * copy, about 0.15 ms, which a request of theirs may have to wait.
 */
const TURN_LENGTH = 256 * 1024;
/** Pause after an error that is ignored, so that a dead disk is not hammered, milliseconds. */
const RETRY_DELAY_MS = 100;

export class CopyLoop {
  readonly #options: CopyLoopOptions;
  readonly #lock: RangeLock;
  readonly #operations = new InFlight();
  readonly #buffers: Buffer[] = [];
  readonly #window: CopyWindow;
  /** The last copy needed no buffer. */
  #passes = false;
  #heldBy = 0;
  #cursor = 0;
  #bytesInFlight = 0;
  /** Bytes of copies that were started since others last had their turn. */
  #turnLength = 0;
  #failure: unknown;
  #retryAt = 0;
  #wake: (() => void) | undefined;
  #woken = false;
  #timer: NodeJS.Timeout | undefined;
  #status: KnownStatus | undefined;
  /** What comes right behind `#status`, where that was asked for already. */
  #statusBehind: KnownStatus | undefined;

  constructor(options: CopyLoopOptions) {
    this.#options = options;
    this.#lock = options.lock ?? new RangeLock();
    const { windowLength, windowLengthMax = windowLength, roundTripMs } = options;
    const window = { initialLength: windowLength, lengthMax: windowLengthMax, roundTripMs };
    this.#window = new CopyWindow(window);
  }

  /** Bytes that may be in flight: about twice what the way to the target holds. */
  get windowLength(): number {
    return this.#window.length;
  }

  /** Bytes that are being copied now. */
  get bytesInFlight(): number {
    return this.#bytesInFlight;
  }

  /**
   * Copies until nothing is dirty, or `shouldYield` says so; nothing is in flight when it returns.
   * @throws the first error that `failed` did not forgive
   */
  async run(shouldYield: () => boolean): Promise<CopyLoopEnd> {
    try {
      for (;;) {
        const more = await this.#pump(shouldYield);
        if (this.#operations.count === 0) {
          if (this.#failure !== undefined) throw this.#failure;
          if (shouldYield()) return 'yielded';
          if (!more) return 'clean';
        }
        await this.#sleep();
      }
    } finally {
      this.#buffers.length = 0;
      this.#forgetStatus();
    }
  }

  /** Starts no copies until `release`: its nodes are drained. What is in flight goes on. */
  hold(): void {
    this.#heldBy++;
  }

  release(): void {
    this.#heldBy--;
    if (this.#heldBy === 0) this.wakeUp();
  }

  /** Nothing, or a promise for when no copy is in flight. */
  whenIdle(): MaybePromise<void> {
    return this.#operations.whenIdle();
  }

  /** Looks again: something that it waits for may have changed. */
  wakeUp(): void {
    this.#woken = true;
    this.#wake?.();
  }

  /** Starts what the window allows. True when there is more to do than what is in flight. */
  async #pump(shouldYield: () => boolean): Promise<boolean> {
    const { bitmap, rate, requestsMax = Number.POSITIVE_INFINITY } = this.#options;
    while (!shouldYield() && this.#failure === undefined) {
      if (bitmap.count === 0) return false;
      if (this.#turnLength >= TURN_LENGTH) {
        // Also after a sleep: whoever woke us up may be in the same turn as the last copies.
        this.#turnLength = 0;
        await nextTurn();
        continue;
      }
      if (this.#heldBy > 0) return true;
      if (this.#bytesInFlight >= this.#window.length) return true;
      if (this.#operations.count >= requestsMax) return true;
      const delay = Math.max(rate.delayMs(), this.#retryAt - performance.now());
      if (delay > 0) {
        this.#wakeAfter(delay);
        return true;
      }
      const picked = await this.#pick();
      if (picked === undefined) {
        if (this.#lock.count > 0 || this.#failure !== undefined) return true;
        continue; // held now, or asking for the status failed and was forgiven
      }
      this.#start(picked);
      this.#turnLength += picked.zero ? 0 : picked.length;
    }
    return bitmap.count > 0;
  }

  /** The next run that nobody holds, with its bits cleared; undefined when there is none. */
  async #pick(): Promise<Picked | undefined> {
    for (;;) {
      const run = this.#nextFreeRun();
      if (run === undefined) return undefined;
      const pending = this.#statusOf(run);
      if (!(pending instanceof Promise)) return this.#take(run, pending);
      const extent = await this.#readStatus(pending);
      if (extent === undefined || this.#heldBy > 0) return undefined;
      const free = this.#stillFree(run);
      if (free === undefined) continue;
      if (this.#status?.generation === this.#options.source.generation) {
        return this.#take(free, extent);
      }
      // The source has changed while we asked: what we heard may be old, but it can be read.
      this.#forgetStatus();
      return this.#take(free, { ...extent, flags: STATUS_DATA, length: free.length });
    }
  }

  /**
   * What is left of the head of a run after a wait, in which others may have held some of it, or
   * copied it. What has been copied must not be: a backup's source may have been overwritten since.
   */
  #stillFree(run: Operation): Operation | undefined {
    const free = this.#clip(run);
    if (typeof free === 'number') return undefined;
    const { dirty, length } = this.#options.bitmap.status(free.offset, free.length);
    return dirty ? { offset: free.offset, length } : undefined;
  }

  async #readStatus(pending: Promise<ChainExtent>): Promise<ChainExtent | undefined> {
    try {
      return await pending;
    } catch (error) {
      this.#noteError(new CopyError('read', error));
      return undefined;
    }
  }

  #take(run: Operation, extent: ChainExtent): Picked {
    const { bitmap, size, rate, zeroRunMax } = this.#options;
    const zero = (extent.flags & STATUS_ZERO) !== 0;
    const granule = bitmap.granularity;
    const longest = zero
      ? (zeroRunMax?.() ?? ZERO_RUN_MAX)
      : rate.sliceLength(this.#longest, granule);
    let length = Math.min(run.length, extent.length, longest);
    const end = run.offset + length;
    // Bits are cleared for whole granules only; a granule of mixed status is copied as data.
    const whole = end === size ? length : length - (end % granule);
    const mixed = whole <= 0;
    length = mixed ? Math.min(granule - (run.offset % granule), run.length) : whole;
    const hold = this.#lock.tryAcquire(run.offset, length);
    if (hold === undefined) throw new Error('copy loop: took a range that somebody holds');
    bitmap.resetDirty(run.offset, length);
    const release = this.#options.taken?.(run.offset, length);
    // Counts from now on: who drains the nodes before the loop gets to the copy waits for it.
    this.#operations.begin();
    this.#cursor = run.offset + length;
    return { offset: run.offset, length, zero: zero && !mixed, hold, release };
  }

  #nextFreeRun(): Operation | undefined {
    const { bitmap, size } = this.#options;
    let from = this.#cursor >= size ? 0 : this.#cursor;
    for (let wraps = 0; wraps < 2; ) {
      const run = bitmap.nextDirtyRun(from, ZERO_RUN_MAX);
      if (run === undefined) {
        wraps++;
        from = 0;
        continue;
      }
      const clear = this.#clip(run);
      if (typeof clear !== 'number') return clear;
      from = clear;
      if (from >= size) {
        wraps++;
        from = 0;
      }
    }
    return undefined;
  }

  /** The part of the run before anything that is held, or (when it begins in such) where to look on. */
  #clip(run: Operation): Operation | number {
    const { size } = this.#options;
    let end = Math.min(run.offset + run.length, size);
    for (const busy of this.#lock.ranges) {
      const busyEnd = busy.offset + busy.length;
      if (busy.offset <= run.offset && run.offset < busyEnd) return busyEnd;
      if (busy.offset > run.offset && busy.offset < end) end = busy.offset;
    }
    return { offset: run.offset, length: end - run.offset };
  }

  #statusOf(run: Operation): MaybePromise<ChainExtent> {
    const { source } = this.#options;
    const { generation } = source;
    const known =
      this.#known(this.#status, run.offset) ?? this.#known(this.#statusBehind, run.offset);
    // A long look ahead serves the runs that follow.
    const extent =
      known ??
      source.blockStatus(run.offset, Math.min(ZERO_RUN_MAX, this.#options.size - run.offset));
    return isPromise(extent)
      ? extent.then((found) => this.#joined(run, found, generation))
      : this.#joined(run, extent, generation);
  }

  /** The part of what is known from `offset` on, if that still holds. */
  #known(status: KnownStatus | undefined, offset: number): ChainExtent | undefined {
    if (status === undefined || status.generation !== this.#options.source.generation) return;
    const ahead = offset - status.offset;
    const length = status.extent.length - ahead;
    return ahead >= 0 && length > 0 ? { ...status.extent, length } : undefined;
  }

  /**
   * Joins data that lies in several layers, so that one copy fetches it, as far as the run and a copy
   * reach. Remembers all that it was told.
   */
  #joined(run: Operation, first: ChainExtent, generation: number): MaybePromise<ChainExtent> {
    const { source } = this.#options;
    const wanted = Math.min(run.length, this.#longest);
    let extent = first;
    while ((extent.flags & STATUS_ZERO) === 0 && extent.length < wanted) {
      const offset = run.offset + extent.length;
      const behind =
        this.#known(this.#statusBehind, offset) ??
        source.blockStatus(offset, run.length - extent.length);
      if (isPromise(behind)) {
        const soFar = extent;
        return behind.then((found) => {
          const more = this.#join(soFar, found, { offset, generation });
          // Once the source has changed, nothing that is heard of it helps.
          const goOn = more !== undefined && source.generation === generation;
          return goOn
            ? this.#joined(run, more, generation)
            : this.#remember(run, soFar, generation);
        });
      }
      const more = this.#join(extent, behind, { offset, generation });
      if (more === undefined) break;
      extent = more;
    }
    return this.#remember(run, extent, generation);
  }

  /** The extent with data that lies behind it; undefined for zeroes, which are remembered. */
  #join(
    extent: ChainExtent,
    behind: ChainExtent,
    where: { offset: number; generation: number },
  ): ChainExtent | undefined {
    if ((behind.flags & STATUS_ZERO) === 0) {
      return { ...extent, length: extent.length + behind.length };
    }
    this.#statusBehind = { extent: behind, ...where };
    return undefined;
  }

  #remember(run: Operation, extent: ChainExtent, generation: number): ChainExtent {
    this.#status = { extent, offset: run.offset, generation };
    return extent;
  }

  #forgetStatus(): void {
    this.#status = undefined;
    this.#statusBehind = undefined;
  }

  #start(picked: Picked): void {
    this.#bytesInFlight += picked.zero ? 0 : picked.length;
    this.#options.rate.spend(picked.zero ? 0 : picked.length);
    const began = performance.now();
    const work = picked.zero ? this.#zero(picked) : this.#copy(picked);
    work.then(
      () => {
        if (!picked.zero) this.#window.note(picked.length, began, performance.now());
        this.#ended(picked, undefined);
      },
      (error: unknown) => this.#ended(picked, error),
    );
  }

  async #zero({ offset, length }: Operation): Promise<void> {
    const flags = this.#options.unmap ? REQ_MAY_UNMAP : 0;
    try {
      await this.#options.target.writeZeroes(offset, length, flags);
    } catch (error) {
      throw new CopyError('write', error);
    }
  }

  /** What can't go from the source's file to the target by itself passes through a buffer. */
  async #copy(operation: Operation): Promise<void> {
    const pending = passRange(this.#options, operation);
    const gaps = isPromise(pending) ? await pending : pending;
    this.#passes = gaps === undefined;
    if (gaps === undefined) return;
    const { chunkLength } = this.#options;
    for (const { offset, length } of gaps) {
      for (let at = 0; at < length; at += chunkLength) {
        await this.#copyByBuffer({
          offset: offset + at,
          length: Math.min(chunkLength, length - at),
        });
      }
    }
  }

  /** Longest copy of data, bytes: what needs no buffer may be longer. */
  get #longest(): number {
    const { chunkLength, target, windowLength } = this.#options;
    if (!this.#passes) return chunkLength;
    return Math.max(chunkLength, Math.min(target.passLength ?? 0, windowLength));
  }

  async #copyByBuffer(operation: Operation): Promise<void> {
    const { source, target } = this.#options;
    const { offset, length } = operation;
    const whole = this.#buffers.pop() ?? Buffer.allocUnsafeSlow(this.#options.chunkLength);
    const buffer = whole.subarray(0, length);
    try {
      try {
        const pending = source.read(offset, buffer);
        if (pending !== undefined) await pending;
      } catch (error) {
        throw new CopyError('read', error);
      }
      if (isZero(buffer)) return await this.#zero(operation);
      try {
        const pending = target.write(offset, buffer);
        if (pending !== undefined) await pending;
      } catch (error) {
        throw new CopyError('write', error);
      }
    } finally {
      this.#buffers.push(whole);
    }
  }

  #ended(picked: Picked, error: unknown): void {
    const { bitmap, copied } = this.#options;
    this.#bytesInFlight -= picked.zero ? 0 : picked.length;
    if (error !== undefined) bitmap.setDirty(picked.offset, picked.length);
    picked.hold.release();
    picked.release?.();
    this.#operations.end();
    if (error === undefined) copied(picked.length);
    else this.#noteError(error);
    this.wakeUp();
  }

  #noteError(error: unknown): void {
    if (this.#failure !== undefined) return; // of what was in flight beside it; told once
    const copyError = error instanceof CopyError ? error : new CopyError('read', error);
    const goOn = this.#options.failed(copyError.operation, copyError.cause);
    if (goOn) this.#retryAt = performance.now() + RETRY_DELAY_MS;
    else this.#failure ??= copyError.cause;
  }

  #wakeAfter(delayMs: number): void {
    if (this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.wakeUp();
    }, delayMs);
  }

  async #sleep(): Promise<void> {
    if (!this.#woken) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
    this.#woken = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }
}
