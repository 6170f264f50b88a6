// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { flagNamesOf, maskOf, namesOf, unknownBits } from '../../../protocol/bit-fields.js';

const FLAGS = { A: 1, B: 4, TOP: 0x8000_0000 } as const;

describe('names from tables', () => {
  it('names a value, or shows its number', () => {
    const name = namesOf({ NBD_CMD_READ: 0 }, 'NBD_CMD_');
    expect(name(0)).toBe('NBD_CMD_READ');
    expect(name(77)).toBe('NBD_CMD_?(77)');
  });

  it('joins the names of set flags and shows unknown bits in hex', () => {
    const names = flagNamesOf(FLAGS);
    expect(names(0)).toBe('0');
    expect(names(5)).toBe('A|B');
    expect(names(0x8000_0012)).toBe('TOP|0x12');
  });

  it('derives masks as unsigned numbers', () => {
    expect(maskOf(FLAGS)).toBe(0x8000_0005);
    expect(unknownBits(0xffff_ffff, FLAGS)).toBe(0x7fff_fffa);
  });
});
