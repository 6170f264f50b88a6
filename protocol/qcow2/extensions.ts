// SPDX-License-Identifier: MIT
/** Header extensions and the feature name table. @see qcow2.txt "Header extensions" */

export const QCOW2_EXT_END = 0;
export const QCOW2_EXT_BACKING_FORMAT = 0xe2792aca;
export const QCOW2_EXT_FEATURE_TABLE = 0x6803f857;
export const QCOW2_EXT_BITMAPS = 0x23852875;
export const QCOW2_EXT_CRYPTO = 0x0537be77;
export const QCOW2_EXT_DATA_FILE = 0x44415441;

const HEAD_LENGTH = 8;
const NAME_LENGTH = 46;
const FEATURE_LENGTH = 48;

export interface HeaderExtension {
  readonly type: number;
  readonly data: Uint8Array;
}

/**
 * The extensions between the header and the end of their area, in order.
 * @param area bytes from the end of the header to the backing file's name or the cluster's end
 * @throws RangeError when one says that it is longer than the area
 */
export function decodeExtensions(area: Uint8Array): HeaderExtension[] {
  const view = new DataView(area.buffer, area.byteOffset, area.byteLength);
  const found: HeaderExtension[] = [];
  for (let at = 0; at + HEAD_LENGTH <= area.byteLength; ) {
    const type = view.getUint32(at);
    const length = view.getUint32(at + 4);
    at += HEAD_LENGTH;
    if (length > area.byteLength - at) throw new RangeError('Header extension too large');
    if (type === QCOW2_EXT_END) break;
    found.push({ type, data: area.slice(at, at + length) });
    at += roundUp8(length);
  }
  return found;
}

/** Bytes of the extension that tells where the LUKS header is. */
const CRYPTO_HEADER_LENGTH = 16;

/** Place of the LUKS header in the image file, bytes. @param data CRYPTO_HEADER_LENGTH bytes */
export function decodeCryptoHeader(data: Uint8Array): { offset: bigint; length: bigint } {
  const view = new DataView(data.buffer, data.byteOffset, CRYPTO_HEADER_LENGTH);
  return { offset: view.getBigUint64(0), length: view.getBigUint64(8) };
}

export function encodeCryptoHeader({
  offset,
  length,
}: {
  readonly offset: bigint;
  readonly length: bigint;
}): Uint8Array {
  const data = new Uint8Array(CRYPTO_HEADER_LENGTH);
  const view = new DataView(data.buffer);
  view.setBigUint64(0, offset);
  view.setBigUint64(8, length);
  return data;
}

/** Bytes that the extensions take with their end mark. */
export function extensionsLength(extensions: readonly HeaderExtension[]): number {
  return extensions.reduce(
    (sum, { data }) => sum + HEAD_LENGTH + roundUp8(data.byteLength),
    HEAD_LENGTH,
  );
}

/** Extensions and their end mark as bytes. */
export function encodeExtensions(extensions: readonly HeaderExtension[]): Uint8Array {
  const bytes = new Uint8Array(extensionsLength(extensions));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const { type, data } of extensions) {
    view.setUint32(at, type);
    view.setUint32(at + 4, data.byteLength);
    bytes.set(data, at + HEAD_LENGTH);
    at += HEAD_LENGTH + roundUp8(data.byteLength);
  }
  return bytes;
}

const roundUp8 = (length: number): number => Math.ceil(length / 8) * 8;

/** Which of the three bitmaps of features a name is for. */
export const FEATURE_KINDS = ['incompatible', 'compatible', 'autoclear'] as const;
export type FeatureKind = (typeof FEATURE_KINDS)[number];

export interface FeatureName {
  readonly kind: FeatureKind;
  readonly bit: number;
  readonly name: string;
}

/** The names that we and QEMU write into new images. */
export const QCOW2_FEATURE_NAMES: readonly FeatureName[] = [
  { kind: 'incompatible', bit: 0, name: 'dirty bit' },
  { kind: 'incompatible', bit: 1, name: 'corrupt bit' },
  { kind: 'incompatible', bit: 2, name: 'external data file' },
  { kind: 'incompatible', bit: 3, name: 'compression type' },
  { kind: 'incompatible', bit: 4, name: 'extended L2 entries' },
  { kind: 'compatible', bit: 0, name: 'lazy refcounts' },
  { kind: 'autoclear', bit: 0, name: 'bitmaps' },
  { kind: 'autoclear', bit: 1, name: 'raw external data' },
];

/** Rows of a feature name table; a row of an unknown kind and a torn last row are left out. */
export function decodeFeatureNames(data: Uint8Array): FeatureName[] {
  const names: FeatureName[] = [];
  for (let at = 0; at + FEATURE_LENGTH <= data.byteLength; at += FEATURE_LENGTH) {
    const kind = FEATURE_KINDS[data[at] ?? 0xff];
    if (kind === undefined) continue;
    const raw = data.subarray(at + 2, at + FEATURE_LENGTH);
    const end = raw.indexOf(0);
    const text = end === -1 ? raw : raw.subarray(0, end);
    names.push({ kind, bit: data[at + 1] ?? 0, name: new TextDecoder().decode(text) });
  }
  return names;
}

/** @throws RangeError when a name is longer than 46 bytes */
export function encodeFeatureNames(names: readonly FeatureName[]): Uint8Array {
  const bytes = new Uint8Array(names.length * FEATURE_LENGTH);
  names.forEach(({ kind, bit, name }, index) => {
    const text = new TextEncoder().encode(name);
    if (text.byteLength > NAME_LENGTH) throw new RangeError(`feature name '${name}' is too long`);
    const at = index * FEATURE_LENGTH;
    bytes[at] = FEATURE_KINDS.indexOf(kind);
    bytes[at + 1] = bit;
    bytes.set(text, at + 2);
  });
  return bytes;
}
