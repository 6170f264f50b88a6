// SPDX-License-Identifier: MIT
/** Votes: which content most copies have, which error most of them report. Pure. */
import { BlockError, errnoName } from '../../../base/errors.js';

/** What one copy reads. */
export interface Ballot {
  /** Index of the copy. */
  readonly voter: number;
  readonly content: Buffer;
  /** False: the copy has missed a write there. It may confirm what others read, no more. */
  readonly trusted: boolean;
}

/** One content, and the copies that have it. */
export interface Version {
  readonly content: Buffer;
  readonly voters: readonly number[];
  readonly trusted: boolean;
}

/** Groups ballots of equal length by content, in the order in which the contents appear. */
export function countVotes(ballots: readonly Ballot[]): Version[] {
  const versions: { content: Buffer; voters: number[]; trusted: boolean }[] = [];
  for (const { voter, content, trusted } of ballots) {
    const version = versions.find((other) => other.content.equals(content));
    if (version === undefined) {
      versions.push({ content, voters: [voter], trusted });
    } else {
      version.voters.push(voter);
      version.trusted ||= trusted;
    }
  }
  return versions;
}

/**
 * The version with most voters among those that a trusted copy has; of equals the one that appeared
 * last, as QEMU decides it. Undefined when no copy is trusted, or fewer than `threshold` agree.
 */
export function winnerOf(versions: readonly Version[], threshold: number): Version | undefined {
  let winner: Version | undefined;
  for (const version of versions) {
    const votes = version.voters.length;
    if (!version.trusted || votes < threshold) continue;
    if (winner === undefined || votes >= winner.voters.length) winner = version;
  }
  return winner;
}

/** The error that most copies report, by errno; of equals the one that appeared last. */
export function commonError(errors: readonly unknown[]): unknown {
  const groups = new Map<string, unknown[]>();
  for (const error of errors) {
    const name = errnoName(error) ?? (error instanceof BlockError ? error.code : 'DF_IO');
    groups.set(name, [...(groups.get(name) ?? []), error]);
  }
  let most: unknown[] = [];
  for (const group of groups.values()) if (group.length >= most.length) most = group;
  return most[0];
}
