// SPDX-License-Identifier: MIT
/** `luks`: an encrypted disk, behind the header of LUKS version 1 that has its keys. */
import { alignDown } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import { CRYPTO_TURN_LENGTH, MIB, NODE_SIZE_MAX } from '../../base/limits.js';
import { isPromise, type MaybePromise } from '../../base/maybe-promise.js';
import {
  type BlockDriver,
  type BlockLimits,
  DEFAULT_LIMITS,
  type DriverDefinition,
  type DriverFeatures,
  type DriverOptions,
  type OpenContext,
  type PreallocationMode,
  REQ_PREFETCH,
  type RequestFlags,
  type TruncateOptions,
} from '../block-driver.js';
import { describeLuks } from '../crypto/describe-luks.js';
import {
  formatLuks,
  inspectLuks,
  type LuksDescription,
  type LuksFormatOptions,
  type LuksVolume,
  luksFormatOptions,
  luksPayloadOffset,
  openLuks,
  type WireLuksFormat,
} from '../crypto/luks-volume.js';
import type { Secrets } from '../crypto/secrets.js';
import { CRYPTO_SECTOR_SIZE, type SectorCipher } from '../crypto/sector-cipher.js';
import type { ChildEdge } from '../edge.js';
import { jsonFilename } from '../filter/pass-through.js';

const FEATURES: DriverFeatures = {
  fua: true, // by the node below
  writeZeroes: false, // zeroes are encrypted as anything else
  discard: false,
  backing: false,
  multiConn: true,
};
const SINGLE_CONN_FEATURES: DriverFeatures = { ...FEATURES, multiConn: false };

/** Bytes that a write is encrypted into at a time. */
const TRANSFER_MAX = 1 * MIB;

class LuksDriver implements BlockDriver {
  readonly name = 'luks';
  readonly encrypted = true;
  readonly newIsArbitrary = true;
  readonly #file: ChildEdge;
  readonly #keySecret: string | undefined;
  readonly #volume: LuksDescription & Partial<LuksVolume>;

  /** @param volume without its cipher where only what the header says is wanted */
  constructor(
    file: ChildEdge,
    keySecret: string | undefined,
    volume: LuksDescription & Partial<LuksVolume>,
  ) {
    this.#file = file;
    this.#keySecret = keySecret;
    this.#volume = volume;
  }

  get features(): DriverFeatures {
    return this.#file.node.driver.features.multiConn ? FEATURES : SINGLE_CONN_FEATURES;
  }

