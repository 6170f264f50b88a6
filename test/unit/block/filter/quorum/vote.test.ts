// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../../../src/base/errors.js';
import { commonError, countVotes, winnerOf } from '../../../../../src/block/filter/quorum/vote.js';

/** 'a' is a trusted copy's content, '?a' that of one that has missed a write. */
const versions = (...contents: string[]) =>
  countVotes(
    contents.map((text, voter) => ({
      ...{ voter, content: Buffer.from(text.replace('?', '')), trusted: !text.startsWith('?') },
    })),
  );

const winner = (threshold: number, ...contents: string[]) =>
  winnerOf(versions(...contents), threshold)?.content.toString();

describe('the winner', () => {
  it('is what most copies have', () => {
    expect(winner(2, 'b', 'a', 'a')).toBe('a');
    expect(winner(2, 'a', 'b', 'a', 'b', 'b')).toBe('b');
  });

  it('needs as many votes as the threshold says', () => {
    expect(winner(2, 'a', 'b', 'c')).toBeUndefined();
    expect(winner(3, 'a', 'a', 'b')).toBeUndefined();
  });

  it('is the one that appeared last among equals', () => {
    expect(winner(1, 'a', 'b')).toBe('b');
    expect(winner(2, 'b', 'a', 'a', 'b')).toBe('a');
  });

  it('is never what only copies that missed a write have', () => {
    expect(winner(1, '?a', '?a', 'b')).toBe('b');
    expect(winner(1, '?a', '?a')).toBeUndefined();
    expect(winner(2, '?a', '?a', 'b')).toBeUndefined();
  });

  it('counts copies that missed a write but have the same content', () => {
    expect(winner(2, '?a', 'a', 'b')).toBe('a');
  });
});

describe('the common error', () => {
  const error = (errno: string) => new BlockError('DF_IO', errno, { errno });

  it('is the one that most copies report', () => {
    const full = error('ENOSPC');
    expect(commonError([error('EIO'), full, error('ENOSPC')])).toBe(full);
  });

  it('tells errors without an errno apart by their code', () => {
    const range = new BlockError('DF_OUT_OF_RANGE', 'past the end');
    expect(commonError([error('EIO'), range, range])).toBe(range);
  });
});
