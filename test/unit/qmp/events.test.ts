// SPDX-License-Identifier: MIT
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { EventHub, type QmpEvent } from '../../../src/qmp/events.js';
import { NOTE, RARE } from './qmp-peer.js';

let hub: EventHub;
let seen: QmpEvent[];
beforeEach(() => {
  vi.useFakeTimers();
  seen = [];
  hub = new EventHub(() => 1_700_000_000_123_456);
  hub.subscribe((event) => seen.push(event));
});
afterEach(() => {
  hub.close();
  vi.useRealTimers();
});

test('an event has its time in seconds and microseconds', () => {
  hub.emit(NOTE, { text: 'a' });
  expect(seen).toEqual([
    {
      timestamp: { seconds: 1_700_000_000, microseconds: 123_456 },
      event: 'NOTE',
      data: { text: 'a' },
    },
  ]);
});

test('of a limited event the first goes out at once, the last at the end of the interval', () => {
  for (let n = 0; n < 5; n++) hub.emit(RARE, { node: 'a', n });
  expect(seen.map((event) => event.data?.n)).toEqual([0]);
  vi.advanceTimersByTime(1000);
  expect(seen.map((event) => event.data?.n)).toEqual([0, 4]);
  hub.emit(RARE, { node: 'a', n: 9 });
  expect(seen).toHaveLength(2);
  vi.advanceTimersByTime(1000);
  expect(seen.map((event) => event.data?.n)).toEqual([0, 4, 9]);
});

test('events are limited separately by their key', () => {
  hub.emit(RARE, { node: 'a', n: 1 });
  hub.emit(RARE, { node: 'b', n: 2 });
  expect(seen.map((event) => event.data?.n)).toEqual([1, 2]);
});

test('who has gone is not told any more', () => {
  const others: QmpEvent[] = [];
  const leave = hub.subscribe((event) => others.push(event));
  leave();
  hub.emit(NOTE, { text: 'a' });
  expect(others).toEqual([]);
});