  get limits(): BlockLimits {
    return {
      ...DEFAULT_LIMITS,
      requestAlignment: CRYPTO_SECTOR_SIZE,
      maxTransfer: TRANSFER_MAX,
      optimalTransfer: Math.min(this.#file.limits.optimalTransfer, TRANSFER_MAX),
    };
  }

  /** Part of a sector at the end of the file can't be decrypted, so it does not count. */
  get size(): number {
    const bytes = this.#file.size - this.#volume.payloadOffset;
    return Math.max(alignDown(bytes, CRYPTO_SECTOR_SIZE), 0);
  }

  get filename(): string {
    if (this.#keySecret === undefined) return this.#file.node.driver.filename;
    return jsonFilename('luks', { file: this.#file }, { 'key-secret': this.#keySecret });
  }

  read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    const pending = this.#file.read(this.#volume.payloadOffset + offset, buffer, flags);
    if ((flags & REQ_PREFETCH) !== 0) return pending;
    if (isPromise(pending)) return pending.then(() => this.#decrypt(offset, buffer));
    return this.#decrypt(offset, buffer);
  }

  /** @throws BlockError DF_ACCESS when the image was opened without its key */
  get #cipher(): SectorCipher {
    const { cipher } = this.#volume;
    if (cipher !== undefined) return cipher;
    throw new BlockError('DF_ACCESS', 'The image is encrypted and was opened without its key');
  }

  #decrypt(offset: number, buffer: Buffer): MaybePromise<void> {
    this.#cipher.decrypt(offset / CRYPTO_SECTOR_SIZE, buffer, buffer);
    if (buffer.byteLength >= CRYPTO_TURN_LENGTH) return nextTurn();
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    const sealed = Buffer.allocUnsafe(buffer.byteLength);
    this.#cipher.encrypt(offset / CRYPTO_SECTOR_SIZE, buffer, sealed);
    const pending = this.#file.write(this.#volume.payloadOffset + offset, sealed, flags);
    if (isPromise(pending) || buffer.byteLength < CRYPTO_TURN_LENGTH) return pending;
    return nextTurn();
  }

  /** Bytes gained are what decryption makes of the file's zeroes: arbitrary, as in QEMU. */
  async truncate(size: number, options: TruncateOptions): Promise<void> {
    const { payloadOffset } = this.#volume;
    if (size > NODE_SIZE_MAX - payloadOffset) {
      throw new BlockError('DF_INVALID', 'The requested file size is too large');
    }
    await this.#file.truncate(size + payloadOffset, options);
  }

  specificInfo(): Readonly<Record<string, unknown>> {
    return { type: 'luks', data: describeLuks(this.#volume) };
  }

  /** The node below is its own. */
  close(): void {}
}

/** A long stretch of encryption lets others have their turn. */
function nextTurn(): Promise<void> {
  return new Promise((resume) => setImmediate(resume));
}

async function openDriver(
  secrets: Secrets,
  keySecret: string | undefined,
  context: OpenContext,
): Promise<LuksDriver> {
  const file = context.child('file');
  const place = {
    read: (offset: number, buffer: Buffer) => file.read(offset, buffer),
    size: file.size,
  };
  if (context.metadataOnly === true && keySecret === undefined) {
    return new LuksDriver(file, undefined, await inspectLuks(place));
  }
  const passphrase = secrets.required(keySecret, 'key-secret');
  try {
    const volume = await openLuks({ ...place, passphrase, signal: context.signal });
    return new LuksDriver(file, keySecret, volume);
  } finally {
    passphrase.fill(0);
  }
}

/** The members of BlockdevCreateOptionsLUKS. */
interface CreateMembers extends DriverOptions, WireLuksFormat {
  readonly size: number;
  readonly preallocation?: PreallocationMode;
  readonly 'key-secret'?: string;
}

function createOptions(secrets: Secrets, options: CreateMembers): LuksCreateOptions {
  const { size, preallocation = 'off' } = options;
  return {
    size,
    preallocation,
    ...luksFormatOptions(options, secrets.required(options['key-secret'], 'key-secret')),
  };
}

/** @param secrets where nodes find the secret that they name */
export function createLuksDriver(secrets: Secrets): DriverDefinition {
  return {
    name: 'luks',
    kind: 'format',
    children: [{ key: 'file', role: 'file', required: true }],
    open: (options, context) =>
      openDriver(secrets, options['key-secret'] as string | undefined, context),
    create: {
      nodes: [{ key: 'file', required: true }],
      create: (options, context) =>
        createLuks(context.node('file'), createOptions(secrets, options as CreateMembers)),
      measure: (options) => {
        const wanted = createOptions(secrets, options as CreateMembers);
        // What is not written is encrypted as well, and so takes room.
        const length = luksPayloadOffset(wanted) + Number(wanted.size);
        return { required: length, fullyAllocated: length };
      },
    },
  };
}

/** Where a new image goes: a node of its own, or a file. */
export interface LuksTarget {
  truncate(size: number, options: TruncateOptions): Promise<void>;
  write(offset: number, buffer: Buffer): MaybePromise<void>;
  flush(): MaybePromise<void>;
}

export interface LuksCreateOptions extends LuksFormatOptions {
  /** Bytes that the image shows. */
  readonly size: number;
  readonly preallocation?: PreallocationMode;
}

/**
 * Makes an image: header, key material, and room for `size` bytes, whose content is arbitrary.
 * @throws BlockError DF_INVALID for options that don't fit together; DF_TOO_LARGE
 */
export async function createLuks(target: LuksTarget, options: LuksCreateOptions): Promise<void> {
  const { size, preallocation = 'off' } = options;
  const { pieces, volume } = await formatLuks(options);
  if (size > NODE_SIZE_MAX - volume.payloadOffset) {
    throw new BlockError('DF_TOO_LARGE', 'The requested file size is too large');
  }
  await target.truncate(size + volume.payloadOffset, {
    exact: false,
    preallocation: preallocation === 'metadata' ? 'off' : preallocation,
  });
  for (const { offset, bytes } of pieces) await target.write(offset, bytes);
  await target.flush();
}
