// SPDX-License-Identifier: MIT
/**
 * A LUKS header with its key material, wherever it is kept: at the start of an image, or inside one of
 * another format. Opening finds the key by a passphrase; formatting makes a header with one passphrase.
 */
import { randomBytes, randomUUID, timingSafeEqual } from 'node:crypto';
import {
  type LuksCipher,
  luksNames,
  parseLuksCipher,
  sectorCipherProblem,
  sectorKeyBytes,
} from '../../../protocol/luks/cipher.js';
import {
  decodeLuksHeader,
  encodeLuksHeader,
  hasLuksMagic,
  keyMaterialSectors,
  LUKS_DIGEST_SIZE,
  LUKS_HEADER_SIZE,
  LUKS_KEY_SLOTS,
  LUKS_SALT_SIZE,
  LUKS_SECTOR_SIZE,
  LUKS_SLOT_ALIGNMENT,
  LUKS_SLOT_DISABLED,
  LUKS_SLOT_ENABLED,
  LUKS_STRIPES,
  LUKS_VERSION,
  type LuksHeader,
  type LuksKeySlot,
  luksHeaderProblem,
} from '../../../protocol/luks/header.js';
import { BlockError } from '../../base/errors.js';
import { LUKS_ITERATIONS_MAX } from '../../base/limits.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import { deriveKey, iterationsPerSecond, mergeKey, splitKey } from './key-derivation.js';
import { SectorCipher } from './sector-cipher.js';

/** What a header says. */
export interface LuksDescription {
  readonly header: LuksHeader;
  readonly spec: LuksCipher;
  /** Where the payload starts, bytes; its first sector has the number 0. */
  readonly payloadOffset: number;
}

/** An unlocked volume. */
export interface LuksVolume extends LuksDescription {
  readonly cipher: SectorCipher;
}

export interface LuksOpenOptions {
  readonly passphrase: Uint8Array;
  /** Reads all of `buffer` at `offset` of where the header is. */
  read(offset: number, buffer: Buffer): MaybePromise<void>;
  /** Bytes that can be read there. */
  readonly size: number;
  /** Ends the search for the key between two slots. */
  readonly signal?: AbortSignal;
}

/**
 * Reads the header and finds the key that the passphrase gives access to.
 * @throws BlockError DF_INVALID when this is no LUKS volume that we know or no slot takes the
 *   passphrase; DF_CORRUPT_IMAGE when the header contradicts itself
 */
export async function openLuks(options: LuksOpenOptions): Promise<LuksVolume> {
  const header = await readHeader(options);
  const spec = cipherOf(header);
  for (const slot of header.slots) {
    if (slot.state !== LUKS_SLOT_ENABLED) continue;
    options.signal?.throwIfAborted();
    const key = await trySlot(options, header, spec, slot);
    if (key === undefined) continue;
    const cipher = new SectorCipher(spec, key);
    key.fill(0);
    const payloadOffset = header.payloadOffsetSector * LUKS_SECTOR_SIZE;
    return { header, spec, payloadOffset, cipher };
  }
  throw new BlockError('DF_INVALID', 'Invalid password, cannot unlock any keyslot');
}

/**
 * Reads the header, without a key.
 * @throws BlockError as `openLuks`
 */
export async function inspectLuks(
  options: Pick<LuksOpenOptions, 'read' | 'size'>,
): Promise<LuksDescription> {
  const header = await readHeader(options);
  const payloadOffset = header.payloadOffsetSector * LUKS_SECTOR_SIZE;
  return { header, spec: cipherOf(header), payloadOffset };
}

async function readHeader({
  read,
  size,
}: Pick<LuksOpenOptions, 'read' | 'size'>): Promise<LuksHeader> {
  const bytes = Buffer.alloc(LUKS_HEADER_SIZE);
  if (size >= LUKS_HEADER_SIZE) await read(0, bytes);
  if (!hasLuksMagic(bytes)) throw new BlockError('DF_INVALID', 'Volume is not in LUKS format');
  const header = decodeLuksHeader(bytes);
  if (header.version !== LUKS_VERSION) {
    throw new BlockError('DF_NOT_SUPPORTED', luksHeaderProblem(header) ?? '');
  }
  const problem = luksHeaderProblem(header) ?? boundsProblem(header, size);
  if (problem !== undefined) throw new BlockError('DF_CORRUPT_IMAGE', problem);
  return header;
}

/** What a header asks for that no sane one does, or that is not there. */
function boundsProblem(header: LuksHeader, size: number): string | undefined {
  const counts = header.slots
    .filter(({ state }) => state === LUKS_SLOT_ENABLED)
    .map(({ iterations }) => iterations);
  const most = Math.max(header.digestIterations, ...counts);
  if (most > LUKS_ITERATIONS_MAX) {
    return `LUKS header asks for ${most} iterations; ${LUKS_ITERATIONS_MAX} are allowed`;
  }
  const needed = header.payloadOffsetSector * LUKS_SECTOR_SIZE;
  return needed > size ? `LUKS payload starts at ${needed}, past the end at ${size}` : undefined;
}

