// SPDX-License-Identifier: MIT
/**
 * Memory of a relay for what is on the way, used again and again: the first touch of new memory costs
 * as much as carrying the bytes. Bytes are received straight into it, one behind the other, so that
 * what came in many small pieces leaves in few large ones.
 */

/** Bytes of a slab. */
export const SLAB_LENGTH = 4 * 1024 * 1024;
/** A slab with less room than this is full: receiving in crumbs would cost a call for each, bytes. */
const ROOM_MIN = 256 * 1024;

interface Slab {
  readonly memory: Buffer;
  /** Pieces of it that are in use, and one for the receiver while it may put more behind them. */
  uses: number;
}

/** Bytes that have been received and are held until `release`. */
export interface Piece {
  /** Where they lie. */
  readonly slab: Slab;
  readonly start: number;
  readonly end: number;
}

/** All slabs of a process. */
export class SlabPool {
  readonly #spare: Slab[] = [];

  /** @param ready slabs whose memory is touched now instead of when it is first needed */
  constructor(ready: number) {
    for (let count = 0; count < ready; count += 1) {
      this.#spare.push({ memory: Buffer.alloc(SLAB_LENGTH, 1), uses: 0 });
    }
  }

  /** A slab that nobody uses, with one use. */
  take(): Slab {
    const slab = this.#spare.pop() ?? { memory: Buffer.allocUnsafeSlow(SLAB_LENGTH), uses: 0 };
    slab.uses = 1;
    return slab;
  }

  /** Ends one use of a slab. */
  release(slab: Slab): void {
    slab.uses -= 1;
    if (slab.uses === 0) this.#spare.push(slab);
  }
}

/** Where one connection receives. */
export class Receiver {
  #slab: Slab | undefined;
  #used = 0;

  constructor(private readonly pool: SlabPool) {}

  /** Where the next bytes go; at least ROOM_MIN of them fit. */
  room(): Buffer {
    if (this.#slab !== undefined && SLAB_LENGTH - this.#used < ROOM_MIN) this.end();
    this.#slab ??= this.pool.take();
    return this.#slab.memory.subarray(this.#used);
  }

  /** So many bytes have come into the last `room`. @returns them, with a use of their slab */
  received(length: number): Piece {
    const slab = this.#slab;
    if (slab === undefined) throw new Error('received without room');
    slab.uses += 1;
    const start = this.#used;
    this.#used += length;
    return { slab, start, end: this.#used };
  }

  /** Nothing more is received. */
  end(): void {
    if (this.#slab !== undefined) this.pool.release(this.#slab);
    this.#slab = undefined;
    this.#used = 0;
  }
}

/** Joins pieces that lie one behind the other in one slab; they become one, with one use. */
export function joined(pieces: readonly Piece[], pool: SlabPool): Piece[] {
  const result: Piece[] = [];
  for (const piece of pieces) {
    const last = result.at(-1);
    if (last?.slab !== piece.slab || last.end !== piece.start) {
      result.push(piece);
      continue;
    }
    result[result.length - 1] = { ...last, end: piece.end };
    pool.release(piece.slab);
  }
  return result;
}
