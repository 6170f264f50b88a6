// SPDX-License-Identifier: MIT
/** Encryption of a new image. @see qapi QCryptoBlockCreateOptions */
import { encodeCryptoHeader, QCOW2_EXT_CRYPTO } from '../../../../protocol/qcow2/extensions.js';
import { QCOW2_CRYPT_AES, QCOW2_CRYPT_LUKS } from '../../../../protocol/qcow2/header.js';
import {
  formatLuks,
  type LuksFormat,
  type LuksFormatOptions,
  luksFormatOptions,
  luksPayloadOffset,
  type WireLuksFormat,
} from '../../crypto/luks-volume.js';
import type { Secrets } from '../../crypto/secrets.js';
import { allocateContiguousLocked } from './allocate.js';
import { type ImageEncryption, legacyEncryption } from './encryption.js';
import { GuestCipher } from './guest-cipher.js';
import type { Qcow2Image } from './image.js';
import { prepareWrite } from './prepare-write.js';

/** The members of QCryptoBlockCreateOptions; 'qcow' is the AES of old images. */
export interface WireEncryption extends WireLuksFormat {
  readonly format: 'qcow' | 'luks';
  readonly 'key-secret'?: string;
}

export type NewEncryption =
  | { readonly format: 'aes'; readonly passphrase: Buffer }
  | ({ readonly format: 'luks' } & LuksFormatOptions);

/** @throws BlockError DF_INVALID, DF_NOT_FOUND for a secret that is not there */
export function newEncryption(
  wire: WireEncryption | undefined,
  secrets: Secrets,
): NewEncryption | undefined {
  if (wire === undefined) return undefined;
  const passphrase = secrets.required(wire['key-secret'], 'encrypt.key-secret');
  if (wire.format === 'qcow') return { format: 'aes', passphrase };
  return { format: 'luks', ...luksFormatOptions(wire, passphrase) };
}

/** Bytes that keys take in the image. @throws BlockError DF_INVALID as `prepareEncryption` */
export function encryptionHeaderLength(wanted: NewEncryption | undefined): number {
  return wanted?.format === 'luks' ? luksPayloadOffset(wanted) : 0;
}

/** Keys that are made, and not yet part of an image. */
export interface PreparedEncryption {
  readonly encryption: ImageEncryption;
  readonly pieces: LuksFormat['pieces'];
}

/** Makes keys; nothing is written. @throws BlockError DF_INVALID for options that don't fit together */
export async function prepareEncryption(
  wanted: NewEncryption | undefined,
): Promise<PreparedEncryption | undefined> {
  if (wanted === undefined) return undefined;
  if (wanted.format === 'aes')
    return { encryption: legacyEncryption(wanted.passphrase), pieces: [] };
  const { pieces, volume } = await formatLuks(wanted);
  const cipher = new GuestCipher(volume.cipher, 'host');
  return { encryption: { format: 'luks', luks: volume, cipher }, pieces };
}

/** Encrypts an image that is still empty; durable when done. */
export async function setUpEncryption(
  image: Qcow2Image,
  { encryption, pieces }: PreparedEncryption,
): Promise<void> {
  await prepareWrite(image);
  const { luks } = encryption;
  if (luks === undefined) await image.header.update({ cryptMethod: QCOW2_CRYPT_AES });
  else await writeLuksHeader(image, luks.payloadOffset, pieces);
  image.encryption = encryption;
}

/** @param length of the header with all its key material, bytes */
async function writeLuksHeader(
  image: Qcow2Image,
  length: number,
  pieces: PreparedEncryption['pieces'],
): Promise<void> {
  const { file, metadata, geometry, header, allocation } = image;
  const { clusterSize } = geometry;
  const clusters = Math.ceil(length / clusterSize);
  const { offset } = await allocation.run(() => allocateContiguousLocked(image, clusters));
  await metadata.writeRefcounts();
  await file.writeZeroes(offset, clusters * clusterSize);
  for (const piece of pieces) await file.write(offset + piece.offset, piece.bytes);
  await file.flush();
  const place = { offset: BigInt(offset), length: BigInt(length) };
  const extension = { type: QCOW2_EXT_CRYPTO, data: encodeCryptoHeader(place) };
  await header.rewrite({
    extensions: [...header.content.extensions, extension],
    fields: { cryptMethod: QCOW2_CRYPT_LUKS },
  });
}
