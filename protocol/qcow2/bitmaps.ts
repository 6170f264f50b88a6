// SPDX-License-Identifier: MIT
/** Stored dirty bitmaps: extension, directory, tables. @see qcow2.txt "Bitmaps extension", "Bitmaps" */
import { Struct } from '../layout.js';

/** Data of the header extension QCOW2_EXT_BITMAPS. */
export const QCOW2_BITMAPS_EXTENSION = new Struct('qcow2 bitmaps extension', 24, {
  count: 'u32',
  reserved: 'u32', // 0
  directoryLength: 'u64', // bytes
  directoryOffset: 'u64',
});

/** The fixed part of a bitmap's entry; extra data and name follow, padded to 8 bytes. */
export const QCOW2_BITMAP_ENTRY = new Struct('qcow2 bitmap', 24, {
  tableOffset: 'u64',
  tableEntries: 'u32',
  flags: 'u32', // QCOW2_BITMAP_*
  type: 'u8', // QCOW2_BITMAP_DIRTY_TRACKING
  granularityBits: 'u8',
  nameLength: 'u16', // bytes
  extraLength: 'u32', // bytes
});

/** The bitmap was not stored when the image was last used: what is stored of it is old. */
export const QCOW2_BITMAP_IN_USE = 1;
/** The bitmap records writes. */
export const QCOW2_BITMAP_AUTO = 2;
const FLAGS_KNOWN = QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO;
const QCOW2_BITMAP_DIRTY_TRACKING = 1;

/** QEMU's limits. */
export const QCOW2_BITMAPS_MAX = 65535;
export const QCOW2_BITMAP_DIRECTORY_MAX = 1024 * QCOW2_BITMAPS_MAX;
/** Clusters of one bitmap take no more than this, bytes. */
export const QCOW2_BITMAP_LENGTH_MAX = 0x2000_0000;
export const QCOW2_BITMAP_TABLE_ENTRIES_MAX = 0x800_0000;
export const QCOW2_BITMAP_NAME_MAX = 1023;
export const QCOW2_BITMAP_GRANULARITY_BITS_MIN = 9;
export const QCOW2_BITMAP_GRANULARITY_BITS_MAX = 31;

/** A row of the directory. Offsets in bytes. */
export interface StoredBitmap {
  readonly name: string;
  readonly tableOffset: number;
  readonly tableEntries: number;
  /** QCOW2_BITMAP_* */
  readonly flags: number;
  readonly granularityBits: number;
}

/** Bytes of the directory entry of a bitmap whose name has so many bytes. */
export function bitmapEntryLength(nameLength: number): number {
  return roundUp8(QCOW2_BITMAP_ENTRY.size + nameLength);
}

/**
 * @param count of bitmaps that the extension tells
 * @throws RangeError in QEMU's words for a directory that is not exactly what it should be
 */
export function decodeBitmapDirectory(
  bytes: Uint8Array,
  { count, clusterSize }: { readonly count: number; readonly clusterSize: number },
): StoredBitmap[] {
  const found: StoredBitmap[] = [];
  for (let at = 0; at < bytes.byteLength; ) {
    if (at + QCOW2_BITMAP_ENTRY.size > bytes.byteLength) throw broken();
    if (found.length === count) {
      throw new RangeError('More bitmaps found than specified in header extension');
    }
    const entry = QCOW2_BITMAP_ENTRY.decode(bytes.subarray(at));
    const nameAt = at + QCOW2_BITMAP_ENTRY.size;
    const next = at + roundUp8(QCOW2_BITMAP_ENTRY.size + entry.nameLength + entry.extraLength);
    if (next > bytes.byteLength) throw broken();
    if (entry.extraLength !== 0) throw new RangeError('Bitmap extra data is not supported');
    found.push(checkedEntry(entry, bytes.subarray(nameAt, nameAt + entry.nameLength), clusterSize));
    at = next;
  }
  if (found.length < count) {
    throw new RangeError('Less bitmaps found than specified in header extension');
  }
  return found;
}

type Entry = ReturnType<typeof QCOW2_BITMAP_ENTRY.decode>;