function cipherOf(header: LuksHeader): LuksCipher {
  const { cipherName = '', cipherMode = '', hashSpec = '', keyBytes } = header;
  const parsed = parseLuksCipher({ cipherName, cipherMode, hashSpec, keyBytes });
  if ('cipher' in parsed) return parsed.cipher;
  throw new BlockError('DF_NOT_SUPPORTED', parsed.problem);
}

/** The master key, when the passphrase is that of the slot. */
async function trySlot(
  { passphrase, read }: LuksOpenOptions,
  header: LuksHeader,
  spec: LuksCipher,
  slot: LuksKeySlot,
): Promise<Buffer | undefined> {
  const { salt, iterations } = slot;
  const { hash } = spec;
  const slotKey = await deriveKey(passphrase, { hash, salt, iterations, length: header.keyBytes });
  const material = Buffer.alloc(header.keyBytes * slot.stripes);
  await read(slot.keyOffsetSector * LUKS_SECTOR_SIZE, material);
  new SectorCipher(spec, slotKey).decrypt(0, material, material);
  const key = await mergeKey(material, slot.stripes, hash);
  const digest = await digestOf(key, hash, header.digestSalt, header.digestIterations);
  return timingSafeEqual(digest, header.digest) ? key : undefined;
}

function digestOf(
  key: Uint8Array,
  hash: LuksCipher['hash'],
  salt: Uint8Array,
  iterations: number,
): Promise<Buffer> {
  return deriveKey(key, { hash, salt, iterations, length: LUKS_DIGEST_SIZE });
}

/** QEMU's BlockdevCreateOptionsLUKS without what belongs to the image. */
export interface LuksFormatOptions {
  readonly passphrase: Uint8Array;
  /** Default: aes-256. */
  readonly algorithm?: LuksCipher['algorithm'] | undefined;
  /** Default: xts. */
  readonly mode?: LuksCipher['mode'] | undefined;
  /** Default: plain64. */
  readonly ivGenerator?: LuksCipher['ivGenerator'] | undefined;
  /** Default: sha256 where the generator needs one. */
  readonly ivHash?: LuksCipher['ivHash'];
  /** Default: sha256. */
  readonly hash?: LuksCipher['hash'] | undefined;
  /** How long unlocking is to take on this machine, milliseconds, 1 and more. Default: 2000. */
  readonly iterTimeMs?: number | undefined;
}

/** The names of these options where a user gives them. @see qapi QCryptoBlockCreateOptionsLUKS */
export interface WireLuksFormat {
  readonly 'cipher-alg'?: LuksFormatOptions['algorithm'];
  readonly 'cipher-mode'?: LuksFormatOptions['mode'];
  readonly 'ivgen-alg'?: LuksFormatOptions['ivGenerator'];
  readonly 'ivgen-hash-alg'?: LuksFormatOptions['ivHash'];
  readonly 'hash-alg'?: LuksFormatOptions['hash'];
  readonly 'iter-time'?: number;
}

/** @param passphrase what is to unlock the new volume */
export function luksFormatOptions(wire: WireLuksFormat, passphrase: Uint8Array): LuksFormatOptions {
  return {
    passphrase,
    algorithm: wire['cipher-alg'],
    mode: wire['cipher-mode'],
    ivGenerator: wire['ivgen-alg'],
    ivHash: wire['ivgen-hash-alg'],
    hash: wire['hash-alg'],
    iterTimeMs: wire['iter-time'],
  };
}

/** What a new volume consists of: pieces to be written, and the volume that they make. */
export interface LuksFormat {
  /** Header and key material, by offset in bytes; all below `volume.payloadOffset`. */
  readonly pieces: readonly { readonly offset: number; readonly bytes: Buffer }[];
  readonly volume: LuksVolume;
}

/** Iterations below which no key is derived, whatever the time. */
const ITERATIONS_MIN = 1000;
const ITER_TIME_DEFAULT_MS = 2000;
const MS_PER_SECOND = 1000;
/** Part of the time that goes into the digest of the master key, as QEMU divides it. */
const DIGEST_SHARE = 8;
/** The slot's part: its key and the digest are derived one after the other. */
const SLOT_SHARE = 2;

/**
 * Makes a header with a new random key that the passphrase unlocks; writes nothing.
 * @throws BlockError DF_INVALID for options that don't fit together
 */
