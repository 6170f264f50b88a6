// SPDX-License-Identifier: MIT
/**
 * Reads and checks what an image says of itself. Nothing is taken on trust: sizes are checked before
 * memory is taken, places before they are used.
 */
import { ENTRY_LENGTH } from '../../../../protocol/qcow2/entries.js';
import {
  decodeExtensions,
  decodeFeatureNames,
  type HeaderExtension,
  QCOW2_EXT_BACKING_FORMAT,
  QCOW2_EXT_BITMAPS,
  QCOW2_EXT_FEATURE_TABLE,
} from '../../../../protocol/qcow2/extensions.js';
import {
  decodeQcow2Header,
  QCOW2_AUTOCLEAR_DATA_FILE_RAW,
  QCOW2_BACKING_NAME_MAX,
  QCOW2_CLUSTER_BITS_MAX,
  QCOW2_CLUSTER_BITS_MIN,
  QCOW2_COMPRESSION_ZLIB,
  QCOW2_COMPRESSION_ZSTD,
  QCOW2_EXTL2_CLUSTER_BITS_MIN,
  QCOW2_HEADER_LENGTH,
  QCOW2_HEADER_V3_LENGTH,
  QCOW2_INCOMPAT_COMPRESSION,
  QCOW2_INCOMPAT_DATA_FILE,
  QCOW2_INCOMPAT_EXTL2,
  QCOW2_INCOMPAT_KNOWN,
  QCOW2_L1_TABLE_MAX,
  QCOW2_REFCOUNT_ORDER_MAX,
  QCOW2_REFCOUNT_TABLE_MAX,
  QCOW2_SNAPSHOTS_MAX,
  type Qcow2Header,
} from '../../../../protocol/qcow2/header.js';
import { BlockError, type ErrorCode, toError } from '../../../base/errors.js';
import { NODE_SIZE_MAX } from '../../../base/limits.js';
import { checkCryptoExtension, type ImageEncryption } from './encryption.js';
import { type Geometry, geometryOf } from './geometry.js';
import type { HeaderContent } from './header-state.js';
import { type ReadableIo, readPadded } from './image-io.js';
import { EntryTable, L1Table } from './l1-table.js';

/** Virtual sizes are counted in these, bytes. */
const SECTOR = 512;

/** The first cluster of an image, checked. */
export interface ImageHead {
  readonly content: HeaderContent;
  readonly geometry: Geometry;
  /** Virtual size, bytes. */
  readonly size: number;
  /** Format of the backing file, where the image names it. */
  readonly backingFormat: string | undefined;
}

export interface OpenedImage extends ImageHead {
  readonly encryption: ImageEncryption | undefined;
  readonly l1: L1Table;
  readonly refcountTable: EntryTable;
}

/**
 * Reads and checks header, extensions and the backing file's name.
 * @param options.snapshots 'unchecked' for who looks himself where the snapshot table is, and how long
 * @throws BlockError in QEMU's words, DF_NOT_SUPPORTED for what we have not learned
 */
export async function readHead(
  file: ReadableIo,
  { snapshots = 'checked' }: { readonly snapshots?: 'checked' | 'unchecked' } = {},
): Promise<ImageHead> {
  const first = Buffer.alloc(QCOW2_HEADER_LENGTH);
  await readPadded(file, 0, first);
  const header = decodeQcow2Header(first);
  if (header === undefined) throw invalid('Image is not in qcow2 format');
  checkVersion(header);
  const cluster = Buffer.alloc(2 ** header.clusterBits);
  await readPadded(file, 0, cluster);
  checkFeatures(header, cluster);
  checkFields(header);
  if (snapshots === 'checked') checkSnapshotTable(header);
  const extensions = readExtensions(header, cluster);
  checkCryptoExtension(header.cryptMethod, extensions);
  const content: HeaderContent = {
    header,
    raw: Buffer.from(cluster.subarray(0, header.headerLength)),
    extensions,
    backingName: readBackingName(header, cluster),
  };
  const format = extensions.find(({ type }) => type === QCOW2_EXT_BACKING_FORMAT);
  return {
    content,
    geometry: geometryOf(header),
    size: Number(header.size) - (Number(header.size) % SECTOR),
    backingFormat: format === undefined ? undefined : Buffer.from(format.data).toString('utf8'),
  };
}

