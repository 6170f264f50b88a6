// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { ProgressMeter } from '../../../src/job/progress-meter.js';

it('tells the rate of the last seconds, not of all the time', () => {
  let now = 0;
  const meter = new ProgressMeter(() => now);
  expect(meter.rate(0)).toBe(0);
  let done = 0;
  const go = (until: number, step: number): void => {
    for (; now < until; now += 10) {
      done += step;
      meter.note(done);
    }
  };
  go(20_000, 1000); // 100,000 a second
  expect(meter.rate(done)).toBeGreaterThan(99_000);
  expect(meter.rate(done)).toBeLessThan(101_000);
  go(30_000, 10); // 1,000 a second
  expect(meter.rate(done)).toBeGreaterThan(990);
  expect(meter.rate(done)).toBeLessThan(1_100);
});

it('falls to nothing when nothing happens', () => {
  let now = 0;
  const meter = new ProgressMeter(() => now);
  now = 1000;
  meter.note(5_000_000);
  expect(meter.rate(5_000_000)).toBe(5_000_000);
  now = 60_000;
  expect(meter.rate(5_000_000)).toBe(0);
});
