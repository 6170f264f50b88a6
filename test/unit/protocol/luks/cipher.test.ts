// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { luksNames, parseLuksCipher } from '../../../../protocol/luks/cipher.js';

const names = (cipherMode: string, keyBytes: number, cipherName = 'aes', hashSpec = 'sha256') => ({
  cipherName,
  cipherMode,
  hashSpec,
  keyBytes,
});

describe('names of LUKS ciphers', () => {
  it('mean a cipher by its mode and the length of its key', () => {
    expect(parseLuksCipher(names('xts-plain64', 64))).toEqual({
      cipher: { algorithm: 'aes-256', mode: 'xts', ivGenerator: 'plain64', hash: 'sha256' },
    });
    expect(parseLuksCipher(names('xts-plain64', 32))).toMatchObject({
      cipher: { algorithm: 'aes-128' },
    });
    expect(parseLuksCipher(names('cbc-essiv:sha256', 24))).toEqual({
      cipher: {
        algorithm: 'aes-192',
        mode: 'cbc',
        ivGenerator: 'essiv',
        ivHash: 'sha256',
        hash: 'sha256',
      },
    });
  });

  it('may have a hash after plain, which means nothing', () => {
    expect(parseLuksCipher(names('cbc-plain:sha1', 16))).toEqual({
      cipher: { algorithm: 'aes-128', mode: 'cbc', ivGenerator: 'plain', hash: 'sha256' },
    });
  });

  it('come back as they went in', () => {
    for (const given of [
      names('xts-plain64', 64),
      names('cbc-essiv:md5', 16),
      names('cbc-plain', 32),
    ]) {
      const parsed = parseLuksCipher(given);
      expect('cipher' in parsed && luksNames(parsed.cipher)).toEqual({
        cipherName: 'aes',
        cipherMode: given.cipherMode,
        hashSpec: 'sha256',
      });
    }
  });

  it.each([
    [names('xts', 64), "Unexpected cipher mode string format 'xts'"],
    [names('', 64), "Unexpected cipher mode string format ''"],
    [names('ctr-plain64', 32), "Cipher mode 'ctr' not supported"],
    [names('xts-random', 64), "IV generator 'random' not supported"],
    [names('cbc-essiv', 32), 'Missing IV generator hash specification'],
    [names('cbc-essiv:sha1', 32), 'No AES cipher with key size 20 available'],
    [names('cbc-essiv:toString', 32), "Hash algorithm 'toString' not supported"],
    [names('cbc-plain64', 64), "Algorithm 'aes' with key size 64 bytes not supported"],
    [names('xts-plain64', 33), "Algorithm 'aes' with key size 16 bytes not supported"],
    [names('xts-plain64', 0), "Algorithm 'aes' with key size 0 bytes not supported"],
    [
      names('xts-plain64', 64, 'serpent'),
      "Algorithm 'serpent' with key size 32 bytes not supported",
    ],
    [names('xts-plain64', 64, 'aes', 'whirlpool'), "Hash algorithm 'whirlpool' not supported"],
  ])('%j: %s', (given, problem) => {
    expect(parseLuksCipher(given)).toEqual({ problem });
  });
});