/**
 * Reads the tables that stay in memory.
 * @param encryption what `unlock` said of the image
 * @throws BlockError as `readHead`
 */
export async function readTables(
  file: ReadableIo,
  head: ImageHead,
  encryption: ImageEncryption | undefined,
): Promise<OpenedImage> {
  const { header } = head.content;
  const { geometry } = head;
  const l1Length = header.l1Entries * ENTRY_LENGTH;
  const l1 = Buffer.alloc(l1Length);
  const l1Offset = Number(header.l1Offset);
  if (l1Length > 0) await readPadded(file, l1Offset, l1);
  const table = Buffer.alloc(header.refcountTableClusters * geometry.clusterSize);
  const tableOffset = Number(header.refcountTableOffset);
  await readPadded(file, tableOffset, table);
  return {
    ...head,
    encryption,
    l1: new L1Table(l1Offset, l1),
    refcountTable: new EntryTable(tableOffset, table),
  };
}

function checkVersion(header: Qcow2Header): void {
  const { version, clusterBits, headerLength, backingOffset } = header;
  if (version < 2 || version > 3) throw unsupported(`Unsupported qcow2 version ${version}`);
  if (clusterBits < QCOW2_CLUSTER_BITS_MIN || clusterBits > QCOW2_CLUSTER_BITS_MAX) {
    throw invalid(`Unsupported cluster size: 2^${clusterBits}`);
  }
  if (version >= 3 && headerLength < QCOW2_HEADER_V3_LENGTH)
    throw invalid('qcow2 header too short');
  if (headerLength > 2 ** clusterBits) throw invalid('qcow2 header exceeds cluster size');
  if (backingOffset > 2n ** BigInt(clusterBits)) throw invalid('Invalid backing file offset');
}

function checkFeatures(header: Qcow2Header, cluster: Buffer): void {
  const unknown = header.incompatible & ~QCOW2_INCOMPAT_KNOWN;
  if (unknown !== 0n) {
    throw unsupported(`Unsupported qcow2 feature(s): ${featureNames(header, cluster, unknown)}`);
  }
  const { compressionType } = header;
  const marked = (header.incompatible & QCOW2_INCOMPAT_COMPRESSION) !== 0n;
  if (compressionType !== QCOW2_COMPRESSION_ZLIB && compressionType !== QCOW2_COMPRESSION_ZSTD) {
    throw unsupported(`qcow2: unknown compression type: ${compressionType}`);
  }
  if (compressionType === QCOW2_COMPRESSION_ZLIB && marked) {
    throw invalid('qcow2: Compression type incompatible feature bit must not be set');
  }
  if (compressionType !== QCOW2_COMPRESSION_ZLIB && !marked) {
    throw invalid('qcow2: Compression type incompatible feature bit must be set');
  }
}

/** By name where the image has a table of names, else by number. */
function featureNames(header: Qcow2Header, cluster: Buffer, bits: bigint): string {
  let names: ReturnType<typeof decodeFeatureNames> = [];
  try {
    const table = readExtensions(header, cluster).find(
      ({ type }) => type === QCOW2_EXT_FEATURE_TABLE,
    );
    if (table !== undefined) names = decodeFeatureNames(table.data);
  } catch {
    // Without names, then: the unknown feature is what has to be told.
  }
  const texts: string[] = [];
  let rest = bits;
  for (const { kind, bit, name } of names) {
    if (kind !== 'incompatible' || bit > 63 || ((rest >> BigInt(bit)) & 1n) === 0n) continue;
    texts.push(name);
    rest &= ~(1n << BigInt(bit));
  }
  if (rest !== 0n) texts.push(`Unknown incompatible feature: ${rest.toString(16)}`);
  return texts.join(', ');
}

