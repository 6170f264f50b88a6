// SPDX-License-Identifier: MIT
/**
 * Encryption of the guest's data: by LUKS, whose header lies in clusters of its own, or by the AES of old
 * images, which has none. Tables, bitmaps and compressed clusters are never encrypted.
 * @see qcow2.txt "Full disk encryption header pointer", "Data encryption"
 */
import {
  decodeCryptoHeader,
  type HeaderExtension,
  QCOW2_EXT_CRYPTO,
} from '../../../../protocol/qcow2/extensions.js';
import {
  QCOW2_CRYPT_AES,
  QCOW2_CRYPT_LUKS,
  QCOW2_CRYPT_NONE,
} from '../../../../protocol/qcow2/header.js';
import { BlockError } from '../../../base/errors.js';
import type { DriverOptions } from '../../block-driver.js';
import { inspectLuks, type LuksDescription, openLuks } from '../../crypto/luks-volume.js';
import type { Secrets } from '../../crypto/secrets.js';
import { SectorCipher } from '../../crypto/sector-cipher.js';
import { GuestCipher } from './guest-cipher.js';
import { type ReadableIo, readPadded } from './image-io.js';
import type { ImageHead } from './open.js';

export type EncryptionFormat = 'aes' | 'luks';

/** How an image is encrypted, and what does it. */
export interface ImageEncryption {
  readonly format: EncryptionFormat;
  /** What the LUKS header says. */
  readonly luks: LuksDescription | undefined;
  /** Undefined: the image was opened without its key, and its data is out of reach. */
  readonly cipher: GuestCipher | undefined;
}

/** @see qapi BlockdevQcow2Encryption; without its format where a command line leaves it out */
interface EncryptOptions {
  readonly format?: EncryptionFormat;
  readonly 'key-secret'?: string;
}

export interface UnlockOptions {
  readonly given: DriverOptions;
  readonly secrets: Secrets;
  /** Only what the image says of itself is wanted: it may be opened without its key. */
  readonly metadataOnly?: boolean | undefined;
  readonly signal?: AbortSignal;
}

/**
 * Gets the cipher of an image ready; undefined where it is not encrypted.
 * @throws BlockError in QEMU's words, for options that do not fit the image and secrets that do not fit it
 */
export async function unlock(
  file: ReadableIo,
  head: ImageHead,
  options: UnlockOptions,
): Promise<ImageEncryption | undefined> {
  const { given, secrets, metadataOnly = false } = options;
  const encrypt = given.encrypt as EncryptOptions | undefined;
  checkFormat(given, head);
  const format = formatOf(head);
  if (format === undefined) return undefined;
  const id = encrypt?.['key-secret'];
  if (metadataOnly && id === undefined) {
    const luks = format === 'aes' ? undefined : await inspectLuks(headerPlace(file, head));
    return { format, luks, cipher: undefined };
  }
  const passphrase = secrets.required(id, 'encrypt.key-secret');
  try {
    if (format === 'aes') return legacyEncryption(passphrase);
    const { signal } = options;
    const place = headerPlace(file, head);
    const volume = await openLuks({ ...place, passphrase, ...(signal && { signal }) });
    return { format, luks: volume, cipher: new GuestCipher(volume.cipher, 'host') };
  } finally {
    passphrase.fill(0);
  }
}

/** @throws BlockError DF_INVALID when the options speak of another encryption than the image has */
export function checkFormat(given: DriverOptions, head: Pick<ImageHead, 'content'>): void {
  const wanted = (given.encrypt as EncryptOptions | undefined)?.format;
  const format = formatOf(head);
  if (wanted === undefined || wanted === format) return;
  throw new BlockError(
    'DF_INVALID',
    format === undefined
      ? `No encryption in image header, but options specified format '${wanted}'`
      : `Header reported '${format}' encryption format but options specify '${wanted}'`,
  );
}

function formatOf({ content }: Pick<ImageHead, 'content'>): EncryptionFormat | undefined {
  switch (content.header.cryptMethod) {
    case QCOW2_CRYPT_AES:
      return 'aes';
    case QCOW2_CRYPT_LUKS:
      return 'luks';
    default:
      return undefined;
  }
}

const LEGACY_KEY_BYTES = 16;

/** The passphrase itself is the key, cut off or padded with zeroes. There is no wrong one. */
export function legacyEncryption(passphrase: Buffer): ImageEncryption {
  const key = Buffer.alloc(LEGACY_KEY_BYTES);
  passphrase.copy(key);
  const spec = { algorithm: 'aes-128', mode: 'cbc', ivGenerator: 'plain64' } as const;
  const cipher = new GuestCipher(new SectorCipher(spec, key), 'guest');
  key.fill(0);
  return { format: 'aes', luks: undefined, cipher };
}

/** Where the LUKS header is: what reads it, and how long it is. */
function headerPlace(
  file: ReadableIo,
  { content, geometry }: ImageHead,
): { read(offset: number, buffer: Buffer): void | Promise<void>; readonly size: number } {
  const data = content.extensions.find(({ type }) => type === QCOW2_EXT_CRYPTO)?.data;
  if (data === undefined) {
    throw invalid(`Missing CRYPTO header for crypt method ${content.header.cryptMethod}`);
  }
  const { offset, length } = decodeCryptoHeader(data);
  const { clusterSize } = geometry;
  if (offset % BigInt(clusterSize) !== 0n) {
    throw invalid(
      `Encryption header offset '${offset}' is not a multiple of cluster size '${clusterSize}'`,
    );
  }
  if (offset === 0n || offset + length > BigInt(file.size)) {
    throw new BlockError(
      'DF_CORRUPT_IMAGE',
      `Encryption header of ${length} bytes at ${offset} is not within the image's ${file.size}`,
    );
  }
  const start = Number(offset);
  const size = Number(length);
  return {
    size,
    read(at, buffer) {
      if (at + buffer.byteLength > size) {
        throw invalid('Request for data outside of extension header');
      }
      return readPadded(file, start + at, buffer);
    },
  };
}

/** @throws BlockError DF_INVALID when the extension and the header's method do not fit together */
export function checkCryptoExtension(
  cryptMethod: number,
  extensions: readonly HeaderExtension[],
): void {
  if (cryptMethod > QCOW2_CRYPT_LUKS) {
    throw new BlockError('DF_NOT_SUPPORTED', `Unsupported encryption method ${cryptMethod}`);
  }
  const found = extensions.filter(({ type }) => type === QCOW2_EXT_CRYPTO);
  if (found.length > 1) throw invalid('There are several CRYPTO header extensions');
  for (const { data } of found) {
    if (cryptMethod === QCOW2_CRYPT_NONE || cryptMethod === QCOW2_CRYPT_AES) {
      throw invalid('CRYPTO header extension only expected with LUKS encryption method');
    }
    if (data.byteLength !== 16) {
      throw invalid(`CRYPTO header extension size ${data.byteLength}, but expected size 16`);
    }
  }
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
