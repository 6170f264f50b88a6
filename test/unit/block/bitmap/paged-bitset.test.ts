// SPDX-License-Identifier: MIT
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { PagedBitset } from '../../../../src/block/bitmap/paged-bitset.js';

const SIZE = 3 * 32768 + 77;
const bit = fc.oneof(
  fc.nat({ max: SIZE - 1 }),
  fc.constantFrom(0, 31, 32, 32767, 32768, 65535, 65536, SIZE - 1),
);
const range = fc.tuple(bit, bit).map(([a, b]) => ({ first: Math.min(a, b), last: Math.max(a, b) }));
const step = fc.oneof(
  range.map((r) => ({ do: 'set' as const, ...r })),
  range.map((r) => ({ do: 'clear' as const, ...r })),
  bit.map((first) => ({ do: 'set' as const, first, last: first })),
);

/** The same set, as an array with a byte for each bit. */
function applyBoth(steps: readonly { do: 'set' | 'clear'; first: number; last: number }[]) {
  const bits = new PagedBitset(SIZE);
  const model = new Uint8Array(SIZE);
  for (const { do: what, first, last } of steps) {
    bits[what](first, last);
    model.fill(what === 'set' ? 1 : 0, first, last + 1);
  }
  return { bits, model };
}

it('counts, tests and finds as a plain array of flags does', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 12 }), bit, bit, (steps, from, other) => {
      const { bits, model } = applyBoth(steps);
      expect(bits.count).toBe(model.reduce((sum, flag) => sum + flag, 0));
      expect(bits.test(from)).toBe(model[from] === 1);
      const limit = Math.max(from, other);
      const within = model.subarray(from, limit);
      const set = within.indexOf(1);
      const clear = within.indexOf(0);
      expect(bits.nextSet(from, limit)).toBe(set < 0 ? -1 : from + set);
      expect(bits.nextClear(from, limit)).toBe(clear < 0 ? -1 : from + clear);
    }),
    { numRuns: 150 },
  );
});

it('joins two sets without changing the second, and a clone is independent', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 6 }), fc.array(step, { maxLength: 6 }), (a, b) => {
      const left = applyBoth(a);
      const right = applyBoth(b);
      const before = left.bits.clone();
      left.bits.union(right.bits);
      const joined = left.model.map((flag, at) => flag | (right.model[at] ?? 0));
      expect(Buffer.compare(flags(left.bits), joined)).toBe(0);
      expect(Buffer.compare(flags(right.bits), right.model)).toBe(0);
      expect(Buffer.compare(flags(before), left.model)).toBe(0);
      expect(left.bits.count).toBe(joined.reduce((sum, flag) => sum + flag, 0));
    }),
    { numRuns: 40 },
  );
});

it('comes back from its bytes as it was', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 8 }), fc.integer({ min: 1, max: 700 }), (steps, n) => {
      const { bits } = applyBoth(steps);
      const bytes = Buffer.alloc(Math.ceil(SIZE / 64) * 8);
      bits.copyBits(bytes, 0);
      const back = new PagedBitset(SIZE);
      for (let at = 0; at < bytes.byteLength; at += n * 8) {
        back.loadBits(bytes.subarray(at, at + n * 8), at * 8);
      }
      expect(back.count).toBe(bits.count);
      expect(Buffer.compare(flags(back), flags(bits))).toBe(0);
    }),
    { numRuns: 60 },
  );
});

it('forgets the bits that a smaller size cuts off', () => {
  const bits = new PagedBitset(100_000);
  bits.set(0, 99_999);
  bits.resize(40_000);
  expect(bits.count).toBe(40_000);
  bits.resize(100_000);
  expect(bits.count).toBe(40_000);
  expect(bits.nextSet(40_000, 100_000)).toBe(-1);
  expect(bits.nextClear(0, 100_000)).toBe(40_000);
});

it('takes no bits past the end from bytes', () => {
  const bits = new PagedBitset(70);
  bits.loadBits(Buffer.alloc(16, 0xff), 0);
  expect(bits.count).toBe(70);
});

it('finds single bits in a set of 2^44 bits', () => {
  const bits = new PagedBitset(2 ** 44);
  bits.set(2 ** 43 + 5, 2 ** 43 + 5);
  expect(bits.nextSet(0, 2 ** 44)).toBe(2 ** 43 + 5);
  expect(bits.nextClear(2 ** 43 + 5, 2 ** 44)).toBe(2 ** 43 + 6);
  bits.clear(0, 2 ** 44 - 1);
  expect(bits.nextSet(0, 2 ** 44)).toBe(-1);
});

function flags(bits: PagedBitset): Uint8Array {
  const all = new Uint8Array(bits.size);
  for (let at = bits.nextSet(0, bits.size); at >= 0; at = bits.nextSet(at + 1, bits.size)) {
    all[at] = 1;
  }
  return all;
}
