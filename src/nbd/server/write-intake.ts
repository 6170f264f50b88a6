// SPDX-License-Identifier: MIT
/**
 * A WRITE whose payload is received straight into the buffer from which it is written. Long ones
 * go to the node piece by piece as they arrive, so that a client holds a piece of memory and not
 * what it announced.
 */

import type { ReceivedRequest } from '../../../protocol/nbd/transmission.js';
import type { PooledBuffer } from '../../base/buffer-pool.js';
import { REQ_FUA } from '../../block/block-driver.js';
import type { ExportBackend } from './export.js';
import type { Inbox } from './inbox.js';
import type { MemoryBudget } from './memory-budget.js';

/** Pieces end at multiples of this, so that cutting costs no read-modify-write. Bytes. */
const CUT_ALIGNMENT = 4096;

/** What an intake needs of the transmission that it belongs to. */
export interface IntakeHost {
  readonly backend: ExportBackend;
  readonly budget: MemoryBudget;
  /** Counts `pending` as in flight and calls exactly one of the two when it settles. */
  pend(pending: Promise<void>, cost: number, done: () => void, failed: (e: unknown) => void): void;
  /** All is received and written, or failed: time to reply. */
  writeEnded(head: ReceivedRequest, failure: { reason: unknown } | undefined): void;
}

export class WriteIntake {
  readonly #host: IntakeHost;
  readonly #head: ReceivedRequest;
  readonly #fua: boolean;
  /** Bytes of payload that no piece has been begun for. */
  #left: number;
  #offset: number;
  #piece: PooledBuffer | undefined;
  #pieceLength = 0;
  #pieceFill = 0;
  #cut = false;
  #pending = 0;
  #failure: { reason: unknown } | undefined;

  /** @param head kept; `length` bytes of payload follow */
  constructor(host: IntakeHost, head: ReceivedRequest, options: { fua: boolean }) {
    this.#host = host;
    this.#head = head;
    this.#fua = options.fua;
    this.#left = head.length;
    this.#offset = head.offset;
  }

  get complete(): boolean {
    return this.#left === 0 && this.#piece === undefined;
  }

  /** Takes what came with the head. */
  feed(inbox: Inbox): void {
    while (inbox.unread > 0 && !this.complete) {
      const { bytes } = inbox.buffer;
      const target = this.target();
      const length = bytes.copy(target, 0, inbox.start, inbox.start + inbox.unread);
      inbox.consume(length);
      this.received(length);
    }
  }

  /** The rest of the present piece. Only while not complete. */
  target(): Buffer {
    const piece = this.#piece ?? this.#begin();
    return piece.bytes.subarray(this.#pieceFill, this.#pieceLength);
  }

  /** `length` bytes came into the target. Returns true when they filled it. */
  received(length: number): boolean {
    this.#pieceFill += length;
    if (this.#pieceFill < this.#pieceLength) return false;
    this.#submit();
    return true;
  }

  /** The connection is gone: what was not received never will be. */
  close(): void {
    this.#piece?.release();
    this.#piece = undefined;
  }

  #begin(): PooledBuffer {
    const { budget } = this.#host;
    let length = this.#left;
    const max = budget.pieceMax;
    if (length > max) {
      length = max - (this.#offset % CUT_ALIGNMENT);
      this.#cut = true;
    }
    const piece = budget.pool.take(length);
    this.#piece = piece;
    this.#pieceLength = length;
    this.#pieceFill = 0;
    this.#left -= length;
    return piece;
  }

  #submit(): void {
    const piece = this.#piece;
    if (piece === undefined) return;
    const length = this.#pieceLength;
    const pending = this.#failure === undefined ? this.#write(piece) : undefined;
    this.#offset += length;
    this.#piece = undefined;
    if (pending === undefined) {
      piece.release();
      this.#endIfComplete();
      return;
    }
    this.#pending++;
    const settled = () => {
      this.#pending--;
      piece.release();
      this.#endIfComplete();
    };
    this.#host.pend(pending, length, settled, (reason) => {
      this.#failure ??= { reason };
      settled();
    });
  }

  #write(piece: PooledBuffer): void | Promise<void> {
    const flags = this.#fua && !this.#cut ? REQ_FUA : 0;
    const payload = piece.bytes.subarray(0, this.#pieceLength);
    try {
      return this.#host.backend.write(this.#offset, payload, flags);
    } catch (reason) {
      this.#failure = { reason };
    }
  }

  #endIfComplete(): void {
    if (!this.complete || this.#pending > 0) return;
    if (this.#fua && this.#cut && this.#failure === undefined) this.#flush();
    else this.#host.writeEnded(this.#head, this.#failure);
  }

  /** One flush behind all pieces stands for FUA on each. */
  #flush(): void {
    let pending: void | Promise<void>;
    try {
      pending = this.#host.backend.flush();
    } catch (reason) {
      this.#host.writeEnded(this.#head, { reason });
      return;
    }
    if (pending === undefined) {
      this.#host.writeEnded(this.#head, undefined);
      return;
    }
    this.#host.pend(
      pending,
      0,
      () => this.#host.writeEnded(this.#head, undefined),
      (reason) => this.#host.writeEnded(this.#head, { reason }),
    );
  }
}
