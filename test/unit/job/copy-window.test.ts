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

  it('is fixed when its bound is where it begins', () => {
    const window = new CopyWindow({ initialLength: 4 * MIB, lengthMax: 4 * MIB });
    copy(window, { rate: 100 * MIB, delayMs: 100, ms: 1_000 });
    expect(window.length).toBe(4 * MIB);
  });
});
