// SPDX-License-Identifier: MIT
/** Options of a quorum node. @see qapi BlockdevOptionsQuorum */
import { BlockError } from '../../../base/errors.js';
import { QUORUM_CHILDREN_MAX } from '../../../base/limits.js';
import type { DriverOptions } from '../../block-driver.js';

export interface QuorumOptions {
  /** Copies that must succeed, and agree. */
  readonly threshold: number;
  readonly readPattern: 'quorum' | 'fifo';
  /** Two copies, and any difference fails the read. */
  readonly blkverify: boolean;
  /** What was outvoted is written anew. */
  readonly rewriteCorrupted: boolean;
  /** The driver's own options as they were given, for descriptions. */
  readonly given: Readonly<Record<string, unknown>>;
}

const OWN_OPTIONS = ['blkverify', 'read-pattern', 'rewrite-corrupted', 'vote-threshold'];

/**
 * @param childrenCount how many copies there are
 * @throws BlockError DF_INVALID, in QEMU's words where it refuses the same
 */
export function parseQuorumOptions(given: DriverOptions, childrenCount: number): QuorumOptions {
  if (childrenCount < 1) throw invalid('Number of provided children must be 1 or more');
  if (childrenCount > QUORUM_CHILDREN_MAX) throw invalid('Too many children');
  const options: QuorumOptions = {
    threshold: Number(given['vote-threshold']),
    readPattern: given['read-pattern'] === 'fifo' ? 'fifo' : 'quorum',
    blkverify: given.blkverify === true,
    rewriteCorrupted: given['rewrite-corrupted'] === true,
    given: Object.fromEntries(
      OWN_OPTIONS.filter((key) => given[key] !== undefined).map((key) => [key, given[key]]),
    ),
  };
  checkOptions(options, childrenCount);
  return options;
}

function checkOptions(options: QuorumOptions, childrenCount: number): void {
  const { threshold, blkverify, rewriteCorrupted } = options;
  if (threshold < 1) throw invalid("Parameter 'vote-threshold' expects a value >= 1");
  if (threshold > childrenCount) throw invalid('threshold may not exceed children count');
  if (blkverify && (childrenCount !== 2 || threshold !== 2)) {
    throw invalid(
      'blkverify=on can only be set if there are exactly two files and vote-threshold is 2',
    );
  }
  if (rewriteCorrupted && blkverify) {
    throw invalid('rewrite-corrupted=on cannot be used with blkverify=on');
  }
  if (options.readPattern !== 'fifo') return;
  // Nothing is compared then, so neither could ever act.
  if (blkverify) throw invalid('blkverify=on cannot be used with read-pattern=fifo');
  if (rewriteCorrupted) {
    throw invalid('rewrite-corrupted=on cannot be used with read-pattern=fifo');
  }
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