function checkedEntry(entry: Entry, rawName: Uint8Array, clusterSize: number): StoredBitmap {
  const { tableOffset, tableEntries, flags, type, granularityBits } = entry;
  const name = decodeName(rawName);
  const wrong =
    name === undefined ||
    rawName.byteLength > QCOW2_BITMAP_NAME_MAX ||
    tableEntries === 0 ||
    tableEntries > QCOW2_BITMAP_TABLE_ENTRIES_MAX ||
    tableEntries * clusterSize > QCOW2_BITMAP_LENGTH_MAX ||
    tableOffset === 0n ||
    tableOffset % BigInt(clusterSize) !== 0n ||
    tableOffset > BigInt(Number.MAX_SAFE_INTEGER) ||
    granularityBits < QCOW2_BITMAP_GRANULARITY_BITS_MIN ||
    granularityBits > QCOW2_BITMAP_GRANULARITY_BITS_MAX ||
    (flags & ~FLAGS_KNOWN) !== 0 ||
    type !== QCOW2_BITMAP_DIRTY_TRACKING;
  if (wrong) {
    const shown = new TextDecoder().decode(rawName.subarray(0, QCOW2_BITMAP_NAME_MAX));
    throw new RangeError(`Bitmap '${shown}' doesn't satisfy the constraints`);
  }
  return { name, tableOffset: Number(tableOffset), tableEntries, flags, granularityBits };
}

/** Undefined for what could not be told apart from another name, or written back as it was. */
function decodeName(raw: Uint8Array): string | undefined {
  if (raw.byteLength === 0 || raw.includes(0)) return undefined;
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(raw);
  } catch {
    return undefined;
  }
}

export function encodeBitmapDirectory(bitmaps: readonly StoredBitmap[]): Uint8Array {
  const names = bitmaps.map(({ name }) => new TextEncoder().encode(name));
  const length = names.reduce((sum, name) => sum + bitmapEntryLength(name.byteLength), 0);
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const [index, bitmap] of bitmaps.entries()) {
    const name = names[index] ?? new Uint8Array();
    QCOW2_BITMAP_ENTRY.encode(
      {
        tableOffset: BigInt(bitmap.tableOffset),
        tableEntries: bitmap.tableEntries,
        flags: bitmap.flags,
        type: QCOW2_BITMAP_DIRTY_TRACKING,
        granularityBits: bitmap.granularityBits,
        nameLength: name.byteLength,
        extraLength: 0,
      },
      bytes.subarray(at),
    );
    bytes.set(name, at + QCOW2_BITMAP_ENTRY.size);
    at += bitmapEntryLength(name.byteLength);
  }
  return bytes;
}

/** What a table says of one cluster of a bitmap; host bytes where it is stored. */
export type BitmapCluster = number | 'zeroes' | 'ones';

const RESERVED_MASK = 0xff00_0000_0000_01fen;
const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;

/** @throws RangeError for an entry that the format does not allow */
export function decodeBitmapTable(bytes: Uint8Array, clusterSize: number): BitmapCluster[] {
  const clusters: BitmapCluster[] = [];
  for (let index = 0; (index + 1) * 8 <= bytes.byteLength; index++) {
    const cluster = decodeBitmapTableEntry(bytes, index, clusterSize);
    if (cluster === undefined) {
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      throw new RangeError(`entry ${index} is 0x${view.getBigUint64(index * 8).toString(16)}`);
    }
    clusters.push(cluster);
  }
  return clusters;
}

/** @returns undefined for an entry that the format does not allow */
export function decodeBitmapTableEntry(
  bytes: Uint8Array,
  index: number,
  clusterSize: number,
): BitmapCluster | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entry = view.getBigUint64(index * 8);
  const offset = entry & OFFSET_MASK;
  const wrong =
    (entry & RESERVED_MASK) !== 0n ||
    (offset !== 0n && ((entry & 1n) !== 0n || offset % BigInt(clusterSize) !== 0n));
  if (wrong || offset > BigInt(Number.MAX_SAFE_INTEGER)) return undefined;
  if (offset !== 0n) return Number(offset);
  return (entry & 1n) !== 0n ? 'ones' : 'zeroes';
}

export function encodeBitmapTable(clusters: readonly BitmapCluster[]): Uint8Array {
  const bytes = new Uint8Array(clusters.length * 8);
  const view = new DataView(bytes.buffer);
  for (const [index, cluster] of clusters.entries()) {
    const entry = typeof cluster === 'number' ? BigInt(cluster) : cluster === 'ones' ? 1n : 0n;
    view.setBigUint64(index * 8, entry);
  }
  return bytes;
}

const roundUp8 = (length: number): number => Math.ceil(length / 8) * 8;
const broken = (): RangeError => new RangeError('Broken bitmap directory');