export async function formatLuks(options: LuksFormatOptions): Promise<LuksFormat> {
  const spec = specOf(options);
  const { passphrase, iterTimeMs = ITER_TIME_DEFAULT_MS } = options;
  if (!(iterTimeMs > 0)) throw new BlockError('DF_INVALID', 'iter-time must be larger than 0');
  const keyBytes = sectorKeyBytes(spec);
  const key = randomBytes(keyBytes);
  const digestIterations = await iterationCount(spec, LUKS_DIGEST_SIZE, iterTimeMs / DIGEST_SHARE);
  const iterations = await iterationCount(spec, keyBytes, iterTimeMs / SLOT_SHARE);
  const digestSalt = randomBytes(LUKS_SALT_SIZE);
  const slots = newSlots(keyBytes, iterations);
  const header: LuksHeader = {
    version: LUKS_VERSION,
    ...luksNames(spec),
    payloadOffsetSector: slotStart(LUKS_KEY_SLOTS, keyBytes),
    keyBytes,
    digest: await digestOf(key, spec.hash, digestSalt, digestIterations),
    digestSalt,
    digestIterations,
    uuid: randomUUID(),
    slots,
  };
  const material = await sealKey(key, { passphrase, spec, slot: slots[0] });
  const pieces = [
    { offset: 0, bytes: Buffer.from(encodeLuksHeader(header)) },
    { offset: slotStart(0, keyBytes) * LUKS_SECTOR_SIZE, bytes: material },
  ];
  const cipher = new SectorCipher(spec, key);
  key.fill(0);
  const payloadOffset = header.payloadOffsetSector * LUKS_SECTOR_SIZE;
  return { pieces, volume: { header, spec, payloadOffset, cipher } };
}

/** Bytes that header and key material take. @throws BlockError DF_INVALID as `formatLuks` */
export function luksPayloadOffset(options: LuksFormatOptions): number {
  return slotStart(LUKS_KEY_SLOTS, sectorKeyBytes(specOf(options))) * LUKS_SECTOR_SIZE;
}

function specOf(options: LuksFormatOptions): LuksCipher {
  const { algorithm = 'aes-256', mode = 'xts', ivGenerator = 'plain64' } = options;
  const { hash = 'sha256', ivHash = ivGenerator === 'essiv' ? 'sha256' : undefined } = options;
  const spec = { algorithm, mode, ivGenerator, hash, ivHash };
  const problem = sectorCipherProblem(spec);
  if (problem !== undefined) throw new BlockError('DF_INVALID', problem);
  if ((sectorKeyBytes(spec) * LUKS_STRIPES) % LUKS_SECTOR_SIZE !== 0) {
    // QEMU 7.2 aborts when it meets such an image; we read one, but make none.
    const message = `${algorithm} with ${mode} is not for new images: QEMU can't open them`;
    throw new BlockError('DF_NOT_SUPPORTED', message);
  }
  return spec;
}

async function iterationCount(spec: LuksCipher, length: number, timeMs: number): Promise<number> {
  const rate = await iterationsPerSecond({ hash: spec.hash, length });
  const count = Math.floor((rate * timeMs) / MS_PER_SECOND);
  if (count <= LUKS_ITERATIONS_MAX) return Math.max(count, ITERATIONS_MIN);
  const most = `${LUKS_ITERATIONS_MAX} are allowed`;
  throw new BlockError('DF_INVALID', `iter-time asks for ${count} iterations; ${most}`);
}

/** Where a slot's key material starts; after the last one the payload does. Sectors. */
function slotStart(index: number, keyBytes: number): number {
  const first = LUKS_SLOT_ALIGNMENT / LUKS_SECTOR_SIZE;
  return first + index * keyMaterialSectors(keyBytes, LUKS_STRIPES);
}

/** The first one enabled. */
function newSlots(keyBytes: number, iterations: number): [LuksKeySlot, ...LuksKeySlot[]] {
  const slot = (index: number): LuksKeySlot => ({
    state: index === 0 ? LUKS_SLOT_ENABLED : LUKS_SLOT_DISABLED,
    iterations: index === 0 ? iterations : 0,
    salt: index === 0 ? randomBytes(LUKS_SALT_SIZE) : new Uint8Array(LUKS_SALT_SIZE),
    keyOffsetSector: slotStart(index, keyBytes),
    stripes: LUKS_STRIPES,
  });
  return [slot(0), ...Array.from({ length: LUKS_KEY_SLOTS - 1 }, (_, index) => slot(index + 1))];
}

/** The master key as it lies in a slot, padded with zeroes to whole sectors. */
async function sealKey(
  key: Buffer,
  how: { passphrase: Uint8Array; spec: LuksCipher; slot: LuksKeySlot },
): Promise<Buffer> {
  const { spec, slot } = how;
  const { hash } = spec;
  const { salt, iterations } = slot;
  const parts = await splitKey(key, LUKS_STRIPES, hash);
  const slotKey = await deriveKey(how.passphrase, { hash, salt, iterations, length: key.length });
  new SectorCipher(spec, slotKey).encrypt(0, parts, parts);
  const sectors = keyMaterialSectors(key.length, LUKS_STRIPES);
  const material = Buffer.alloc(sectors * LUKS_SECTOR_SIZE);
  parts.copy(material);
  return material;
}
