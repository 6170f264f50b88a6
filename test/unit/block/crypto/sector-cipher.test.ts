// SPDX-License-Identifier: MIT
import { createCipheriv, createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import type { SectorCipherSpec } from '../../../../protocol/luks/cipher.js';
import { SectorCipher } from '../../../../src/block/crypto/sector-cipher.js';
import { expectSame, pattern } from '../../../suite/block-driver.suite.js';

const SECTOR = 512;

/** One cipher object for each sector, as OpenSSL has it. */
function reference(spec: SectorCipherSpec, key: Buffer, first: number, plain: Buffer): Buffer {
  const sectors = [];
  for (let at = 0; at < plain.byteLength; at += SECTOR) {
    const vector = Buffer.alloc(16);
    const sector = BigInt(first + at / SECTOR);
    vector.writeBigUInt64LE(spec.ivGenerator === 'plain' ? sector & 0xffff_ffffn : sector);
    if (spec.ivGenerator === 'essiv' && spec.ivHash !== undefined) {
      const digest = createHash(spec.ivHash).update(key).digest();
      const essiv = createCipheriv(`aes-${digest.byteLength * 8}-ecb`, digest, null);
      essiv.update(vector).copy(vector);
    }
    const cipher = createCipheriv(`${spec.algorithm}-${spec.mode}`, key, vector);
    cipher.setAutoPadding(false);
    sectors.push(cipher.update(plain.subarray(at, at + SECTOR)));
  }
  return Buffer.concat(sectors);
}

const SPECS: readonly (SectorCipherSpec & { bytes: number })[] = [
  { algorithm: 'aes-256', mode: 'xts', ivGenerator: 'plain64', bytes: 64 },
  { algorithm: 'aes-128', mode: 'xts', ivGenerator: 'plain', bytes: 32 },
  { algorithm: 'aes-256', mode: 'xts', ivGenerator: 'essiv', ivHash: 'sha256', bytes: 64 },
  { algorithm: 'aes-128', mode: 'cbc', ivGenerator: 'plain64', bytes: 16 },
  { algorithm: 'aes-192', mode: 'cbc', ivGenerator: 'plain', bytes: 24 },
  { algorithm: 'aes-256', mode: 'cbc', ivGenerator: 'essiv', ivHash: 'sha256', bytes: 32 },
  { algorithm: 'aes-128', mode: 'cbc', ivGenerator: 'essiv', ivHash: 'md5', bytes: 16 },
];

/** Sector numbers at and across 2^32, where plain starts again. */
const STARTS = [0, 1, 2 ** 32 - 3, 2 ** 44 + 12345];

describe.each(SPECS)('$algorithm $mode $ivGenerator', ({ bytes, ...spec }) => {
  const key = pattern(9, bytes);
  const cipher = new SectorCipher(spec, key);

  it.each(STARTS)('encrypts each sector as OpenSSL does, from sector %d', (first) => {
    // One slice and a part of the next, then less than a slice.
    for (const length of [33 * 1024, SECTOR, 7 * SECTOR, 64 * 1024]) {
      const plain = pattern(length, length);
      const sealed = Buffer.alloc(length);
      cipher.encrypt(first, plain, sealed);
      expectSame(sealed, reference(spec, key, first, plain));
      const back = Buffer.alloc(length);
      cipher.decrypt(first, sealed, back);
      expectSame(back, plain);
    }
  });

  it('works in place, and at odd addresses', () => {
    const memory = Buffer.alloc(2048 + 3);
    const plain = pattern(4, 2048);
    const place = memory.subarray(3);
    plain.copy(place);
    cipher.encrypt(77, place, place);
    expectSame(place, reference(spec, key, 77, plain));
    cipher.decrypt(77, place, place);
    expectSame(place, plain);
  });

  it('takes a last sector that is shorter', () => {
    const plain = pattern(5, 2 * SECTOR + 256);
    const sealed = Buffer.alloc(plain.byteLength);
    cipher.encrypt(3, plain, sealed);
    expectSame(sealed, reference(spec, key, 3, plain));
    cipher.decrypt(3, sealed, sealed);
    expectSame(sealed, plain);
  });
});

describe('a sector cipher', () => {
  const spec = { algorithm: 'aes-256', mode: 'xts', ivGenerator: 'plain64' } as const;

  it('has 192 bits too, which OpenSSL lacks with xts', () => {
    const cipher = new SectorCipher({ ...spec, algorithm: 'aes-192' }, pattern(1, 48));
    const plain = pattern(2, 4096);
    const sealed = Buffer.alloc(4096);
    cipher.encrypt(5, plain, sealed);
    expect(sealed.equals(plain)).toBe(false);
    cipher.decrypt(5, sealed, sealed);
    expectSame(sealed, plain);
  });

  it('refuses a key of another length', () => {
    expect(() => new SectorCipher(spec, Buffer.alloc(32))).toThrow('the key has 32 bytes, not 64');
  });

  it('refuses a hash that makes no key', () => {
    const essiv = { ...spec, ivGenerator: 'essiv', ivHash: 'sha512' } as const;
    expect(() => new SectorCipher(essiv, Buffer.alloc(64))).toThrow(
      'No AES cipher with key size 64 available',
    );
  });

  it('refuses parts of blocks', () => {
    const cipher = new SectorCipher(spec, Buffer.alloc(64));
    expect(() => cipher.encrypt(0, Buffer.alloc(500), Buffer.alloc(500))).toThrow(RangeError);
    expect(() => cipher.decrypt(0, Buffer.alloc(512), Buffer.alloc(1024))).toThrow(RangeError);
  });
});
