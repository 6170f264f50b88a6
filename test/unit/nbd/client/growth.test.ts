// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { NBD_GROWTH_HOLD_MS } from '../../../../src/base/limits.js';
import { ConnectionGrowth } from '../../../../src/nbd/client/growth.js';

/** Runs for a while at a throughput that depends on the number of connections. */
function run(
  growth: ConnectionGrowth,
  from: number,
  options: { ms: number; waiting: number; rate: (connections: number) => number },
): number {
  let now = from;
  for (; now < from + options.ms; now += 10) {
    growth.note(options.rate(growth.wanted) * 10, options.waiting, now);
  }
  return now;
}

test('grows as long as that makes it faster', () => {
  const growth = new ConnectionGrowth(16, { eager: false });
  run(growth, 0, { ms: 10_000, waiting: 64, rate: (connections) => connections });
  expect(growth.wanted).toBe(16);
});

test('goes back to where it was when more is no faster, and stays there for a while', () => {
  const growth = new ConnectionGrowth(16, { eager: false });
  let now = run(growth, 0, { ms: 3000, waiting: 64, rate: (count) => Math.min(count, 4) });
  expect(growth.wanted).toBe(4);
  now = run(growth, now, { ms: NBD_GROWTH_HOLD_MS / 2, waiting: 64, rate: (count) => count });
  expect(growth.wanted).toBe(4);
  run(growth, now, { ms: NBD_GROWTH_HOLD_MS, waiting: 64, rate: (count) => count });
  expect(growth.wanted).toBe(16);
});

test('does not grow while one request follows the other', () => {
  const growth = new ConnectionGrowth(16, { eager: false });
  run(growth, 0, { ms: 10_000, waiting: 1, rate: (connections) => connections });
  expect(growth.wanted).toBe(1);
});

test('an interrupted trial is taken back', () => {
  const growth = new ConnectionGrowth(16, { eager: false });
  const now = run(growth, 0, { ms: 250, waiting: 64, rate: (connections) => connections });
  expect(growth.wanted).toBe(2);
  growth.note(1, 1, now + 60_000);
  expect(growth.wanted).toBe(1);
});

test('begins with some where the server is far away, and tries more from there', () => {
  const far = (max: number) => new ConnectionGrowth(max, { eager: false, roundTripMs: 5 });
  expect(far(16).wanted).toBe(4);
  expect(far(2).wanted).toBe(2);
  expect(new ConnectionGrowth(16, { eager: false, roundTripMs: 4.9 }).wanted).toBe(1);
  const growth = far(16);
  run(growth, 0, { ms: 10_000, waiting: 64, rate: (connections) => connections });
  expect(growth.wanted).toBe(16);
});

test('a number that was asked for is there from the start', () => {
  expect(new ConnectionGrowth(8, { eager: true }).wanted).toBe(8);
});
