// SPDX-License-Identifier: MIT
/**
 * How a disk is encrypted, in QEMU's terms and as the LUKS header spells it: "aes", "xts-plain64",
 * "cbc-essiv:sha256".
 * @see LUKS On-Disk Format Specification 1.2.1, appendix B; QEMU's qapi/crypto.json
 */

/** Ciphers, with the length of their key in bytes (xts takes two keys). */
export const CIPHER_KEY_BYTES = { 'aes-128': 16, 'aes-192': 24, 'aes-256': 32 } as const;
export type CipherAlgorithm = keyof typeof CIPHER_KEY_BYTES;
export const CIPHER_ALGORITHMS = ['aes-128', 'aes-192', 'aes-256'] as const;

export const CIPHER_MODES = ['cbc', 'xts'] as const;
export type CipherMode = (typeof CIPHER_MODES)[number];

/** Where the initialization vector of a sector comes from: its number, or its number encrypted. */
export const IV_GENERATORS = ['plain', 'plain64', 'essiv'] as const;
export type IvGenerator = (typeof IV_GENERATORS)[number];

/** Hashes, with the length of their digest in bytes. */
export const HASH_DIGEST_BYTES = {
  md5: 16,
  sha1: 20,
  sha224: 28,
  sha256: 32,
  sha384: 48,
  sha512: 64,
  ripemd160: 20,
} as const;
export type HashAlgorithm = keyof typeof HASH_DIGEST_BYTES;

/** Everything about the encryption of sectors but the key. */
export interface SectorCipherSpec {
  readonly algorithm: CipherAlgorithm;
  readonly mode: CipherMode;
  readonly ivGenerator: IvGenerator;
  /** For essiv: what turns the key into the key of the vectors. */
  readonly ivHash?: HashAlgorithm | undefined;
}

/** As in a LUKS header. */
export interface LuksCipher extends SectorCipherSpec {
  /** Of key derivation and of anti-forensic splitting. */
  readonly hash: HashAlgorithm;
}

/** Length of the whole key, bytes: 16 to 64. */
export function sectorKeyBytes({ algorithm, mode }: SectorCipherSpec): number {
  return CIPHER_KEY_BYTES[algorithm] * (mode === 'xts' ? 2 : 1);
}

/** The cipher whose key has the length of the hash's digest, by which essiv encrypts numbers. */
export function essivCipher(hash: HashAlgorithm): CipherAlgorithm | undefined {
  return CIPHER_ALGORITHMS.find((name) => CIPHER_KEY_BYTES[name] === HASH_DIGEST_BYTES[hash]);
}

/** What is wrong with a combination, in QEMU's words; undefined when it works. */
export function sectorCipherProblem(spec: SectorCipherSpec): string | undefined {
  if (spec.ivGenerator !== 'essiv') return undefined;
  if (spec.ivHash === undefined) return 'Missing IV generator hash specification';
  if (essivCipher(spec.ivHash) !== undefined) return undefined;
  return `No AES cipher with key size ${HASH_DIGEST_BYTES[spec.ivHash]} available`;
}

interface LuksNames {
  readonly cipherName: string;
  readonly cipherMode: string;
  readonly hashSpec: string;
}

/** The names that stand in the header. */
export function luksNames(cipher: LuksCipher): LuksNames {
  const ivHash = cipher.ivHash === undefined ? '' : `:${cipher.ivHash}`;
  return {
    cipherName: 'aes',
    cipherMode: `${cipher.mode}-${cipher.ivGenerator}${ivHash}`,
    hashSpec: cipher.hash,
  };
}

/** @returns what the names of a header mean, or what is wrong with them, in QEMU's words */
export function parseLuksCipher(
  names: LuksNames & { readonly keyBytes: number },
): { readonly cipher: LuksCipher } | { readonly problem: string } {
  const parts = /^([^-]*)-([^:]*)(?::(.*))?$/s.exec(names.cipherMode);
  if (parts === null) {
    return { problem: `Unexpected cipher mode string format '${names.cipherMode}'` };
  }
  const [, modeName = '', generatorName = '', ivHashName] = parts;
  const ivHash = ivHashName === undefined ? undefined : findHash(ivHashName);
  if (ivHashName !== undefined && ivHash === undefined) return unsupportedHash(ivHashName);
  const mode = CIPHER_MODES.find((name) => name === modeName);
  if (mode === undefined) return { problem: `Cipher mode '${modeName}' not supported` };
  const algorithm = findCipher(names.cipherName, mode, names.keyBytes);
  if (algorithm === undefined) {
    const bytes = mode === 'xts' ? Math.floor(names.keyBytes / 2) : names.keyBytes;
    const what = `'${names.cipherName}' with key size ${bytes} bytes`;
    return { problem: `Algorithm ${what} not supported` };
  }
  const hash = findHash(names.hashSpec);
  if (hash === undefined) return unsupportedHash(names.hashSpec);
  const ivGenerator = IV_GENERATORS.find((name) => name === generatorName);
  if (ivGenerator === undefined)
    return { problem: `IV generator '${generatorName}' not supported` };
  // A hash after plain and plain64 means nothing; dm-crypt takes it too.
  const essiv = ivGenerator === 'essiv';
  const cipher = { algorithm, mode, ivGenerator, hash, ...(essiv ? { ivHash } : {}) };
  const problem = sectorCipherProblem(cipher);
  return problem === undefined ? { cipher } : { problem };
}

function findCipher(name: string, mode: CipherMode, keyBytes: number): CipherAlgorithm | undefined {
  if (name !== 'aes') return undefined;
  return CIPHER_ALGORITHMS.find(
    (algorithm) => sectorKeyBytes({ algorithm, mode, ivGenerator: 'plain64' }) === keyBytes,
  );
}

function findHash(name: string): HashAlgorithm | undefined {
  return Object.hasOwn(HASH_DIGEST_BYTES, name) ? (name as HashAlgorithm) : undefined;
}

const unsupportedHash = (name: string) => ({ problem: `Hash algorithm '${name}' not supported` });
