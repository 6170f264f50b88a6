// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import type { ThrottleLimits } from '../../../../src/block/throttle/throttle-config.js';
import {
  type Direction,
  ThrottleGroup,
  type ThrottleMember,
} from '../../../../src/block/throttle/throttle-group.js';
import {
  getThrottleProperty,
  setThrottleProperty,
  ThrottleGroups,
} from '../../../../src/block/throttle/throttle-groups.js';
import { ManualClock } from './manual-clock.js';

const KIB = 1024;

function makeGroup(limits: ThrottleLimits): { group: ThrottleGroup; clock: ManualClock } {
  const clock = new ManualClock();
  return { group: new ThrottleGroup('g', limits, clock), clock };
}

/** Keeps `depth` requests of a length waiting at all times and counts what passes. */
function flood(member: ThrottleMember, direction: Direction, length: number, depth = 8) {
  const passed = { requests: 0, bytes: 0, stopped: false };
  const run = async (): Promise<void> => {
    while (!passed.stopped) {
      const turn = member.admit(direction, length);
      if (turn !== undefined) await turn;
      passed.requests++;
      passed.bytes += length;
    }
  };
  for (let at = 0; at < depth; at++) void run();
  return passed;
}

describe('a limit', () => {
  it('lets a request pass at once when nothing is limited', () => {
    const { group, clock } = makeGroup({});
    expect(group.join().admit('read', 1e12)).toBeUndefined();
    expect(clock.timers).toBe(0);
  });

  it('lets a tenth of a second pass at once and then keeps to the rate', async () => {
    const { group, clock } = makeGroup({ 'bps-total': 100 * KIB });
    const passed = flood(group.join(), 'write', KIB);
    await clock.advance(10);
    passed.stopped = true;
    expect(passed.bytes / KIB).toBeGreaterThanOrEqual(1000);
    expect(passed.bytes / KIB).toBeLessThanOrEqual(1000 + 10 + 2);
  });

  it('spreads requests evenly at low rates', async () => {
    const { group, clock } = makeGroup({ 'iops-total': 10 });
    const passed = flood(group.join(), 'read', 4096, 4);
    const seen: number[] = [];
    for (let second = 0; second < 5; second++) {
      await clock.advance(1);
      seen.push(passed.requests);
    }
    passed.stopped = true;
    const steps = seen.slice(1).map((count, at) => count - (seen[at] ?? 0));
    expect(steps).toEqual([10, 10, 10, 10]);
  });

  it('of bytes and one of operations hold together', async () => {
    const { group, clock } = makeGroup({ 'bps-total': 1000 * KIB, 'iops-total': 50 });
    const small = flood(group.join(), 'read', 512);
    await clock.advance(10);
    small.stopped = true;
    expect(small.requests).toBeLessThanOrEqual(50 * 10.1 + 2);
    expect(small.requests).toBeGreaterThanOrEqual(500);
  });

  it('for writes leaves reads alone', async () => {
    const { group, clock } = makeGroup({ 'iops-write': 1 });
    const member = group.join();
    expect(member.admit('write', 1)).toBeUndefined();
    const second = member.admit('write', 1);
    expect(second).toBeInstanceOf(Promise);
    for (let at = 0; at < 100; at++) expect(member.admit('read', 1)).toBeUndefined();
    await clock.advance(1);
    await second;
  });

  it('counts a long request as several when iops-size says so', async () => {
    const { group, clock } = makeGroup({ 'iops-total': 100, 'iops-size': 4096 });
    const passed = flood(group.join(), 'read', 16 * KIB);
    await clock.advance(10);
    passed.stopped = true;
    expect(passed.requests).toBeGreaterThanOrEqual(250);
    expect(passed.requests).toBeLessThanOrEqual(250 + 4);
  });

  it('allows a burst of max for max-length seconds', async () => {
    const { group, clock } = makeGroup({
      'iops-total': 100,
      'iops-total-max': 1000,
      'iops-total-max-length': 3,
    });
    const passed = flood(group.join(), 'read', 512, 32);
    await clock.advance(1);
    expect(passed.requests).toBeGreaterThan(950);
    expect(passed.requests).toBeLessThan(1150);
    await clock.advance(19);
    passed.stopped = true;
    // 3,000 in the burst, then 100 a second; what leaked meanwhile lengthens the burst.
    expect(passed.requests).toBeGreaterThan(4900);
    expect(passed.requests).toBeLessThan(5100);
  });

  it('lets pass what qemu-storage-daemon 7.2 lets pass with the same burst', async () => {
    const { group, clock } = makeGroup({
      'iops-total': 100,
      'iops-total-max': 300,
      'iops-total-max-length': 2,
    });
    const passed = flood(group.join(), 'read', 4096);
    // Measured there with fio, 8 deep, every two seconds.
    for (const measured of [607, 999, 1198, 1398]) {
      await clock.advance(2);
      expect(Math.abs(passed.requests - measured)).toBeLessThanOrEqual(measured / 20);
    }
    passed.stopped = true;
  });
});

