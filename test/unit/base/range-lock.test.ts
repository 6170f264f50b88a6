// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { isPromise } from '../../../src/base/maybe-promise.js';
import { RangeLock } from '../../../src/base/range-lock.js';

describe('RangeLock', () => {
  it('grants what overlaps nothing at once', () => {
    const lock = new RangeLock();
    const first = lock.acquire(0, 10);
    const second = lock.acquire(10, 10);
    expect(isPromise(first)).toBe(false);
    expect(isPromise(second)).toBe(false);
    expect(lock.count).toBe(2);
  });

  it('grants overlapping ranges in order of arrival', async () => {
    const lock = new RangeLock();
    const order: string[] = [];
    const first = await lock.acquire(0, 10);
    const second = Promise.resolve(lock.acquire(5, 10)).then((hold) => {
      order.push('second');
      return hold;
    });
    const third = Promise.resolve(lock.acquire(8, 1)).then((hold) => {
      order.push('third');
      return hold;
    });
    first.release();
    (await second).release();
    (await third).release();
    expect(order).toEqual(['second', 'third']);
    expect(lock.count).toBe(0);
  });

  it('lets shared holders overlap each other but not an exclusive one', async () => {
    const lock = new RangeLock();
    const a = await lock.acquire(0, 10, { shared: true });
    const b = lock.acquire(0, 10, { shared: true });
    expect(isPromise(b)).toBe(false);
    const exclusive = lock.acquire(5, 1);
    expect(isPromise(exclusive)).toBe(true);
    expect(lock.isHeld(5, 1)).toBe(true);
    a.release();
    (await b).release();
    (await exclusive).release();
    expect(lock.isHeld(5, 1)).toBe(false);
  });

  it('makes a later shared request wait behind a waiting exclusive one', async () => {
    const lock = new RangeLock();
    const first = await lock.acquire(0, 10, { shared: true });
    const exclusive = lock.acquire(0, 10);
    const late = lock.acquire(0, 10, { shared: true });
    expect(isPromise(late)).toBe(true);
    first.release();
    (await exclusive).release();
    (await late).release();
    expect(lock.count).toBe(0);
  });

  it('refuses a second release', async () => {
    const lock = new RangeLock();
    const hold = await lock.acquire(0, 1);
    hold.release();
    expect(() => hold.release()).toThrow('released twice');
  });

  it('takes nothing when it can only try and something overlaps', async () => {
    const lock = new RangeLock();
    const hold = await lock.acquire(0, 4);
    expect(lock.tryAcquire(3, 1)).toBeUndefined();
    expect(lock.tryAcquire(4, 1)).toBeDefined();
    hold.release();
  });
});
