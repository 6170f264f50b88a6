// SPDX-License-Identifier: MIT
/** The header of an image: its first bytes. @see qcow2.txt "Header" */
import { Struct } from '../layout.js';

export const QCOW2_MAGIC = 0x514649fb; // "QFI\xfb"
/** Bytes of the header in version 2, and the first part of it in version 3. */
export const QCOW2_HEADER_V2_LENGTH = 72;
/** Bytes of the fixed part in version 3. */
export const QCOW2_HEADER_V3_LENGTH = 104;
/** Bytes of the header that we write in version 3: with compression type and padding. */
export const QCOW2_HEADER_LENGTH = 112;

/** Incompatible features: who does not know one must not open the image. */
export const QCOW2_INCOMPAT_DIRTY = 1n << 0n;
export const QCOW2_INCOMPAT_CORRUPT = 1n << 1n;
export const QCOW2_INCOMPAT_DATA_FILE = 1n << 2n;
export const QCOW2_INCOMPAT_COMPRESSION = 1n << 3n;
export const QCOW2_INCOMPAT_EXTL2 = 1n << 4n;
export const QCOW2_INCOMPAT_KNOWN = 0x1fn;

/** Compatible features: may be ignored. */
export const QCOW2_COMPAT_LAZY_REFCOUNTS = 1n << 0n;

/** Auto-clear features: who does not keep one up clears its bit before it writes. */
export const QCOW2_AUTOCLEAR_BITMAPS = 1n << 0n;
export const QCOW2_AUTOCLEAR_DATA_FILE_RAW = 1n << 1n;

/** Compression of compressed clusters. */
export const QCOW2_COMPRESSION_ZLIB = 0;
export const QCOW2_COMPRESSION_ZSTD = 1;

/** Encryption of guest data. */
export const QCOW2_CRYPT_NONE = 0;
export const QCOW2_CRYPT_AES = 1;
export const QCOW2_CRYPT_LUKS = 2;

export const QCOW2_CLUSTER_BITS_MIN = 9;
export const QCOW2_CLUSTER_BITS_MAX = 21;
/** Bytes of an extended L2 entry's smallest cluster, as a power of two: 32 subclusters of 512. */
export const QCOW2_EXTL2_CLUSTER_BITS_MIN = 14;
export const QCOW2_REFCOUNT_ORDER_MAX = 6;
/** Longest name of a backing file, bytes. */
export const QCOW2_BACKING_NAME_MAX = 1023;
/** QEMU's limits, bytes; larger tables are refused before memory is taken for them. */
export const QCOW2_L1_TABLE_MAX = 32 * 1024 * 1024;
export const QCOW2_REFCOUNT_TABLE_MAX = 8 * 1024 * 1024;
export const QCOW2_SNAPSHOTS_MAX = 65536;

/** The fields of both versions. */
export const QCOW2_HEADER_V2 = new Struct('qcow2 header', QCOW2_HEADER_V2_LENGTH, {
  magic: 'u32',
  version: 'u32', // 2 or 3
  backingOffset: 'u64', // of the backing file's name, bytes; 0: none
  backingLength: 'u32', // bytes
  clusterBits: 'u32',
  size: 'u64', // virtual size, bytes
  cryptMethod: 'u32', // QCOW2_CRYPT_*
  l1Entries: 'u32',
  l1Offset: 'u64',
  refcountTableOffset: 'u64',
  refcountTableClusters: 'u32',
  snapshotCount: 'u32',
  snapshotsOffset: 'u64',
});

/** What version 3 adds, from byte 72 on. */
export const QCOW2_HEADER_V3 = new Struct('qcow2 header, version 3', 32, {
  incompatible: 'u64', // QCOW2_INCOMPAT_*
  compatible: 'u64', // QCOW2_COMPAT_*
  autoclear: 'u64', // QCOW2_AUTOCLEAR_*
  refcountOrder: 'u32',
  headerLength: 'u32', // bytes, a multiple of 8
});

/** All header fields; those that version 2 lacks have the values that it implies. */
export interface Qcow2Header {
  readonly version: number;
  readonly backingOffset: bigint;
  readonly backingLength: number;
  readonly clusterBits: number;
  readonly size: bigint;
  readonly cryptMethod: number;
  readonly l1Entries: number;
  readonly l1Offset: bigint;
  readonly refcountTableOffset: bigint;
  readonly refcountTableClusters: number;
  readonly snapshotCount: number;
  readonly snapshotsOffset: bigint;
  readonly incompatible: bigint;
  readonly compatible: bigint;
  readonly autoclear: bigint;
  readonly refcountOrder: number;
  readonly headerLength: number;
  readonly compressionType: number;
}

/** Offset of the byte that tells the compression type. */
const COMPRESSION_TYPE_AT = 104;

/**
 * Takes the fields out of the first bytes of an image. Only the magic is checked here.
 * @param bytes at least 112; what lies past the end of a shorter file counts as zeroes
 * @returns undefined when this is no qcow2 image
 */
export function decodeQcow2Header(bytes: Uint8Array): Qcow2Header | undefined {
  const { magic, ...base } = QCOW2_HEADER_V2.decode(bytes);
  if (magic !== QCOW2_MAGIC) return undefined;
  if (base.version < 3) {
    return {
      ...base,
      incompatible: 0n,
      compatible: 0n,
      autoclear: 0n,
      refcountOrder: 4,
      headerLength: QCOW2_HEADER_V2_LENGTH,
      compressionType: QCOW2_COMPRESSION_ZLIB,
    };
  }
  const added = QCOW2_HEADER_V3.decode(bytes.subarray(QCOW2_HEADER_V2_LENGTH));
  const compressionType =
    added.headerLength > COMPRESSION_TYPE_AT ? (bytes[COMPRESSION_TYPE_AT] ?? 0) : 0;
  return { ...base, ...added, compressionType };
}

/** Writes the fields over the first bytes of `target`; unknown fields past them are left alone. */
export function encodeQcow2Header(header: Qcow2Header, target: Uint8Array): void {
  QCOW2_HEADER_V2.encode({ ...header, magic: QCOW2_MAGIC }, target);
  if (header.version < 3) return;
  QCOW2_HEADER_V3.encode(header, target.subarray(QCOW2_HEADER_V2_LENGTH));
  if (header.headerLength > COMPRESSION_TYPE_AT) {
    target[COMPRESSION_TYPE_AT] = header.compressionType;
  }
}
