// SPDX-License-Identifier: MIT
/** Reading from several copies: all of them with a vote, or one after the other until one can. */
import type { PooledBuffer } from '../../../base/buffer-pool.js';
import { BlockError } from '../../../base/errors.js';
import { chain, isPromise, type MaybePromise } from '../../../base/maybe-promise.js';
import type { RangeLock } from '../../../base/range-lock.js';
import type { CopyReports } from '../../block-driver.js';
import type { ChildEdge } from '../../edge.js';
import { attemptAll, errorsOf, holding, type Outcome } from './attempts.js';
import { tooManyFailed } from './failure.js';
import type { MissedWrites } from './missed-writes.js';
import type { QuorumOptions } from './options.js';
import { SpareMemory } from './spare-memory.js';
import { countVotes, type Version, winnerOf } from './vote.js';

export interface QuorumReaderOptions {
  readonly options: QuorumOptions;
  readonly reports: CopyReports;
  /** Changes only while nothing is read. */
  readonly copies: readonly ChildEdge[];
  readonly missed: MissedWrites;
  /** Writers hold their range there. */
  readonly lock: RangeLock;
}

export class QuorumReader {
  readonly #options: QuorumOptions;
  readonly #reports: CopyReports;
  readonly #copies: readonly ChildEdge[];
  readonly #missed: MissedWrites;
  readonly #lock: RangeLock;
  readonly #memory = new SpareMemory();

  constructor({ options, reports, copies, missed, lock }: QuorumReaderOptions) {
    this.#options = options;
    this.#reports = reports;
    this.#copies = copies;
    this.#missed = missed;
    this.#lock = lock;
  }

  /** @throws BlockError DF_IO when too few copies agree, or what most say that fail */
  read(offset: number, buffer: Buffer): MaybePromise<void> {
    if (this.#options.readPattern === 'fifo') {
      return this.#pieces(offset, buffer, (at, piece) => this.#readFirst(at, piece));
    }
    return holding(this.#lock.acquire(offset, buffer.byteLength, { shared: true }), () =>
      this.#pieces(offset, buffer, (at, piece) => this.#readAll(at, piece)),
    );
  }

