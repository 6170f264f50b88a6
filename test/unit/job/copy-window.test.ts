// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { CopyWindow } from '../../../src/job/copy-window.js';

const MIB = 1024 * 1024;
const CHUNK = MIB / 4;

/**
 * Copies for a while over a link that carries `rate` bytes a millisecond and takes `delayMs` there
 * and back, with as much in flight as the window allows.
 * @returns the longest time that a copy took, milliseconds
 */
function copy(window: CopyWindow, link: { rate: number; delayMs: number; ms: number }): number {
  const flying: { began: number; done: number }[] = [];
  let now = 0;
  let free = 0;
  let longest = 0;
  while (now < link.ms) {
    while ((flying.length + 1) * CHUNK <= window.length) {
      free = Math.max(free, now) + CHUNK / link.rate;
      flying.push({ began: now, done: free + link.delayMs });
    }
    const first = flying.shift();
    if (first === undefined) throw new Error('the window takes no copy');
    now = first.done;
    longest = Math.max(longest, now - first.began);
    window.note(CHUNK, first.began, now);
  }
  return longest;
}

const make = (): CopyWindow => new CopyWindow({ initialLength: 4 * MIB, lengthMax: 64 * MIB });

describe('the window of a copy', () => {
  it('stays as it is where copies take no time', () => {
    const window = make();
    copy(window, { rate: 2 * MIB, delayMs: 0.1, ms: 2_000 });
    expect(window.length).toBe(4 * MIB);
  });

  it('grows over a link with delay until it fills the link, within some round trips', () => {
    const window = make();
    copy(window, { rate: MIB / 2, delayMs: 40, ms: 400 });
    expect(window.length).toBeGreaterThan(20 * MIB);
    expect(window.length).toBeLessThan(48 * MIB);
  });

  it('does not build up a queue on a narrow link', () => {
    const window = make();
    const longest = copy(window, { rate: MIB / 40, delayMs: 40, ms: 10_000 });
    expect(window.length).toBe(4 * MIB);
    expect(longest).toBeLessThan(220); // 4 MiB at its rate, and the delay
  });

  it('stops at its bound', () => {
    const window = make();
    copy(window, { rate: 100 * MIB, delayMs: 100, ms: 5_000 });
    expect(window.length).toBe(64 * MIB);
  });

  const makeFar = (roundTripMs: number): CopyWindow =>
    new CopyWindow({ initialLength: 4 * MIB, lengthMax: 64 * MIB, roundTripMs });

  it('begins with what fills a fast link where the way is known to be long', () => {
    expect(makeFar(4.9).length).toBe(4 * MIB);
    expect(makeFar(10).length).toBe(16 * MIB);
    expect(makeFar(40).length).toBe(64 * MIB);
    expect(makeFar(400).length).toBe(64 * MIB);
  });

  it('keeps that over a fast link, and gives it up after the first measurement of a narrow one', () => {
    const fast = makeFar(40);
    copy(fast, { rate: 2 * MIB, delayMs: 40, ms: 1_000 });
    expect(fast.length).toBe(64 * MIB);
    const narrow = makeFar(40);
    copy(narrow, { rate: MIB / 40, delayMs: 40, ms: 110 });
    expect(narrow.length).toBe(4 * MIB);
  });

  it('is small again when the way was not long after all', () => {
    const window = makeFar(20);
    copy(window, { rate: 2 * MIB, delayMs: 0.1, ms: 100 });
    expect(window.length).toBe(4 * MIB);
  });

  it('is no longer than its bound, however long the way', () => {
    const bounded = { initialLength: 4 * MIB, lengthMax: 4 * MIB, roundTripMs: 400 };
    expect(new CopyWindow(bounded).length).toBe(4 * MIB);
  });

  it('is fixed when its bound is where it begins', () => {
    const window = new CopyWindow({ initialLength: 4 * MIB, lengthMax: 4 * MIB });
    copy(window, { rate: 100 * MIB, delayMs: 100, ms: 1_000 });
    expect(window.length).toBe(4 * MIB);
  });
});
