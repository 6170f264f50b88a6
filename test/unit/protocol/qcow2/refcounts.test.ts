// SPDX-License-Identifier: MIT
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  getRefcount,
  refcountBytes,
  refcountMax,
  refcountsPerBlock,
  setRefcount,
} from '../../../../protocol/qcow2/refcounts.js';

const LENGTH = 512;
const block = (): DataView => new DataView(new ArrayBuffer(LENGTH));

describe('counts of clusters', () => {
  for (let order = 0; order <= 6; order++) {
    const width = 2 ** order;
    it(`of ${width} bits keep what is set, and do not touch their neighbours`, () => {
      const count = refcountsPerBlock(LENGTH, order);
      expect(count).toBe((LENGTH * 8) / width);
      const index = fc.integer({ min: 0, max: count - 1 });
      const value = fc.integer({ min: 0, max: refcountMax(order) });
      fc.assert(
        fc.property(fc.array(fc.tuple(index, value), { maxLength: 50 }), (changes) => {
          const view = block();
          const model = new Map<number, number>();
          for (const [at, to] of changes) {
            setRefcount(view, order, at, to);
            model.set(at, to);
          }
          for (let at = 0; at < count; at++) {
            expect(getRefcount(view, order, at)).toBe(model.get(at) ?? 0);
          }
        }),
        { numRuns: 20 },
      );
    });

    it(`of ${width} bits say which bytes they are in`, () => {
      const view = block();
      setRefcount(view, order, 5, 1);
      setRefcount(view, order, 9, 1);
      const [start, end] = refcountBytes(order, 5, 9);
      const bytes = new Uint8Array(view.buffer);
      expect(bytes.subarray(0, start).every((byte) => byte === 0)).toBe(true);
      expect(bytes.subarray(end).every((byte) => byte === 0)).toBe(true);
      expect(bytes.subarray(start, end).some((byte) => byte !== 0)).toBe(true);
    });
  }

  it('below a byte start with the least significant bits', () => {
    const view = block();
    setRefcount(view, 1, 0, 3);
    setRefcount(view, 1, 1, 1);
    expect(view.getUint8(0)).toBe(0b0111);
  });

  it('are big-endian', () => {
    const view = block();
    setRefcount(view, 4, 1, 0x1234);
    expect([view.getUint8(2), view.getUint8(3)]).toEqual([0x12, 0x34]);
    setRefcount(view, 6, 1, 2 ** 33 + 1);
    expect(view.getBigUint64(8)).toBe((1n << 33n) + 1n);
  });
});