describe('a group', () => {
  it('gives each of its members the same share', async () => {
    const { group, clock } = makeGroup({ 'iops-total': 300 });
    const floods = [1, 8, 32].map((depth) => flood(group.join(), 'read', 512, depth));
    await clock.advance(10);
    for (const passed of floods) passed.stopped = true;
    const counts = floods.map(({ requests }) => requests);
    expect(Math.max(...counts) - Math.min(...counts)).toBeLessThan(40);
    expect(counts.reduce((sum, count) => sum + count)).toBeLessThan(3040);
  });

  it('lets what a drained member holds back proceed at once', async () => {
    const { group, clock } = makeGroup({ 'iops-total': 1 });
    const member = group.join();
    member.admit('read', 1);
    const waiting = [member.admit('read', 1), member.admit('write', 1)];
    member.suspendLimits();
    await Promise.all(waiting);
    expect(member.admit('read', 1)).toBeUndefined();
    expect(clock.timers).toBe(0);
    member.resumeLimits();
    expect(member.admit('read', 1)).toBeInstanceOf(Promise);
    member.leave();
  });

  it('has no timer left when its members have left', async () => {
    const { group, clock } = makeGroup({ 'bps-read': 1 });
    const member = group.join();
    member.admit('read', 100);
    const waiting = member.admit('read', 100);
    expect(clock.timers).toBe(1);
    member.leave();
    await waiting;
    expect(clock.timers).toBe(0);
    expect(group.memberCount).toBe(0);
  });

  it('applies changed limits to requests that wait already', async () => {
    const { group } = makeGroup({ 'bps-total': 1 });
    const member = group.join();
    member.admit('read', 1e6);
    const waiting = member.admit('read', 1e6);
    expect(waiting).toBeInstanceOf(Promise);
    group.setLimits({ 'bps-total': 0 });
    await waiting;
  });

  it('keeps the order of requests of one direction', async () => {
    const { group, clock } = makeGroup({ 'iops-total': 10 });
    const member = group.join();
    const order: number[] = [];
    for (let at = 0; at < 20; at++) void member.admit('read', 1)?.then(() => order.push(at));
    await clock.advance(3);
    expect(order).toEqual([...order].sort((a, b) => a - b));
    expect(order.length).toBe(18);
  });
});

describe('limits that do not go together', () => {
  const together =
    'bps/iops/max total values and read/write values cannot be used at the same time';
  it.each<[ThrottleLimits, string]>([
    [{ 'bps-total': 1, 'bps-read': 1 }, together],
    [{ 'iops-total': 1, 'iops-write': 1 }, together],
    [{ 'iops-size': 4096 }, 'iops size requires an iops value to be set'],
    [{ 'bps-total': 1e15 + 2 }, 'bps/iops/max values must be within [0, 1000000000000000]'],
    [{ 'bps-total': -5 }, 'bps/iops/max values must be within [0, 1000000000000000]'],
    [{ 'bps-total': 1, 'bps-total-max-length': 0 }, 'the burst length cannot be 0'],
    [{ 'bps-total': 1, 'bps-total-max-length': 2 }, 'burst length set without burst rate'],
    [
      { 'bps-total': 1, 'bps-total-max': 1e12, 'bps-total-max-length': 1e6 },
      'burst length too high for this burst rate',
    ],
    [{ 'iops-read-max': 5 }, 'bps_max/iops_max require corresponding bps/iops values'],
    [{ 'iops-read': 6, 'iops-read-max': 5 }, 'bps_max/iops_max cannot be lower than bps/iops'],
    [
      { 'bps-read-max-length': 2 ** 32 },
      'bps-read-max-length value must be in the range [0, 4294967295]',
    ],
  ])('%j are refused', (limits, message) => {
    const { group } = makeGroup({ 'iops-size': 0 });
    const before = group.limits;
    expect(() => group.setLimits(limits)).toThrow(message);
    expect(group.limits).toBe(before);
  });
});

describe('the throttle-group objects', () => {
  it('take limits as a whole and one by one, and show both ways', () => {
    const groups = new ThrottleGroups(new ManualClock());
    const group = groups.add('g0', { 'x-bps-total': 1000, limits: { 'iops-read': 5 } });
    expect(getThrottleProperty(group, 'x-bps-total')).toBe(1000);
    expect(getThrottleProperty(group, 'limits')).toMatchObject({
      'bps-total': 1000,
      'iops-read': 5,
      'iops-read-max-length': 1,
      'iops-size': 0,
    });
    expect(getThrottleProperty(group, 'x-nope')).toBeUndefined();
    setThrottleProperty(group, 'limits', { 'bps-total': 7 });
    expect(group.limits['bps-total']).toBe(7);
    expect(() => setThrottleProperty(group, 'x-bps-total', {})).toThrow(
      'Property cannot be set after initialization',
    );
  });

  it('have names of their own and stay while they are used', () => {
    const groups = new ThrottleGroups(new ManualClock());
    const member = groups.add('g0').join();
    expect(() => groups.add('g0')).toThrow('A group with this name already exists');
    expect(() => groups.add('g1', { 'x-bps-read': -1 })).toThrow(
      'Property values cannot be negative',
    );
    expect(groups.find('g1')).toBeUndefined();
    expect(() => groups.remove('g0')).toThrow("object 'g0' is in use, can not be deleted");
    member.leave();
    groups.remove('g0');
    expect(groups.find('g0')).toBeUndefined();
  });
});
