// SPDX-License-Identifier: MIT
/** `discard-source`: what a backup has copied leaves the snapshot that it is made of. */

import { MIB } from '../base/limits.js';
import type { MaybePromise } from '../base/maybe-promise.js';
import type { RequestFlags } from '../block/block-driver.js';
import type { CopyBeforeWriteDriver } from '../block/filter/copy-before-write.js';

/** Bytes that are copied between two flushes of the target: so much room is given back late. */
const BATCH_LENGTH = 64 * MIB;

/** The side of a target that copies use. */
interface Target {
  write(offset: number, buffer: Buffer): MaybePromise<void>;
  writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void>;
}

/**
 * Nothing is discarded before the target has it on stable storage: when the job fails, or the target's
 * server with all that it had in memory, the snapshot still has what the target may not have.
 */
export class SourceDiscards {
  readonly #snapshot: CopyBeforeWriteDriver;
  readonly #flush: () => MaybePromise<void>;
  #copied: { readonly offset: number; readonly length: number }[] = [];
  #bytes = 0;

  constructor(snapshot: CopyBeforeWriteDriver, flush: () => MaybePromise<void>) {
    this.#snapshot = snapshot;
    this.#flush = flush;
  }

  /** The target, with a note taken of what has been written to it. */
  after(target: Target): Target {
    return {
      write: async (offset, buffer) => {
        await target.write(offset, buffer);
        await this.#note(offset, buffer.byteLength);
      },
      writeZeroes: async (offset, length, flags) => {
        await target.writeZeroes(offset, length, flags);
        await this.#note(offset, length);
      },
    };
  }

  /** Discards what has been noted; the caller has flushed the target. */
  async discardAll(): Promise<void> {
    const copied = this.#take();
    for (const { offset, length } of copied) await this.#discard(offset, length);
  }

  /** @throws what the flush says; what was noted before stays in the snapshot for good then */
  async #note(offset: number, length: number): Promise<void> {
    this.#copied.push({ offset, length });
    this.#bytes += length;
    if (this.#bytes < BATCH_LENGTH) return;
    const copied = this.#take();
    await this.#flush();
    for (const range of copied) await this.#discard(range.offset, range.length);
  }

  #take(): readonly { readonly offset: number; readonly length: number }[] {
    const copied = this.#copied;
    this.#copied = [];
    this.#bytes = 0;
    return copied;
  }

  /** The range is not needed; that its room can't be given back is no failure of the backup. */
  async #discard(offset: number, length: number): Promise<void> {
    try {
      await this.#snapshot.discardSnapshot(offset, length);
    } catch {
      // Writes go on as before, and the room is given back with the image.
    }
  }
}
