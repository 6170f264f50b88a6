// SPDX-License-Identifier: MIT
/**
 * `quorum`: several copies of one disk. Writes go to all; what is read is what enough of them agree
 * on, so a copy may fail or rot without anybody above noticing. @see qapi BlockdevOptionsQuorum
 */
import { BlockError } from '../../../base/errors.js';
import { MIB, QUORUM_CHILDREN_MAX } from '../../../base/limits.js';
import { chain, type MaybePromise } from '../../../base/maybe-promise.js';
import { RangeLock } from '../../../base/range-lock.js';
import {
  type BlockDriver,
  type BlockLimits,
  type ChildList,
  type ChildRole,
  type CopyReport,
  type CopyReports,
  DEFAULT_LIMITS,
  type DriverDefinition,
  type DriverFeatures,
  type Extent,
  type OpenContext,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  type RequestFlags,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from '../../block-driver.js';
import { type ChainExtent, chainStatus } from '../../block-status.js';
import type { ChildEdge } from '../../edge.js';
import { isBelow } from '../../graph.js';
import type { BlockNode } from '../../node.js';
import {
  PERM_CONSISTENT_READ,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  type Permissions,
} from '../../permissions.js';
import { describeChild } from '../pass-through.js';
import { attemptAll, errorsOf, holding, type Outcome } from './attempts.js';
import { tooManyFailed } from './failure.js';
import { MissedWrites } from './missed-writes.js';
import { parseQuorumOptions, type QuorumOptions } from './options.js';
import { QuorumReader } from './reader.js';

/** Key of the list of copies in the options, and start of the edges' names. */
const LIST_KEY = 'children';
const ROLE: ChildRole = 'copy';
/** Longest request, bytes: a read takes that much memory for each copy. */
const TRANSFER_MAX = 4 * MIB;

export const quorumDefinition: DriverDefinition = {
  name: 'quorum',
  kind: 'format',
  children: [{ key: LIST_KEY, role: ROLE, required: true, list: true }],
  checkOptions: (given) => {
    parseQuorumOptions(given, (given[LIST_KEY] as readonly unknown[]).length);
  },
  open: (options, context) => {
    const { length } = Object.keys(context.children);
    return new QuorumDriver(parseQuorumOptions(options, length), context);
  },
};

class QuorumDriver implements BlockDriver {
  readonly name = 'quorum';
  readonly size: number;
  readonly flushesChildren = true;
  readonly features: DriverFeatures;
  readonly childList: ChildList;
  readonly #options: QuorumOptions;
  readonly #reports: CopyReports;
  readonly #copies: ChildEdge[];
  readonly #missed: MissedWrites;
  readonly #reader: QuorumReader;
  /**
   * Writes hold their range, readers that compare share it: else copies would get overlapping writes
   * in different orders, and a write that has reached only some of them would look like damage.
   */
  readonly #lock = new RangeLock();

  constructor(options: QuorumOptions, context: OpenContext) {
    this.#options = options;
    this.#reports = context.copyReports;
    this.#copies = Object.values(context.children);
    this.size = commonSize(this.#copies);
    this.features = featuresOf(this.#copies);
    this.#missed = new MissedWrites(this.size);
    this.#reader = new QuorumReader({
      ...{ options, reports: this.#reports, copies: this.#copies },
      ...{ missed: this.#missed, lock: this.#lock },
    });
    this.childList = this.#makeChildList();
  }

  /** Each copy's node aligns and splits for itself. */
  get limits(): BlockLimits {
    const all = this.#copies.map((copy) => copy.limits);
    const largest = (key: keyof BlockLimits): number => Math.max(...all.map((one) => one[key]));
    return {
      ...DEFAULT_LIMITS,
      memoryAlignment: largest('memoryAlignment'),
      maxTransfer: TRANSFER_MAX,
      optimalTransfer: largest('optimalTransfer'),
      writeZeroesAlignment: largest('writeZeroesAlignment'),
      discardAlignment: largest('writeZeroesAlignment'),
    };
  }

  get filename(): string {
    const children = this.#copies.map((copy) => describeChild(copy));
    return `json:${JSON.stringify({ children, driver: this.name, ...this.#options.given })}`;
  }

  /** Writers besides us would make the copies differ. */
  childPermissions(_role: ChildRole, { taken, shared }: Permissions): Permissions {
    return {
      taken: taken | (this.#options.rewriteCorrupted ? PERM_WRITE : 0),
      shared: shared & (PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED),
    };
  }

  /** Flags are not passed on: a copy that need not fill the buffer could not be compared. */
  read(offset: number, buffer: Buffer): MaybePromise<void> {
    return this.#reader.read(offset, buffer);
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return this.#change(offset, buffer.byteLength, (copy) => copy.write(offset, buffer, flags));
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    if ((flags & REQ_NO_FALLBACK) !== 0 && !this.#canZero) {
      throw new BlockError('DF_NOT_SUPPORTED', 'quorum: not all copies can zero quickly');
    }
    return this.#change(offset, length, (copy) => zero(copy, { offset, length, flags }));
  }

  /** As zeroes that need no storage: what is merely discarded reads differently in each copy. */
  discard(offset: number, length: number): MaybePromise<void> {
    if (!this.#canZero) {
      throw new BlockError('DF_NOT_SUPPORTED', 'quorum: not all copies can zero quickly');
    }
    const flags = REQ_MAY_UNMAP;
    return this.#change(offset, length, (copy) => zero(copy, { offset, length, flags }));
  }

  flush(): MaybePromise<void> {
    const outcomes = attemptAll(this.#copies, (copy) => copy.flush());
    return chain(outcomes, (ended) => {
      const range = { offset: 0, length: 0 };
      this.#reportErrors({ operation: 'flush', ...range }, ended);
      this.#checkEnough('flush', range, ended);
      // Which of its earlier writes the copy has lost is not known.
      for (const copy of this.#failedIn(ended)) this.#missed.add(copy, 0, this.size);
    });
  }

  /** Zero where all copies say so. */
  blockStatus(offset: number, length: number): MaybePromise<Extent> {
    const outcomes = attemptAll(this.#copies, (copy) => chainStatus(copy.node, offset, length));
    return chain(outcomes, (ended) => {
      this.#reportErrors({ operation: 'read', offset, length }, ended);
      return commonExtent(ended, length);
    });
  }

  /**
   * A node that has nothing to do with the one before comes from a mirror of this quorum, and lacks
   * nothing. In the place of a filter it comes from a mirror of the copy, with all that the copy lacks.
   */
  childMoved(edge: ChildEdge, from: BlockNode): void {
    if (from.kind === 'filter') return;
    if (isBelow(from, edge.node) || isBelow(edge.node, from)) return;
    this.#missed.forget(edge);
  }

  /** What is read here is what the copies ought to have. */
  maySwap(edge: ChildEdge): boolean {
    return this.#copies.includes(edge);
  }

  /** The copies are nodes of their own. */
  close(): void {}

  get #canZero(): boolean {
    return this.#copies.every((copy) => copy.node.driver.features.writeZeroes);
  }

  #change(
    offset: number,
    length: number,
    request: (copy: ChildEdge) => MaybePromise<void>,
  ): MaybePromise<void> {
    return holding(this.#lock.acquire(offset, length), () =>
      chain(attemptAll(this.#copies, request), (outcomes) => {
        const range = { offset, length };
        this.#reportErrors({ operation: 'write', ...range }, outcomes);
        this.#checkEnough('write', range, outcomes);
        for (const [index, copy] of this.#copies.entries()) {
          if (outcomes[index]?.failed === true) this.#missed.add(copy, offset, length);
          else this.#missed.remove(copy, offset, length);
        }
      }),
    );
  }

  #reportErrors(report: CopyReport, outcomes: readonly Outcome<unknown>[]): void {
    for (const [index, copy] of this.#copies.entries()) {
      const outcome = outcomes[index];
      if (outcome?.failed === true) this.#reports.bad(copy, { ...report, error: outcome.error });
    }
  }

  /** @throws BlockError of the kind that most copies report, when fewer than enough succeeded */
  #checkEnough(
    op: 'write' | 'flush',
    range: { readonly offset: number; readonly length: number },
    outcomes: readonly Outcome<unknown>[],
  ): void {
    const errors = errorsOf(outcomes);
    if (outcomes.length - errors.length >= this.#options.threshold) return;
    if (op === 'write') this.#reports.failed(range);
    throw tooManyFailed(op, range, errors, outcomes.length);
  }

  #failedIn(outcomes: readonly Outcome<unknown>[]): ChildEdge[] {
    return this.#copies.filter((_copy, index) => outcomes[index]?.failed === true);
  }

  #makeChildList(): ChildList {
    // The last number is given again when its child has gone, as QEMU does.
    let next = this.#copies.length;
    return {
      next: (node) => {
        this.#checkNewcomer(node);
        return { key: `${LIST_KEY}.${next}`, role: ROLE };
      },
      added: (edge) => {
        next++;
        this.#copies.push(edge);
      },
      checkRemove: () => {
        const { threshold } = this.#options;
        if (this.#copies.length > threshold) return;
        throw new BlockError(
          'DF_INVALID',
          `The number of children cannot be lower than the vote threshold ${threshold}`,
        );
      },
      removed: (edge) => {
        if (edge.name === `${LIST_KEY}.${next - 1}`) next--;
        this.#copies.splice(this.#copies.indexOf(edge), 1);
        this.#missed.forget(edge);
      },
    };
  }

  #checkNewcomer(node: BlockNode): void {
    if (this.#options.blkverify) {
      throw new BlockError('DF_INVALID', 'Cannot add a child to a quorum in blkverify mode');
    }
    if (this.#copies.length >= QUORUM_CHILDREN_MAX) {
      throw new BlockError('DF_INVALID', 'Too many children');
    }
    if (node.size === this.size) return;
    throw new BlockError(
      'DF_INVALID',
      `Node '${node.name}' has ${node.size} bytes, the copies of the quorum ${this.size}`,
    );
  }
}

/** @throws BlockError DF_INVALID when copies differ in size */
function commonSize(copies: readonly ChildEdge[]): number {
  const [first, ...others] = copies;
  if (first === undefined) throw new Error('a quorum without copies');
  const other = others.find(({ size }) => size !== first.size);
  if (other === undefined) return first.size;
  throw new BlockError(
    'DF_INVALID',
    'Could not refresh total sector count: ' +
      `node '${first.node.name}' has ${first.size} bytes, node '${other.node.name}' ${other.size}`,
  );
}

/** Each copy's node makes up for what its driver lacks. */
function featuresOf(copies: readonly ChildEdge[]): DriverFeatures {
  return {
    fua: true,
    writeZeroes: true,
    discard: true,
    backing: false,
    get multiConn() {
      return copies.every((copy) => copy.node.driver.features.multiConn);
    },
  };
}

interface ZeroRequest {
  readonly offset: number;
  readonly length: number;
  readonly flags: RequestFlags;
}

/** A copy that can't be quick must follow slowly all the same, or it would differ from the others. */
function zero(copy: ChildEdge, { offset, length, flags }: ZeroRequest): MaybePromise<void> {
  const slowly = (error: unknown): MaybePromise<void> => {
    const unsupported = error instanceof BlockError && error.code === 'DF_NOT_SUPPORTED';
    if (!unsupported || (flags & REQ_NO_FALLBACK) === 0) throw error;
    return copy.writeZeroes(offset, length, flags & ~REQ_NO_FALLBACK);
  };
  try {
    return copy.writeZeroes(offset, length, flags)?.catch(slowly);
  } catch (error) {
    return slowly(error);
  }
}

/** The shortest run that all call zero; else the longest that one of them calls data. */
function commonExtent(outcomes: readonly Outcome<ChainExtent>[], length: number): Extent {
  let zero = length;
  let data = 0;
  for (const outcome of outcomes) {
    if (outcome.failed) return { length, flags: STATUS_DATA | STATUS_ALLOCATED };
    const { value } = outcome;
    if ((value.flags & STATUS_ZERO) !== 0) zero = Math.min(zero, value.length);
    else data = Math.max(data, value.length);
  }
  if (data > 0) return { length: data, flags: STATUS_DATA | STATUS_ALLOCATED };
  return { length: zero, flags: STATUS_ZERO | STATUS_ALLOCATED };
}
