// SPDX-License-Identifier: MIT
/** From a passphrase to a key, slowly, and the splitting of keys by which they can be destroyed. */
import { createHash, pbkdf2, randomBytes } from 'node:crypto';
import { promisify } from 'node:util';
import { HASH_DIGEST_BYTES, type HashAlgorithm } from '../../../protocol/luks/cipher.js';
import { type Clock, systemClock } from '../../base/clock.js';
import { Mutex } from '../../base/mutex.js';

const derive = promisify(pbkdf2);

/**
 * One derivation at a time in the whole process: each keeps a thread of the pool busy that disks need
 * too, for seconds where the header asks for it.
 */
const oneAtATime = new Mutex();

export interface DerivationOptions {
  readonly hash: HashAlgorithm;
  readonly salt: Uint8Array;
  /** At least 1; bounded by the caller. */
  readonly iterations: number;
  /** Bytes. */
  readonly length: number;
}

/** PBKDF2 in the thread pool. @see RFC 8018 section 5.2 */
export function deriveKey(secret: Uint8Array, options: DerivationOptions): Promise<Buffer> {
  const { hash, salt, iterations, length } = options;
  return oneAtATime.run(() => derive(secret, salt, iterations, length, hash));
}

/** How long one measurement takes at least, nanoseconds. */
const MEASURE_NS = 50e6;
const NS_PER_SECOND = 1e9;

/** Iterations that this machine does in a second, at the time of asking. */
export async function iterationsPerSecond(
  { hash, length }: Pick<DerivationOptions, 'hash' | 'length'>,
  clock: Clock = systemClock,
): Promise<number> {
  const [secret, salt] = [randomBytes(length), randomBytes(32)];
  for (let iterations = 1 << 12; ; iterations *= 2) {
    const took = await oneAtATime.run(async () => {
      const start = clock.nowNs();
      await derive(secret, salt, iterations, length, hash);
      return clock.nowNs() - start;
    });
    if (took >= MEASURE_NS) return (iterations * NS_PER_SECOND) / took;
  }
}

/** Stripes after which the event loop gets its turn. */
const STRIPES_IN_A_ROW = 128;

/**
 * Splits a key into `stripes` parts of its length, all of which are needed to have it back.
 * @see LUKS On-Disk Format Specification 1.2.1, section 2.4
 */
export async function splitKey(
  key: Uint8Array,
  stripes: number,
  hash: HashAlgorithm,
): Promise<Buffer> {
  const length = key.byteLength;
  const parts = randomBytes(length * stripes);
  const last = await diffused(parts, { length, stripes, hash });
  xor(last, key);
  parts.set(last, length * (stripes - 1));
  return parts;
}

/** The key whose parts these are. */
export async function mergeKey(
  parts: Uint8Array,
  stripes: number,
  hash: HashAlgorithm,
): Promise<Buffer> {
  const length = parts.byteLength / stripes;
  const key = await diffused(parts, { length, stripes, hash });
  xor(key, parts.subarray(length * (stripes - 1)));
  return key;
}

/** All parts but the last, each mixed into what came before. */
async function diffused(
  parts: Uint8Array,
  { length, stripes, hash }: { length: number; stripes: number; hash: HashAlgorithm },
): Promise<Buffer> {
  const block = Buffer.alloc(length);
  for (let stripe = 0; stripe < stripes - 1; stripe++) {
    xor(block, parts.subarray(stripe * length));
    diffuse(block, hash);
    if (stripe % STRIPES_IN_A_ROW === 0) await new Promise<void>((resume) => setImmediate(resume));
  }
  return block;
}

/** Replaces each digest's length of the block by the digest of its number and itself. */
function diffuse(block: Buffer, hash: HashAlgorithm): void {
  const digestBytes = HASH_DIGEST_BYTES[hash];
  const number = Buffer.alloc(4);
  for (let at = 0; at < block.byteLength; at += digestBytes) {
    number.writeUInt32BE(at / digestBytes);
    const part = block.subarray(at, at + digestBytes);
    part.set(createHash(hash).update(number).update(part).digest().subarray(0, part.byteLength));
  }
}

function xor(target: Buffer, other: Uint8Array): void {
  for (let at = 0; at < target.byteLength; at++) target[at] = (target[at] ?? 0) ^ (other[at] ?? 0);
}