  /** Copies are asked for ranges in which each either has all writes or lacks some everywhere. */
  #pieces(
    offset: number,
    buffer: Buffer,
    read: (offset: number, piece: Buffer) => MaybePromise<void>,
  ): MaybePromise<void> {
    const length = buffer.byteLength;
    const first = this.#missed.uniformLength(offset, length);
    if (first === length) return read(offset, buffer);
    return this.#allPieces(offset, buffer, read);
  }

  async #allPieces(
    offset: number,
    buffer: Buffer,
    read: (offset: number, piece: Buffer) => MaybePromise<void>,
  ): Promise<void> {
    for (let at = 0; at < buffer.byteLength; ) {
      const length = this.#missed.uniformLength(offset + at, buffer.byteLength - at);
      await read(offset + at, buffer.subarray(at, at + length));
      at += length;
    }
  }

  /** From the first copy that can. */
  #readFirst(offset: number, buffer: Buffer, from = 0, before?: unknown): MaybePromise<void> {
    const failed = (index: number, error: unknown): MaybePromise<void> => {
      const copy = this.#copies[index];
      const report = { operation: 'read', offset, length: buffer.byteLength, error } as const;
      if (copy !== undefined) this.#reports.bad(copy, report);
      return this.#readFirst(offset, buffer, index + 1, error);
    };
    for (let index = from; index < this.#copies.length; index++) {
      const copy = this.#copies[index];
      if (copy === undefined || this.#missed.has(copy, offset)) continue;
      try {
        const pending = copy.read(offset, buffer);
        if (!isPromise(pending)) return;
        return pending.catch((error: unknown) => failed(index, error));
      } catch (error) {
        return failed(index, error);
      }
    }
    throw before ?? this.#disagreement(offset, buffer.byteLength);
  }

  /** From all copies, and a vote. The first copy reads straight into the caller's buffer. */
  #readAll(offset: number, buffer: Buffer): MaybePromise<void> {
    const length = buffer.byteLength;
    return chain(this.#memory.take(this.#copies.length - 1, length), (spare) => {
      const contents = [buffer, ...spare.map(({ bytes }) => bytes.subarray(0, length))];
      return releasing(spare, () =>
        chain(
          attemptAll(this.#copies, (copy, index) => copy.read(offset, contents[index] ?? buffer)),
          (outcomes) => this.#vote(offset, contents, outcomes),
        ),
      );
    });
  }

  #vote(
    offset: number,
    contents: readonly Buffer[],
    outcomes: readonly Outcome<void>[],
  ): MaybePromise<void> {
    const [buffer = Buffer.alloc(0)] = contents;
    const range = { offset, length: buffer.byteLength };
    this.#reportErrors(range, outcomes);
    const errors = errorsOf(outcomes);
    if (outcomes.length - errors.length < this.#options.threshold) {
      this.#reports.failed(range);
      throw tooManyFailed('read', range, errors, outcomes.length);
    }
    const versions = this.#versions(offset, contents, outcomes);
    if (this.#options.blkverify && versions.length > 1) throw this.#mismatch(range, versions);
    const winner = winnerOf(versions, this.#options.threshold);
    if (winner === undefined) throw this.#disagreement(offset, range.length);
    if (winner.content !== buffer) winner.content.copy(buffer);
    return this.#treatLosers(
      offset,
      buffer,
      versions.filter((version) => version !== winner).flatMap(({ voters }) => voters),
    );
  }

  #versions(
    offset: number,
    contents: readonly Buffer[],
    outcomes: readonly Outcome<void>[],
  ): Version[] {
    const ballots = this.#copies.flatMap((copy, voter) => {
      const content = contents[voter];
      if (content === undefined || outcomes[voter]?.failed !== false) return [];
      return [{ voter, content, trusted: !this.#missed.has(copy, offset) }];
    });
    return countVotes(ballots);
  }

  /** Tells of copies that were outvoted, and mends them when asked to. */
  #treatLosers(offset: number, buffer: Buffer, voters: readonly number[]): MaybePromise<void> {
    if (voters.length === 0) return;
    const length = buffer.byteLength;
    const losers = this.#copies.filter((_copy, index) => voters.includes(index));
    for (const copy of losers) this.#reports.bad(copy, { operation: 'read', offset, length });
    if (!this.#options.rewriteCorrupted) return;
    return chain(
      attemptAll(losers, (copy) => copy.write(offset, buffer)),
      (outcomes) => {
        // A copy that can't be mended stays as bad as it was; the read has its answer.
        for (const [index, copy] of losers.entries()) {
          if (outcomes[index]?.failed === false) this.#missed.remove(copy, offset, length);
        }
      },
    );
  }

  #reportErrors(
    range: { readonly offset: number; readonly length: number },
    outcomes: readonly Outcome<void>[],
  ): void {
    for (const [index, copy] of this.#copies.entries()) {
      const outcome = outcomes[index];
      if (outcome?.failed !== true) continue;
      this.#reports.bad(copy, { operation: 'read', ...range, error: outcome.error });
    }
  }

  #disagreement(offset: number, length: number): BlockError {
    this.#reports.failed({ offset, length });
    const { threshold } = this.#options;
    return new BlockError(
      'DF_IO',
      `quorum: no ${threshold} up-to-date copies agree on ${length} bytes at ${offset}`,
      { op: 'read', offset, length },
    );
  }

  #mismatch(
    { offset, length }: { readonly offset: number; readonly length: number },
    [one, other]: readonly Version[],
  ): BlockError {
    this.#reports.failed({ offset, length });
    const at = one?.content.findIndex((byte, index) => byte !== other?.content[index]) ?? 0;
    return new BlockError(
      'DF_IO',
      `quorum: offset=${offset} bytes=${length} contents mismatch at offset ${offset + at}`,
      { op: 'read', offset, length },
    );
  }
}

/** Gives the buffers back when the work has ended. */
function releasing(
  buffers: readonly PooledBuffer[],
  work: () => MaybePromise<void>,
): MaybePromise<void> {
  const release = (): void => {
    for (const buffer of buffers) buffer.release();
  };
  let pending: MaybePromise<void>;
  try {
    pending = work();
  } catch (error) {
    release();
    throw error;
  }
  if (isPromise(pending)) return pending.finally(release);
  release();
}
