// SPDX-License-Identifier: MIT
/** Encryption of images: what exists here of QEMU's kinds. @see QEMU's qapi/crypto.json */
import { array, bool, enumeration, int, optional, required, str, struct, union } from './define.js';

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

export const QCryptoBlockOptionsLUKS = struct('QCryptoBlockOptionsLUKS', {
  doc: 'What every use of an encrypted disk needs.',
  members: {
    'key-secret': optional(str, 'id of the secret object that has the passphrase; needed'),
  },
});

export const QCryptoBlockOptionsQCow = struct('QCryptoBlockOptionsQCow', {
  doc: 'What every use of a disk needs that is encrypted as very old images are.',
  members: {
    'key-secret': optional(str, 'id of the secret object that has the passphrase; needed'),
  },
});

export const QCryptoBlockCreateOptionsLUKS = struct('QCryptoBlockCreateOptionsLUKS', {
  doc: 'How a disk is to be encrypted.',
  base: QCryptoBlockOptionsLUKS,
  members: {
    'cipher-alg': optional(QCryptoCipherAlgorithm, 'the cipher; aes-192 not with cbc', {
      default: 'aes-256',
    }),
    'cipher-mode': optional(QCryptoCipherMode, 'its mode', { default: 'xts' }),
    'ivgen-alg': optional(QCryptoIVGenAlgorithm, 'where initialization vectors come from', {
      default: 'plain64',
    }),
    'ivgen-hash-alg': optional(QCryptoHashAlgorithm, 'the hash for them, with essiv', {
      default: 'sha256',
    }),
    'hash-alg': optional(QCryptoHashAlgorithm, 'the hash for the derivation of keys', {
      default: 'sha256',
    }),
    'iter-time': optional(int, 'how long unlocking is to take on this machine, milliseconds', {
      default: '2000',
    }),
  },
});

export const QCryptoBlockFormat = enumeration('QCryptoBlockFormat', {
  doc: 'Kinds of encryption.',
  values: {
    qcow: 'that of very old images, called aes elsewhere: the passphrase itself is the key',
    luks: 'LUKS',
  },
});

export const QCryptoBlockCreateOptions = union('QCryptoBlockCreateOptions', {
  doc: 'How the data of an image is to be encrypted.',
  members: { format: required(QCryptoBlockFormat, 'the kind of encryption') },
  discriminator: 'format',
  branches: { qcow: QCryptoBlockOptionsQCow, luks: QCryptoBlockCreateOptionsLUKS },
});
