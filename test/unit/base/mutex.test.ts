// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { Mutex } from '../../../src/base/mutex.js';

it('runs one at a time, in order of arrival', async () => {
  const mutex = new Mutex();
  const told: string[] = [];
  let open = (): void => undefined;
  const first = mutex.run(async () => {
    told.push('first begins');
    await new Promise<void>((resolve) => {
      open = resolve;
    });
    told.push('first ends');
    return 1;
  });
  const second = mutex.run(() => {
    told.push('second');
    return 2;
  });
  const third = mutex.run(async () => {
    told.push('third');
    return 3;
  });
  await Promise.resolve();
  expect(told).toEqual(['first begins']);
  open();
  expect(await Promise.all([first, second, third])).toEqual([1, 2, 3]);
  expect(told).toEqual(['first begins', 'first ends', 'second', 'third']);
});

it('goes on after a failure, which is its caller’s alone', async () => {
  const mutex = new Mutex();
  const thrown = mutex.run(() => {
    throw new Error('at once');
  });
  const rejected = mutex.run(() => Promise.reject(new Error('later')));
  const last = mutex.run(() => 'done');
  await expect(thrown).rejects.toThrow('at once');
  await expect(rejected).rejects.toThrow('later');
  expect(await last).toBe('done');
});

it('is idle when nobody is at it or waits for it', async () => {
  const mutex = new Mutex();
  expect(mutex.idle).toBe(true);
  const first = mutex.run(async () => expect(mutex.idle).toBe(false));
  const second = mutex.run(() => expect(mutex.idle).toBe(false));
  expect(mutex.idle).toBe(false);
  await Promise.all([first, second]);
  await Promise.resolve();
  expect(mutex.idle).toBe(true);
});
