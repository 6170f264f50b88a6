// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { SteppedWrites } from '../../../src/sys/write-steps.js';

const KIB = 1024;

/** A file whose calls each take so many milliseconds, and put what `taken` says, all by default. */
function fakeFile(callMs: number, taken: (length: number, nth: number) => number = (n) => n) {
  const calls: string[] = [];
  const bytes = Buffer.alloc(1024 * KIB);
  let now = 0;
  const writes = new SteppedWrites(
    (buffer, offset) => {
      const put = taken(buffer.byteLength, calls.length);
      calls.push(`${offset / KIB} ${buffer.byteLength / KIB}`);
      buffer.copy(bytes, offset, 0, Math.max(put, 0));
      now += callMs;
      return put;
    },
    () => now,
  );
  return { writes, calls, bytes };
}

it('writes as a whole while that is quick', () => {
  const { writes, calls } = fakeFile(0.3);
  for (let nth = 0; nth < 3; nth++)
    expect(writes.write(0, Buffer.alloc(256 * KIB))).toBe(256 * KIB);
  expect(calls).toEqual(['0 256', '0 256', '0 256']);
});

it('goes by aligned steps after a write that took long, and tries a whole one again later', () => {
  const { writes, calls, bytes } = fakeFile(0.5);
  const data = Buffer.from(Array.from({ length: 200 * KIB }, (_, at) => at % 251));
  for (let nth = 0; nth < 4; nth++) expect(writes.write(16 * KIB, data)).toBe(200 * KIB);
  const steps = ['16 48', '64 64', '128 64', '192 24'];
  expect(calls).toEqual(['16 200', ...steps, ...steps, '16 200']);
  expect(bytes.subarray(16 * KIB, 216 * KIB).equals(data)).toBe(true);
});

it('does not part what is one step long, however slow', () => {
  const { writes, calls } = fakeFile(5);
  for (let nth = 0; nth < 3; nth++) writes.write(0, Buffer.alloc(64 * KIB));
  expect(calls).toEqual(['0 64', '0 64', '0 64']);
});

it('tells how far it came when a step fails or is cut short, and of the failure when nothing was written', () => {
  const afterWhole = (results: readonly number[]) => {
    const { writes } = fakeFile(1, (length, nth) =>
      nth === 0 ? length : (results[nth - 1] ?? length),
    );
    writes.write(0, Buffer.alloc(256 * KIB));
    return writes.write(0, Buffer.alloc(256 * KIB));
  };
  expect(afterWhole([64 * KIB, -1])).toBe(64 * KIB);
  expect(afterWhole([64 * KIB, 10 * KIB])).toBe(74 * KIB);
  expect(afterWhole([0])).toBe(0);
  expect(afterWhole([-1])).toBe(-1);
});
