// SPDX-License-Identifier: MIT
/** Commands without a payload in either direction: FLUSH, TRIM, CACHE, WRITE_ZEROES. */
import {
  NBD_CMD_CACHE,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLUSH,
  NBD_CMD_TRIM,
} from '../../../protocol/nbd/constants.js';
import type { ReceivedRequest } from '../../../protocol/nbd/transmission.js';
import { NBD_PIECE_MAX } from '../../base/limits.js';
import { REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK, REQ_PREFETCH } from '../../block/block-driver.js';
import type { ByteCounter, RequestCounter } from './counters.js';
import type { ReadHost } from './read-request.js';
import type { Session } from './session.js';

export interface CommandHost extends ReadHost {
  readonly session: Session;
  count(what: RequestCounter): void;
  countBytes(what: ByteCounter, length: number): void;
}

/** Whether the request's data has to be on stable storage before the reply. */
export function isFua(head: Readonly<ReceivedRequest>, session: Session): boolean {
  return (head.flags & NBD_CMD_FLAG_FUA) !== 0 || session.export.writethrough;
}

export class PlainCommands {
  readonly #host: CommandHost;

  constructor(host: CommandHost) {
    this.#host = host;
  }

  /** Executes a checked request and replies, now or later. `head` is not kept. */
  execute(head: ReceivedRequest): void {
    let pending: void | Promise<void>;
    try {
      pending = this.#start(head);
    } catch (reason) {
      this.#host.fail(head, reason);
      return;
    }
    if (pending === undefined) {
      this.#host.replies.ok(head);
      return;
    }
    const kept = { ...head };
    this.#host.pend(
      pending,
      0,
      () => this.#host.replies.ok(kept),
      (reason) => this.#host.fail(kept, reason),
    );
  }

  #start(head: ReceivedRequest): void | Promise<void> {
    const host = this.#host;
    switch (head.type) {
      case NBD_CMD_FLUSH:
        host.count('flushes');
        return host.backend.flush();
      case NBD_CMD_TRIM:
        host.count('trims');
        host.countBytes('trimmedBytes', head.length);
        return this.#trim(head);
      case NBD_CMD_CACHE:
        host.count('caches');
        return this.#cache(head.offset, head.length);
      default:
        host.count('writeZeroes');
        host.countBytes('zeroedBytes', head.length);
        return this.#writeZeroes(head);
    }
  }

  #trim(head: ReceivedRequest): void | Promise<void> {
    if (head.length === 0) return;
    const pending = this.#host.backend.discard(head.offset, head.length);
    if (!isFua(head, this.#host.session)) return pending;
    return pending === undefined
      ? this.#host.backend.flush()
      : pending.then(() => this.#host.backend.flush());
  }

  #writeZeroes(head: ReceivedRequest): void | Promise<void> {
    if (head.length === 0) return;
    const { flags } = head;
    const request =
      (isFua(head, this.#host.session) ? REQ_FUA : 0) |
      ((flags & NBD_CMD_FLAG_NO_HOLE) === 0 ? REQ_MAY_UNMAP : 0) |
      ((flags & NBD_CMD_FLAG_FAST_ZERO) !== 0 ? REQ_NO_FALLBACK : 0);
    return this.#host.backend.writeZeroes(head.offset, head.length, request);
  }

  /** Brings the range close, piece by piece, through a buffer that nobody looks at. */
  async #cache(offset: number, length: number): Promise<void> {
    const end = offset + length;
    for (let at = offset; at < end && !this.#host.outbox.closed; ) {
      const size = Math.min(this.#host.budget.pieceMax, end - at, NBD_PIECE_MAX);
      const scratch = this.#host.budget.pool.take(size);
      try {
        await this.#host.backend.read(at, scratch.bytes.subarray(0, size), REQ_PREFETCH);
      } finally {
        scratch.release();
      }
      at += size;
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }
}
