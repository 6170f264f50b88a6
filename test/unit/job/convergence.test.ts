// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { Convergence } from '../../../src/job/convergence.js';

const SMALL = 100;

/** Feeds a sample each 500 ms: per step, bytes copied and the bytes that differ afterwards. */
function feed(steps: readonly (readonly [copied: number, remaining: number])[]) {
  let now = 0;
  let copied = 0;
  const convergence = new Convergence(SMALL, () => now);
  return steps.map(([more, remaining]) => {
    now += 500;
    copied += more;
    return convergence.sample(copied, remaining);
  });
}

const repeat = <T>(count: number, step: (index: number) => T): T[] =>
  Array.from({ length: count }, (_, index) => step(index));

describe('convergence', () => {
  it('says nothing before it has seen three seconds', () => {
    expect(feed(repeat(6, () => [10, 5000]))).toEqual(repeat(6, () => 'unknown'));
  });

  it('gives the rates, bytes a second, when what differs does not become less', () => {
    const found = feed(repeat(8, () => [50, 5000])).at(-1);
    expect(found).toEqual({ dirtyRate: 100, copyRate: 100, remaining: 5000 });
  });

  it('gives the rates when what differs becomes more', () => {
    const found = feed(repeat(8, (index) => [50, 5000 + 100 * index])).at(-1);
    expect(found).toEqual({ dirtyRate: 300, copyRate: 100, remaining: 5700 });
  });

  it('is content with a copy that gains', () => {
    expect(feed(repeat(8, (index) => [100, 5000 - 50 * index])).at(-1)).toBe('gaining');
  });

  it('is content with a copy that has caught up, however much is written', () => {
    expect(feed(repeat(8, () => [5000, SMALL])).at(-1)).toBe('gaining');
  });

  it('is content when nobody writes and nothing is copied', () => {
    expect(feed(repeat(8, () => [0, 5000])).at(-1)).toBe('gaining');
  });

  it('forgets what was before a reset', () => {
    let now = 0;
    const convergence = new Convergence(SMALL, () => now);
    for (; now < 5000; now += 500) convergence.sample(0, 5000 + now);
    convergence.reset();
    expect(convergence.sample(0, 20_000)).toBe('unknown');
  });
});
