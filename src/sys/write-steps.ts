// SPDX-License-Identifier: MIT
/**
 * Long writes in short steps. Linux puts a write into folios as large as the write is. In a virtual
 * machine whose host takes back memory that is free (free page reporting), those come from the host,
 * page by page, where small ones are at hand: 256 MiB into a new file took 1.2 s of CPU at 256 KiB
 * a call and 0.2 s at 64 KiB. Where memory is at hand, steps cost a tenth more.
 */
import { FILE_WRITE_STEP, FILE_WRITE_WHOLE_SLOW_MS } from '../base/limits.js';
import { AdaptiveGate } from './adaptive-gate.js';

/** One call that writes at an offset. @returns bytes written; negative when none could be */
export type WriteCall = (buffer: Buffer, offset: number) => number;

export class SteppedWrites {
  readonly #call: WriteCall;
  readonly #whole: AdaptiveGate;

  /** @param nowMs for the time that a call takes, milliseconds */
  constructor(call: WriteCall, nowMs?: () => number) {
    this.#call = call;
    this.#whole = new AdaptiveGate(FILE_WRITE_WHOLE_SLOW_MS, nowMs);
  }

  /**
   * Writes as a whole while that is quick, else in steps.
   * @returns bytes written, less than all when a step failed behind the first or the file took no more;
   *   negative when none could be
   */
  write(offset: number, buffer: Buffer): number {
    if (buffer.byteLength <= FILE_WRITE_STEP) return this.#call(buffer, offset);
    if (!this.#whole.mayRunNow()) return this.#inSteps(offset, buffer);
    const started = this.#whole.start();
    const written = this.#call(buffer, offset);
    // Nothing may come between a failure and a look at its errno.
    if (written >= 0) this.#whole.end(started);
    return written;
  }

  #inSteps(offset: number, buffer: Buffer): number {
    for (let at = 0; at < buffer.byteLength; ) {
      // Up to where the next large folio could begin.
      const step = FILE_WRITE_STEP - ((offset + at) % FILE_WRITE_STEP);
      const part = buffer.subarray(at, at + step);
      const written = this.#call(part, offset + at);
      if (written < 0) return at === 0 ? written : at;
      at += written;
      if (written < part.byteLength) return at;
    }
    return buffer.byteLength;
  }
}
