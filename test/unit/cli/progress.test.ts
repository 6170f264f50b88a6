// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { formatBytes, ProgressBar } from '../../../src/cli/progress.js';

const MIB = 1024 * 1024;

/** A bar on a stream that keeps what it is told, at a time that the test sets. */
function bar(isTTY: boolean) {
  const written: string[] = [];
  const clock = { ms: 0 };
  const stream = { isTTY, write: (text: string) => written.push(text) };
  return { bar: new ProgressBar(stream, 'disk', () => clock.ms), written, clock };
}

describe('a progress bar', () => {
  it('draws one line on a terminal, with rate and time left', () => {
    const { bar: progress, written, clock } = bar(true);
    clock.ms = 2000;
    progress.show(50 * MIB, 200 * MIB);
    expect(written.join('')).toMatch(/^\rdisk █{8}░{22} 25% {2}25\.0 MiB\/s {2}6 s left/);
    progress.end();
    expect(written.at(-1)).toBe('\n');
  });

  it('leaves out of the rate what was done before it looked', () => {
    const { bar: progress, written, clock } = bar(true);
    progress.beginAt(100 * MIB);
    clock.ms = 2000;
    progress.show(100 * MIB, 200 * MIB);
    expect(written.join('')).not.toContain('/s');
    progress.show(150 * MIB, 200 * MIB);
    expect(written.join('')).toMatch(/75% {2}25\.0 MiB\/s {2}2 s left/);
  });

  it('does not guess the time left before anything has been done', () => {
    const { bar: progress, written } = bar(true);
    progress.show(0, 200 * MIB);
    expect(written.join('')).not.toContain('left');
  });

  it('never shows more than all of it', () => {
    const { bar: progress, written } = bar(true);
    progress.show(300 * MIB, 200 * MIB);
    expect(written.join('')).toContain('100%');
  });

  it('writes four lines at most where there is no terminal', () => {
    const { bar: progress, written, clock } = bar(false);
    for (let percent = 0; percent <= 100; percent++) {
      clock.ms += 10;
      progress.show(percent * MIB, 100 * MIB);
    }
    progress.end();
    expect(written.map((line) => line.slice(0, 9))).toEqual([
      'disk  25%',
      'disk  50%',
      'disk  75%',
      'disk 100%',
    ]);
  });
});

describe('sizes for people', () => {
  it('are in the largest unit that gives one or more, up to TiB', () => {
    expect([0, 1023, 1536, 3 * MIB, 2 ** 40, 2 ** 60].map(formatBytes)).toEqual([
      '0 B',
      '1023 B',
      '1.5 KiB',
      '3.0 MiB',
      '1.0 TiB',
      '1048576.0 TiB',
    ]);
  });
});
