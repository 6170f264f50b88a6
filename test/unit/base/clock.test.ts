// SPDX-License-Identifier: MIT
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { systemClock } from '../../../src/base/clock.js';

const NS_PER_MS = 1e6;

describe('systemClock', () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('never steps back', () => {
    const first = systemClock.nowNs();
    vi.advanceTimersByTime(5);
    expect(systemClock.nowNs() - first).toBeGreaterThanOrEqual(5 * NS_PER_MS);
  });

  it('fires once, not before its time', () => {
    const fire = vi.fn();
    systemClock.startTimer(2.5 * NS_PER_MS, fire);
    vi.advanceTimersByTime(2);
    expect(fire).not.toHaveBeenCalled();
    vi.advanceTimersByTime(1000);
    expect(fire).toHaveBeenCalledTimes(1);
  });

  it('fires after a delay that is longer than a timer of Node keeps', () => {
    const fire = vi.fn();
    const days = 60 * 24 * 3600 * 1000;
    systemClock.startTimer(days * NS_PER_MS, fire);
    vi.advanceTimersByTime(days - 1000);
    expect(fire).not.toHaveBeenCalled();
    vi.advanceTimersByTime(1001);
    expect(fire).toHaveBeenCalledTimes(1);
  });

  it('does not fire when it was called off', () => {
    const fire = vi.fn();
    systemClock.startTimer(NS_PER_MS, fire)();
    vi.advanceTimersByTime(1000);
    expect(fire).not.toHaveBeenCalled();
  });
});
