// SPDX-License-Identifier: MIT
/**
 * Encryption of disks sector by sector: xts and cbc over AES, each sector with a vector of its own.
 * A cipher object for every sector costs more than the encryption (90 MB/s), so all goes through a few
 * long-lived objects that encrypt many blocks in one call, and what chains blocks is done here.
 * @see IEEE 1619 (xts); protocol/luks/cipher.ts
 */
import {
  type Cipher,
  createCipheriv,
  createDecipheriv,
  createHash,
  type Decipher,
} from 'node:crypto';
import { endianness } from 'node:os';
import {
  CIPHER_KEY_BYTES,
  type CipherAlgorithm,
  essivCipher,
  type SectorCipherSpec,
  sectorCipherProblem,
  sectorKeyBytes,
} from '../../../protocol/luks/cipher.js';
import { BlockError } from '../../base/errors.js';
import { CRYPTO_SLICE_LENGTH } from '../../base/limits.js';

/** Unit of vectors, bytes. */
export const CRYPTO_SECTOR_SIZE = 512;
const BLOCK = 16;
const WORDS_IN_BLOCK = 4;
const SECTORS_IN_SLICE = CRYPTO_SLICE_LENGTH / CRYPTO_SECTOR_SIZE;

/** AES on independent blocks, many in one call. */
class BlockTransform {
  readonly #cipher: Cipher | Decipher;

  constructor(algorithm: CipherAlgorithm, key: Uint8Array, direction: 'encrypt' | 'decrypt') {
    const make = direction === 'encrypt' ? createCipheriv : createDecipheriv;
    this.#cipher = make(`${algorithm}-ecb`, key, null);
    this.#cipher.setAutoPadding(false);
  }

  /** @param bytes whole blocks; overwritten with the result */
  inPlace(bytes: Uint8Array): void {
    bytes.set(this.#cipher.update(bytes));
  }
}

/** The vectors of consecutive sectors. */
class VectorSource {
  readonly #bytes = Buffer.alloc(SECTORS_IN_SLICE * BLOCK);
  readonly #truncate: boolean;
  readonly #essiv: BlockTransform | undefined;

  constructor(spec: SectorCipherSpec, key: Uint8Array) {
    this.#truncate = spec.ivGenerator === 'plain';
    const hash = spec.ivGenerator === 'essiv' ? spec.ivHash : undefined;
    const algorithm = hash === undefined ? undefined : essivCipher(hash);
    if (hash !== undefined && algorithm !== undefined) {
      const vectorKey = createHash(hash).update(key).digest();
      this.#essiv = new BlockTransform(algorithm, vectorKey, 'encrypt');
    }
  }

  /** BLOCK bytes for each sector; valid until the next call. */
  of(firstSector: number, count: number): Buffer {
    const bytes = this.#bytes.subarray(0, count * BLOCK);
    bytes.fill(0);
    for (let index = 0; index < count; index++) {
      const sector = firstSector + index;
      bytes.writeUInt32LE(sector % 2 ** 32, index * BLOCK);
      if (!this.#truncate) bytes.writeUInt32LE(Math.floor(sector / 2 ** 32), index * BLOCK + 4);
    }
    this.#essiv?.inPlace(bytes);
    return bytes;
  }
}

/** What turns one slice, in place, in its scratch memory. */
interface ModeTransform {
  /** @param bytes whole blocks from the start of a sector, aligned to 4 bytes in memory */
  encrypt(bytes: Uint8Array, vectors: Buffer): void;
  decrypt(bytes: Uint8Array, vectors: Buffer): void;
}

class Xts implements ModeTransform {
  readonly #encrypt: BlockTransform;
  readonly #decrypt: BlockTransform;
  readonly #tweak: BlockTransform;
  readonly #tweaks = new Uint32Array(CRYPTO_SLICE_LENGTH / 4);

