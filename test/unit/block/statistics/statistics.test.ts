// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { LatencyHistogram } from '../../../../src/block/latency-histogram.js';
import { NodeStatistics } from '../../../../src/block/statistics.js';

function timed(): { stats: NodeStatistics; pass: (ms: number) => void } {
  let now = 1000;
  return {
    stats: new NodeStatistics(() => now),
    pass: (ms) => {
      now += ms;
    },
  };
}

it('counts operations, bytes and time by kind, and the end of the farthest write', () => {
  const { stats, pass } = timed();
  const first = stats.start();
  pass(2);
  stats.done('write', 4096, 512, first);
  const second = stats.start();
  pass(3);
  stats.done('write', 0, 512, second);
  expect(stats.write).toMatchObject({ operations: 2, bytes: 1024, failed: 0, totalNs: 5e6 });
  expect(stats.highestWriteEnd).toBe(4608);
  expect(stats.read).toMatchObject({ operations: 0, bytes: 0 });
});

it('counts a failed request and its time but not its bytes', () => {
  const { stats, pass } = timed();
  const started = stats.start();
  pass(1);
  stats.failed('read', 512, started);
  stats.invalid('read');
  expect(stats.read).toMatchObject({
    operations: 0,
    bytes: 0,
    failed: 1,
    invalid: 1,
    totalNs: 1e6,
  });
});

it('tells how long nothing has happened', () => {
  const { stats, pass } = timed();
  expect(stats.idleNs()).toBeUndefined();
  stats.done('flush', 0, 0, stats.start());
  pass(7);
  expect(stats.idleNs()).toBe(7e6);
});

it('puts a latency on a boundary into the bin above it', () => {
  const histogram = new LatencyHistogram([10, 50, 100]);
  for (const latency of [0, 9, 10, 49, 50, 99, 100, 5000]) histogram.count(latency);
  expect(histogram.bins).toEqual([2, 2, 2, 2]);
});

it.each([[[10, 10]], [[50, 10]], [[0, 10]]])('refuses the boundaries %j', (boundaries) => {
  expect(() => new LatencyHistogram(boundaries)).toThrow('is not above the one before it');
});

it('counts latencies from when a histogram is set until it is taken away', () => {
  const { stats, pass } = timed();
  stats.setHistogram('write', new LatencyHistogram([1e6]));
  const started = stats.start();
  pass(2);
  stats.done('write', 0, 1, started);
  stats.done('read', 0, 1, started);
  expect(stats.write.histogram?.bins).toEqual([0, 1]);
  stats.setHistogram('write', undefined);
  stats.done('write', 0, 1, started);
  expect(stats.write.histogram).toBeUndefined();
});
