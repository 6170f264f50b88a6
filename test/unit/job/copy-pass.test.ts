// SPDX-License-Identifier: MIT
/** Copies that need no buffer: run by run, and what is left over. */
import { expect, test } from 'vitest';
import { BlockError } from '../../../src/base/errors.js';
import type { MaybePromise } from '../../../src/base/maybe-promise.js';
import { STATUS_DATA } from '../../../src/block/block-driver.js';
import type { FileRange, RangeUse } from '../../../src/block/file-range.js';
import type { CopySource, CopyTarget } from '../../../src/job/copy-loop.js';
import { CopyError, passRange } from '../../../src/job/copy-pass.js';

const file = { fd: -1, path: '/the/source', peek: () => -1, read: () => undefined };

/** Runs of these lengths, in a file; 0 ends them. */
function sourceOf(runs: readonly number[]): CopySource {
  return {
    read: () => undefined,
    blockStatus: (_offset, length) => ({ length, flags: STATUS_DATA, depth: 0 }),
    generation: 0,
    readRange: (offset: number, length: number, use: RangeUse): MaybePromise<number> => {
      let end = 0;
      for (const run of runs) {
        end += run;
        if (offset >= end) continue;
        return use({ file, offset, length: Math.min(length, end - offset) });
      }
      return 0;
    },
  };
}

function targetOf(writeFrom: (offset: number, range: FileRange) => MaybePromise<number>) {
  const target: CopyTarget = {
    write: () => undefined,
    writeZeroes: () => undefined,
    writeFrom,
  };
  return target;
}

const WHOLE = { offset: 0, length: 1000 };

test('the runs of a range are under way at the same time', async () => {
  const begun: number[] = [];
  const ends: (() => void)[] = [];
  const target = targetOf((offset, { length }) => {
    begun.push(offset);
    return new Promise((resolve) => ends.push(() => resolve(length)));
  });
  const pending = passRange({ source: sourceOf([100, 500, 400]), target }, WHOLE);
  expect(begun).toEqual([0, 100, 600]);
  for (const end of ends.reverse()) end();
  expect(await pending).toBeUndefined();
});

test.each([
  ['no run at all', [], [WHOLE]],
  ['runs at the beginning only', [100, 500], [{ offset: 600, length: 400 }]],
])('what is no part of a file is left over: %s', async (_name, runs, gaps) => {
  const target = targetOf((_offset, { length }) => Promise.resolve(length));
  expect(await passRange({ source: sourceOf(runs), target }, WHOLE)).toEqual(gaps);
});

test('what a target did not take of a run is left over', async () => {
  const target = targetOf((offset, { length }) => Promise.resolve(offset === 100 ? 7 : length));
  const gaps = await passRange({ source: sourceOf([100, 500, 400]), target }, WHOLE);
  expect(gaps).toEqual([{ offset: 107, length: 493 }]);
});

test('a target that takes a part at once is asked for the next one', () => {
  const asked: number[] = [];
  const target = targetOf((offset) => {
    asked.push(offset);
    return offset < 300 ? 150 : 0;
  });
  const gaps = passRange({ source: sourceOf([1000]), target }, WHOLE);
  expect(asked).toEqual([0, 150, 300]);
  expect(gaps).toEqual([{ offset: 300, length: 700 }]);
});

test('nothing is tried where one side can not', () => {
  const target = targetOf(() => {
    throw new Error('asked');
  });
  const { readRange, ...source } = sourceOf([1000]);
  expect(readRange).toBeDefined();
  expect(passRange({ source, target }, WHOLE)).toEqual([WHOLE]);
  const { writeFrom, ...plain } = target;
  expect(writeFrom).toBeDefined();
  expect(passRange({ source: sourceOf([1000]), target: plain }, WHOLE)).toEqual([WHOLE]);
});

test('it fails when nothing is under way any more, with the error of the first', async () => {
  let end = (): void => {};
  let ended = false;
  const target = targetOf((offset, { length }) => {
    if (offset > 0) throw new BlockError('DF_NO_SPACE', 'full');
    return new Promise((resolve) => {
      end = () => {
        ended = true;
        resolve(length);
      };
    });
  });
  const pending = Promise.resolve(passRange({ source: sourceOf([100, 900]), target }, WHOLE));
  const failed = pending.then(
    () => 'succeeded',
    (error: unknown) => ({ error, ended }),
  );
  for (let turns = 0; turns < 5; turns++) await new Promise((next) => setImmediate(next));
  end();
  expect(await failed).toMatchObject({ ended: true, error: { operation: 'write' } });
});

test.each([
  ['read', '/the/source', 'read'],
  ['read', '/the/target', 'write'],
  ['write', '/the/source', 'write'],
])('an error of a %s of %s is one of the %s', async (op, path, operation) => {
  const target = targetOf(() => Promise.reject(new BlockError('DF_IO', 'broken', { op, path })));
  const failed = await Promise.resolve(
    passRange({ source: sourceOf([1000]), target }, WHOLE),
  ).catch((error: unknown) => error);
  expect(failed).toBeInstanceOf(CopyError);
  expect(Reflect.get(Object(failed), 'operation')).toBe(operation);
});
