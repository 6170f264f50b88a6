// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import {
  decodeLuksHeader,
  encodeLuksHeader,
  hasLuksMagic,
  LUKS_HEADER_SIZE,
  LUKS_SLOT_DISABLED,
  LUKS_SLOT_ENABLED,
  LUKS_STRIPES,
  type LuksHeader,
  type LuksKeySlot,
  luksHeaderProblem,
} from '../../../../protocol/luks/header.js';

const bytes = (length: number, start: number) =>
  Uint8Array.from({ length }, (_, index) => (start + index) & 0xff);

function slot(index: number, changes: Partial<LuksKeySlot> = {}): LuksKeySlot {
  return {
    state: index === 1 ? LUKS_SLOT_ENABLED : LUKS_SLOT_DISABLED,
    iterations: index === 1 ? 1000 : 0,
    salt: bytes(32, index),
    keyOffsetSector: 8 + index * 504,
    stripes: LUKS_STRIPES,
    ...changes,
  };
}

function header(changes: Partial<LuksHeader> = {}, slotChanges: Record<number, object> = {}) {
  return {
    version: 1,
    cipherName: 'aes',
    cipherMode: 'xts-plain64',
    hashSpec: 'sha256',
    payloadOffsetSector: 4040,
    keyBytes: 64,
    digest: bytes(20, 100),
    digestSalt: bytes(32, 50),
    digestIterations: 7,
    uuid: 'ea583ad7-3a15-4001-89fc-6bb9d0a6014f',
    slots: Array.from({ length: 8 }, (_, index) => slot(index, slotChanges[index])),
    ...changes,
  } satisfies LuksHeader;
}

describe('LUKS header', () => {
  it('comes back as it was encoded, each field at its place', () => {
    const encoded = encodeLuksHeader(header());
    expect(encoded.byteLength).toBe(LUKS_HEADER_SIZE);
    expect(hasLuksMagic(encoded)).toBe(true);
    expect(decodeLuksHeader(encoded)).toEqual(header());
    const view = Buffer.from(encoded);
    expect(view.toString('latin1', 168, 204)).toBe(header().uuid);
    expect(view.readUInt32BE(104)).toBe(4040);
    expect(view.readUInt32BE(208 + 48 + 40)).toBe(8 + 504);
  });

  it('has no problem when its values fit each other', () => {
    expect(luksHeaderProblem(header())).toBeUndefined();
  });

  it.each<[string, LuksHeader]>([
    ['LUKS version 2 is not supported', header({ version: 2 })],
    ['LUKS header cipher name is not NUL terminated', header({ cipherName: undefined })],
    ['LUKS header cipher mode is not NUL terminated', header({ cipherMode: undefined })],
    ['LUKS header hash spec is not NUL terminated', header({ hashSpec: undefined })],
    ['LUKS payload is overlapping with the header', header({ payloadOffsetSector: 7 })],
    ['LUKS key iteration count is zero', header({ digestIterations: 0 })],
    ['Keyslot 3 is corrupted (stripes 1 != 4000)', header({}, { 3: { stripes: 1 } })],
    ['Keyslot 0 state (active/disable) is corrupted', header({}, { 0: { state: 1 } })],
    ['Keyslot 1 iteration count is zero', header({}, { 1: { iterations: 0 } })],
    ['Keyslot 0 is overlapping with the LUKS header', header({}, { 0: { keyOffsetSector: 7 } })],
    [
      'Keyslot 7 is overlapping with the encrypted payload',
      header({}, { 7: { keyOffsetSector: 0xffff_ffff } }),
    ],
    ['Keyslot 0 is overlapping with the encrypted payload', header({ keyBytes: 0xffff_ffff })],
    [
      'Keyslots 2 and 5 are overlapping in the header',
      header({}, { 5: { keyOffsetSector: 8 + 2 * 504 + 503 } }),
    ],
  ])('%s', (problem, given) => {
    expect(luksHeaderProblem(given)).toBe(problem);
  });

  it('tells a name without an end from one that fills its field', () => {
    const encoded = encodeLuksHeader(header());
    encoded.fill(0x61, 8, 39);
    expect(decodeLuksHeader(encoded).cipherName).toBe('a'.repeat(31));
    encoded[39] = 0x61;
    expect(decodeLuksHeader(encoded).cipherName).toBeUndefined();
  });

  it('takes no name that does not fit, and no other number of slots', () => {
    expect(() => encodeLuksHeader(header({ cipherMode: 'x'.repeat(32) }))).toThrow('is too long');
    expect(() => encodeLuksHeader(header({ slots: [slot(0)] }))).toThrow('1 key slots, not 8');
  });

  it('is not read from fewer bytes than it has', () => {
    expect(() => decodeLuksHeader(new Uint8Array(591))).toThrow('LUKS header: 591 < 592');
  });
});
