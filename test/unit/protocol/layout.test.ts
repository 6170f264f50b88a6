// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { Struct } from '../../../protocol/layout.js';

const SAMPLE = new Struct('sample', 14, { short: 'u16', word: 'u32', long: 'u64' });
const BYTES = Buffer.from('0102 a0b0c0d0 fffefdfcfbfaf9f8'.replaceAll(' ', ''), 'hex');
const VALUE = { short: 0x0102, word: 0xa0b0c0d0, long: 0xfffefdfcfbfaf9f8n };

describe('Struct', () => {
  it('encodes fields big-endian, in table order, without padding', () => {
    expect(Buffer.from(SAMPLE.toBytes(VALUE))).toEqual(BYTES);
  });

  it('decodes what stands in the bytes', () => {
    expect(SAMPLE.decode(BYTES)).toEqual(VALUE);
  });

  it('refuses a value that does not fit its field', () => {
    expect(() => SAMPLE.toBytes({ ...VALUE, short: 0x10000 })).toThrow('sample.short: 65536');
    expect(() => SAMPLE.toBytes({ ...VALUE, long: 1n << 64n })).toThrow('sample.long');
    expect(() => SAMPLE.toBytes({ ...VALUE, word: -1 })).toThrow('sample.word: -1');
  });

  it('refuses a short buffer even when the memory behind it goes on', () => {
    const pool = Buffer.alloc(64);
    expect(() => SAMPLE.decode(pool.subarray(10, 23))).toThrow('sample: 13 < 14');
    expect(() => SAMPLE.encode(VALUE, pool.subarray(0, 13))).toThrow('sample: 13 < 14');
  });

  it('refuses a table that adds up to another size than the specification states', () => {
    expect(() => new Struct('wrong', 5, { word: 'u32' })).toThrow('4 bytes, not 5');
  });
});