function checkFields(header: Qcow2Header): void {
  const { clusterBits, refcountOrder, size } = header;
  const extended = (header.incompatible & QCOW2_INCOMPAT_EXTL2) !== 0n;
  if (extended && clusterBits < QCOW2_EXTL2_CLUSTER_BITS_MIN) {
    throw invalid(`Unsupported subcluster size: ${2 ** (clusterBits - 5)}`);
  }
  if (refcountOrder > QCOW2_REFCOUNT_ORDER_MAX) {
    throw invalid('Reference count entry width too large; may not exceed 64 bits');
  }
  const external = (header.incompatible & QCOW2_INCOMPAT_DATA_FILE) !== 0n;
  if (!external && (header.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) !== 0n) {
    throw invalid('data-file-raw requires a data file');
  }
  if (size > BigInt(NODE_SIZE_MAX)) throw tooLarge('Image is too big');
  checkTables(header);
}

function checkTables(header: Qcow2Header): void {
  const { clusterBits, l1Entries, refcountTableClusters } = header;
  if (refcountTableClusters === 0) throw invalid('Image does not contain a reference count table');
  const clusterSize = 2 ** clusterBits;
  checkTable('Reference count table', header.refcountTableOffset, {
    clusterSize,
    length: refcountTableClusters * clusterSize,
    max: QCOW2_REFCOUNT_TABLE_MAX,
  });
  const length = l1Entries * ENTRY_LENGTH;
  checkTable('Active L1 table', header.l1Offset, { clusterSize, length, max: QCOW2_L1_TABLE_MAX });
  const needed = Math.ceil(Number(header.size) / geometryOf(header).bytesPerL2);
  if (l1Entries < needed) throw invalid('L1 table is too small');
}

function checkSnapshotTable({ clusterBits, snapshotCount, snapshotsOffset }: Qcow2Header): void {
  checkTable('Snapshot table', snapshotsOffset, {
    clusterSize: 2 ** clusterBits,
    length: snapshotCount,
    max: QCOW2_SNAPSHOTS_MAX,
  });
}

function checkTable(
  name: string,
  offset: bigint,
  { clusterSize, length, max }: { clusterSize: number; length: number; max: number },
): void {
  if (length > max) throw tooLarge(`${name} too large`);
  if (offset % BigInt(clusterSize) !== 0n || offset > BigInt(NODE_SIZE_MAX - length)) {
    throw invalid(`${name} offset invalid`);
  }
}

function readExtensions(header: Qcow2Header, cluster: Buffer): HeaderExtension[] {
  const end = header.backingOffset === 0n ? cluster.byteLength : Number(header.backingOffset);
  if (end <= header.headerLength) return [];
  let extensions: HeaderExtension[];
  try {
    extensions = decodeExtensions(cluster.subarray(header.headerLength, end));
  } catch (error) {
    throw invalid(toError(error).message);
  }
  for (const { type, data } of extensions) {
    if (type === QCOW2_EXT_BITMAPS && data.byteLength !== 24) {
      throw invalid(`bitmaps_ext: Invalid extension length`);
    }
  }
  return extensions;
}

function readBackingName(header: Qcow2Header, cluster: Buffer): string | undefined {
  const { backingOffset, backingLength } = header;
  if (backingOffset === 0n) return undefined;
  const at = Number(backingOffset);
  if (backingLength > Math.min(QCOW2_BACKING_NAME_MAX, cluster.byteLength - at)) {
    throw invalid('Backing file name too long');
  }
  const name = cluster.subarray(at, at + backingLength).toString('utf8');
  // The operating system would take it for the end of the name, as QEMU does.
  const end = name.indexOf('\0');
  return end === -1 ? name : name.slice(0, end);
}

const error = (code: ErrorCode, message: string): BlockError => new BlockError(code, message);
const invalid = (message: string): BlockError => error('DF_INVALID', message);
const unsupported = (message: string): BlockError => error('DF_NOT_SUPPORTED', message);
const tooLarge = (message: string): BlockError => error('DF_TOO_LARGE', message);
