// SPDX-License-Identifier: MIT
/** Encryption of images: what exists here of QEMU's kinds. @see QEMU's qapi/crypto.json */
import { array, bool, enumeration, int, optional, required, str, struct } from './define.js';

export const QCryptoCipherAlgorithm = enumeration('QCryptoCipherAlgorithm', {
  doc: 'Ciphers.',
  values: {
    'aes-128': 'AES with a key of 128 bits',
    'aes-192': 'AES with a key of 192 bits',
    'aes-256': 'AES with a key of 256 bits',
  },
});

export const QCryptoCipherMode = enumeration('QCryptoCipherMode', {
  doc: 'How the blocks of a sector hang together.',
  values: { cbc: 'each on the one before', xts: 'not at all; each has a tweak (IEEE 1619)' },
});

export const QCryptoIVGenAlgorithm = enumeration('QCryptoIVGenAlgorithm', {
  doc: "Where a sector's initialization vector comes from.",
  values: {
    plain: 'the low 32 bits of its number',
    plain64: 'its number',
    essiv: 'its number, encrypted with a hash of the key',
  },
});

export const QCryptoHashAlgorithm = enumeration('QCryptoHashAlgorithm', {
  doc: 'Hashes.',
  values: {
    md5: 'MD5',
    sha1: 'SHA-1',
    sha224: 'SHA-224',
    sha256: 'SHA-256',
    sha384: 'SHA-384',
    sha512: 'SHA-512',
    ripemd160: 'RIPEMD-160',
  },
});

export const QCryptoBlockInfoLUKSSlot = struct('QCryptoBlockInfoLUKSSlot', {
  doc: 'A key slot.',
  members: {
    active: required(bool, 'a passphrase is in it'),
    iters: optional(int, 'iterations that its key takes'),
    stripes: optional(int, 'parts into which its key material is split'),
    'key-offset': required(int, 'where its key material is, bytes'),
  },
});

export const QCryptoBlockInfoLUKS = struct('QCryptoBlockInfoLUKS', {
  doc: 'How a disk is encrypted.',
  members: {
    'cipher-alg': required(QCryptoCipherAlgorithm, 'the cipher'),
    'cipher-mode': required(QCryptoCipherMode, 'its mode'),
    'ivgen-alg': required(QCryptoIVGenAlgorithm, 'where initialization vectors come from'),
    'ivgen-hash-alg': optional(QCryptoHashAlgorithm, 'the hash for them, with essiv'),
    'hash-alg': required(QCryptoHashAlgorithm, 'the hash for the derivation of keys'),
    'payload-offset': required(int, 'where the data starts, bytes'),
    'master-key-iters': required(int, 'iterations that the digest of the master key takes'),
    uuid: required(str, 'its UUID'),
    slots: required(array(QCryptoBlockInfoLUKSSlot), 'the key slots'),
  },
});