  constructor(algorithm: CipherAlgorithm, key: Uint8Array) {
    const bytes = CIPHER_KEY_BYTES[algorithm];
    this.#encrypt = new BlockTransform(algorithm, key.subarray(0, bytes), 'encrypt');
    this.#decrypt = new BlockTransform(algorithm, key.subarray(0, bytes), 'decrypt');
    this.#tweak = new BlockTransform(algorithm, key.subarray(bytes), 'encrypt');
  }

  encrypt(bytes: Uint8Array, vectors: Buffer): void {
    this.#run(this.#encrypt, bytes, vectors);
  }

  decrypt(bytes: Uint8Array, vectors: Buffer): void {
    this.#run(this.#decrypt, bytes, vectors);
  }

  #run(transform: BlockTransform, bytes: Uint8Array, vectors: Buffer): void {
    this.#tweak.inPlace(vectors);
    this.#fillTweaks(vectors, bytes.byteLength / 4);
    xorWords(bytes, this.#tweaks);
    transform.inPlace(bytes);
    xorWords(bytes, this.#tweaks);
  }

  /** A sector's tweak, then each block's: the one before times x in GF(2^128). */
  #fillTweaks(vectors: Buffer, words: number): void {
    const tweaks = this.#tweaks;
    const wordsInSector = CRYPTO_SECTOR_SIZE / 4;
    for (let sector = 0; sector * wordsInSector < words; sector++) {
      let t0 = vectors.readInt32LE(sector * BLOCK);
      let t1 = vectors.readInt32LE(sector * BLOCK + 4);
      let t2 = vectors.readInt32LE(sector * BLOCK + 8);
      let t3 = vectors.readInt32LE(sector * BLOCK + 12);
      const end = Math.min(words, (sector + 1) * wordsInSector);
      for (let at = sector * wordsInSector; at < end; at += WORDS_IN_BLOCK) {
        tweaks[at] = t0;
        tweaks[at + 1] = t1;
        tweaks[at + 2] = t2;
        tweaks[at + 3] = t3;
        const carry = (t3 >> 31) & 0x87;
        t3 = (t3 << 1) | (t2 >>> 31);
        t2 = (t2 << 1) | (t1 >>> 31);
        t1 = (t1 << 1) | (t0 >>> 31);
        t0 = (t0 << 1) ^ carry;
      }
    }
  }
}

class Cbc implements ModeTransform {
  readonly #encrypt: BlockTransform;
  readonly #decrypt: BlockTransform;
  readonly #before = new Uint8Array(CRYPTO_SLICE_LENGTH);
  readonly #beforeWords = new Uint32Array(this.#before.buffer);
  /** The block that each sector of a slice has come to. */
  readonly #chains = new Uint8Array(SECTORS_IN_SLICE * BLOCK);
  readonly #chainWords = new Uint32Array(this.#chains.buffer);

  constructor(algorithm: CipherAlgorithm, key: Uint8Array) {
    this.#encrypt = new BlockTransform(algorithm, key, 'encrypt');
    this.#decrypt = new BlockTransform(algorithm, key, 'decrypt');
  }

  /** Blocks of one sector wait for each other, those of different sectors do not: first all firsts. */
  encrypt(bytes: Uint8Array, vectors: Buffer): void {
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    const wordsInSector = CRYPTO_SECTOR_SIZE / 4;
    const chain = this.#chainWords;
    this.#chains.set(vectors);
    const blockEnd = Math.min(wordsInSector, words.length);
    for (let block = 0; block < blockEnd; block += WORDS_IN_BLOCK) {
      // Only the last sector may end before this block.
      const sectors = Math.ceil((words.length - block) / wordsInSector);
      for (let at = 0; at < sectors * WORDS_IN_BLOCK; at++) {
        const from = (at >> 2) * wordsInSector + block + (at & 3);
        chain[at] = (chain[at] ?? 0) ^ (words[from] ?? 0);
      }
      this.#encrypt.inPlace(this.#chains.subarray(0, sectors * BLOCK));
      for (let at = 0; at < sectors * WORDS_IN_BLOCK; at++) {
        words[(at >> 2) * wordsInSector + block + (at & 3)] = chain[at] ?? 0;
      }
    }
  }

  decrypt(bytes: Uint8Array, vectors: Buffer): void {
    this.#before.set(bytes.subarray(0, bytes.byteLength - BLOCK), BLOCK);
    for (let at = 0; at < bytes.byteLength; at += CRYPTO_SECTOR_SIZE) {
      const vector = (at / CRYPTO_SECTOR_SIZE) * BLOCK;
      this.#before.set(vectors.subarray(vector, vector + BLOCK), at);
    }
    this.#decrypt.inPlace(bytes);
    xorWords(bytes, this.#beforeWords);
  }
}

/** @param bytes aligned to 4 bytes in memory */
function xorWords(bytes: Uint8Array, mask: Uint32Array): void {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  // Both indexes are in range: `mask` has the length of the longest slice.
  for (let at = 0; at < words.length; at++) words[at] = (words[at] ?? 0) ^ (mask[at] ?? 0);
}

/**
 * Encrypts and decrypts ranges of sectors. What a sector's number is, its user decides: the place in
 * the payload for LUKS, in the image file or as the guest sees it for other formats.
 */
export class SectorCipher {
  readonly #vectors: VectorSource;
  readonly #mode: ModeTransform;
  readonly #scratch = new Uint8Array(CRYPTO_SLICE_LENGTH);

  /**
   * @param key `sectorKeyBytes(spec)` bytes
   * @throws BlockError DF_INVALID for a key of another length or a combination that does not work
   */
  constructor(spec: SectorCipherSpec, key: Uint8Array) {
    const problem = sectorCipherProblem(spec);
    if (problem !== undefined) throw new BlockError('DF_INVALID', problem);
    if (key.byteLength !== sectorKeyBytes(spec)) {
      const wanted = sectorKeyBytes(spec);
      throw new BlockError('DF_INVALID', `the key has ${key.byteLength} bytes, not ${wanted}`);
    }
    // Words of vectors and tweaks are little-endian, and are worked on as the machine has them.
    if (endianness() !== 'LE') {
      throw new BlockError('DF_NOT_SUPPORTED', 'Encryption needs a little-endian machine');
    }
    this.#vectors = new VectorSource(spec, key);
    const { algorithm, mode } = spec;
    this.#mode = mode === 'xts' ? new Xts(algorithm, key) : new Cbc(algorithm, key);
  }

  /**
   * @param firstSector number of the sector at the start of `source`; below 2^53
   * @param source a multiple of 16 bytes; only the last sector may be shorter than the others
   * @param target as long as `source`, and may be the same memory
   */
  encrypt(firstSector: number, source: Uint8Array, target: Uint8Array): void {
    this.#run('encrypt', firstSector, source, target);
  }

  /** As `encrypt`. */
  decrypt(firstSector: number, source: Uint8Array, target: Uint8Array): void {
    this.#run('decrypt', firstSector, source, target);
  }

  #run(
    direction: 'encrypt' | 'decrypt',
    firstSector: number,
    source: Uint8Array,
    target: Uint8Array,
  ): void {
    const { byteLength } = source;
    if (byteLength % BLOCK !== 0 || target.byteLength !== byteLength) {
      throw new RangeError(`can't ${direction} ${byteLength} bytes into ${target.byteLength}`);
    }
    for (let at = 0; at < byteLength; at += CRYPTO_SLICE_LENGTH) {
      const length = Math.min(CRYPTO_SLICE_LENGTH, byteLength - at);
      const slice = this.#scratch.subarray(0, length);
      slice.set(source.subarray(at, at + length));
      const sectors = Math.ceil(length / CRYPTO_SECTOR_SIZE);
      const vectors = this.#vectors.of(firstSector + at / CRYPTO_SECTOR_SIZE, sectors);
      this.#mode[direction](slice, vectors);
      target.set(slice, at);
    }
  }
}
