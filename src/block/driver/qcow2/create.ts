// SPDX-License-Identifier: MIT
/** New images. The smallest image there is is written, then opened and brought to its size. */
import { highWord, lowWord } from '../../../../protocol/qcow2/entries.js';
import {
  encodeFeatureNames,
  type HeaderExtension,
  QCOW2_EXT_BACKING_FORMAT,
  QCOW2_EXT_DATA_FILE,
  QCOW2_EXT_FEATURE_TABLE,
  QCOW2_FEATURE_NAMES,
} from '../../../../protocol/qcow2/extensions.js';
import {
  QCOW2_AUTOCLEAR_DATA_FILE_RAW,
  QCOW2_BACKING_NAME_MAX,
  QCOW2_COMPAT_LAZY_REFCOUNTS,
  QCOW2_COMPRESSION_ZLIB,
  QCOW2_COMPRESSION_ZSTD,
  QCOW2_HEADER_LENGTH,
  QCOW2_HEADER_V2_LENGTH,
  QCOW2_INCOMPAT_COMPRESSION,
  QCOW2_INCOMPAT_DATA_FILE,
  QCOW2_INCOMPAT_EXTL2,
  type Qcow2Header,
} from '../../../../protocol/qcow2/header.js';
import { setRefcount } from '../../../../protocol/qcow2/refcounts.js';
import { isPowerOfTwo } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import { KIB, MIB } from '../../../base/limits.js';
import type { PreallocationMode } from '../../block-driver.js';
import { codecFor } from './codec.js';
import {
  type NewEncryption,
  type PreparedEncryption,
  prepareEncryption,
  setUpEncryption,
} from './create-encryption.js';
import { layOut } from './header-state.js';
import { Qcow2Image } from './image.js';
import type { ImageIo } from './image-io.js';
import { readHead, readTables } from './open.js';
import { parseQcow2Options } from './options.js';
import { resizeGuest } from './resize.js';

/** @see qapi BlockdevCreateOptionsQcow2 */
export interface Qcow2CreateOptions {
  /** Virtual size, bytes, a multiple of 512. */
  readonly size: number;
  /** Default: 'v3'. */
  readonly version?: 'v2' | 'v3';
  /** Bytes, a power of two from 512 to 2 MiB. Default: 64 KiB. */
  readonly clusterSize?: number;
  /** Width of counts in bits, a power of two up to 64. Default: 16. */
  readonly refcountBits?: number;
  readonly lazyRefcounts?: boolean;
  readonly extendedL2?: boolean;
  /** As it is to stand in the image. */
  readonly backingFile?: string;
  readonly backingFormat?: string;
  /** Holds the guest's data; `dataFileName` is what the image says of where it is. */
  readonly dataFile?: ImageIo;
  readonly dataFileName?: string;
  readonly dataFileRaw?: boolean;
  /** Default: 'off'. */
  readonly preallocation?: PreallocationMode;
  /** Default: 'zlib'. */
  readonly compressionType?: 'zlib' | 'zstd';
  /** How the data is to be encrypted; absent: not at all. */
  readonly encryption?: NewEncryption;
  /** Gives up; what has been made by then is no use. */
  readonly signal?: AbortSignal;
}

/**
 * Makes an image of `io`, whose content is lost.
 * @throws BlockError DF_INVALID in QEMU's words, and what `io` says
 */
export async function createQcow2(io: ImageIo, options: Qcow2CreateOptions): Promise<void> {
  checkCreateOptions(options);
  const encryption = await prepareEncryption(options.encryption);
  const header = newHeader(options);
  const { cluster } = layOut(
    {
      header,
      raw: Buffer.alloc(header.headerLength),
      extensions: newExtensions(options),
      backingName: options.backingFile,
    },
    {},
  );
  await empty(io);
  await writeSmallest(io, header, cluster);
  await bringToSize(io, options, encryption);
}

/** A node that can't change its size keeps it; what it holds is overwritten where it matters. */
async function empty(io: ImageIo): Promise<void> {
  try {
    await io.truncate(0, { exact: false, preallocation: 'off' });
  } catch (error) {
    if (!(error instanceof BlockError && error.code === 'DF_NOT_SUPPORTED')) throw error;
  }
}

/** Header, refcount table and one refcount block, a cluster each. */
async function writeSmallest(io: ImageIo, header: Qcow2Header, cluster: Buffer): Promise<void> {
  const clusterSize = cluster.byteLength;
  const table = Buffer.alloc(clusterSize);
  table.writeUInt32BE(highWord(2 * clusterSize), 0);
  table.writeUInt32BE(lowWord(2 * clusterSize), 4);
  const block = Buffer.alloc(clusterSize);
  const view = new DataView(block.buffer, block.byteOffset, clusterSize);
  for (let index = 0; index < 3; index++) setRefcount(view, header.refcountOrder, index, 1);
  await io.write(clusterSize, table);
  await io.write(2 * clusterSize, block);
  await io.flush();
  await io.write(0, cluster);
  await io.flush();
}

async function bringToSize(
  io: ImageIo,
  options: Qcow2CreateOptions,
  encryption: PreparedEncryption | undefined,
): Promise<void> {
  const opened = await readTables(io, await readHead(io), undefined);
  const { geometry } = opened;
  const runtime = parseQcow2Options(
    {},
    { geometry, size: options.size, lazyRefcounts: false, discard: 'ignore' },
  );
  const image = new Qcow2Image(opened, runtime, {
    nodes: { file: () => io, dataFile: () => options.dataFile, backing: () => undefined },
    readOnly: () => false,
    onCorruption: () => undefined,
  });
  if (encryption !== undefined) await setUpEncryption(image, encryption);
  // A raw data file has to hold every cluster at its place.
  const preallocation = options.preallocation ?? 'off';
  await resizeGuest(image, options.size, {
    ...(options.signal === undefined ? {} : { signal: options.signal }),
    exact: true,
    preallocation:
      options.dataFileRaw === true && preallocation === 'off' ? 'metadata' : preallocation,
  });
  await image.metadata.finish();
  await Promise.all([io.flush(), options.dataFile?.flush()]);
}

function newHeader(options: Qcow2CreateOptions): Qcow2Header {
  const { clusterSize = 64 * KIB, refcountBits = 16, version = 'v3' } = options;
  const incompatible =
    (options.dataFile !== undefined ? QCOW2_INCOMPAT_DATA_FILE : 0n) |
    (options.compressionType === 'zstd' ? QCOW2_INCOMPAT_COMPRESSION : 0n) |
    (options.extendedL2 === true ? QCOW2_INCOMPAT_EXTL2 : 0n);
  return {
    version: version === 'v2' ? 2 : 3,
    backingOffset: 0n,
    backingLength: 0,
    clusterBits: Math.log2(clusterSize),
    size: 0n,
    cryptMethod: 0,
    l1Entries: 0,
    l1Offset: 0n,
    refcountTableOffset: BigInt(clusterSize),
    refcountTableClusters: 1,
    snapshotCount: 0,
    snapshotsOffset: 0n,
    incompatible,
    compatible: options.lazyRefcounts === true ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0n,
    autoclear: options.dataFileRaw === true ? QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0n,
    refcountOrder: Math.log2(refcountBits),
    headerLength: version === 'v2' ? QCOW2_HEADER_V2_LENGTH : QCOW2_HEADER_LENGTH,
    compressionType:
      options.compressionType === 'zstd' ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_ZLIB,
  };
}

function newExtensions(options: Qcow2CreateOptions): HeaderExtension[] {
  const text = (type: number, value: string | undefined): HeaderExtension[] =>
    value === undefined ? [] : [{ type, data: Buffer.from(value, 'utf8') }];
  const names =
    options.version === 'v2'
      ? []
      : [{ type: QCOW2_EXT_FEATURE_TABLE, data: encodeFeatureNames(QCOW2_FEATURE_NAMES) }];
  const extensions = [
    ...text(QCOW2_EXT_BACKING_FORMAT, options.backingFormat),
    ...text(QCOW2_EXT_DATA_FILE, options.dataFileName),
  ];
  // The names are for people; in a cluster of 512 bytes there is no room for them.
  return (options.clusterSize ?? 64 * KIB) >= 1 * KIB ? [...extensions, ...names] : extensions;
}

/** @param hasDataFile there will be one */
export function checkCreateOptions(
  options: Qcow2CreateOptions,
  hasDataFile = options.dataFile !== undefined,
): void {
  const { size, clusterSize = 64 * KIB, refcountBits = 16, version = 'v3' } = options;
  if (size % 512 !== 0) throw invalid('Image size must be a multiple of 512 bytes');
  if (!isPowerOfTwo(clusterSize) || clusterSize < 512 || clusterSize > 2 * MIB) {
    throw invalid('Cluster size must be a power of two between 512 and 2048k');
  }
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64) {
    throw invalid('Refcount width must be a power of two and may not exceed 64 bits');
  }
  if (version === 'v2') checkVersion2(options, { refcountBits, hasDataFile });
  if (options.extendedL2 === true && clusterSize < 16 * KIB) {
    throw invalid(
      'Extended L2 entries are only supported with cluster sizes of at least 16384 bytes',
    );
  }
  if (options.compressionType === 'zstd') codecFor(QCOW2_COMPRESSION_ZSTD);
  checkNames(options, { hasDataFile });
}

function checkVersion2(
  options: Qcow2CreateOptions,
  { refcountBits, hasDataFile }: { readonly refcountBits: number; readonly hasDataFile: boolean },
): void {
  const newer = (what: string): BlockError =>
    invalid(`${what} compatibility level 1.1 and above (use version=v3 or greater)`);
  if (refcountBits !== 16) {
    throw invalid(
      'Different refcount widths than 16 bits require compatibility level 1.1 or above ' +
        '(use version=v3 or greater)',
    );
  }
  if (options.lazyRefcounts === true) throw newer('Lazy refcounts only supported with');
  if (options.extendedL2 === true) throw newer('Extended L2 entries are only supported with');
  if (hasDataFile) throw newer('External data files are only supported with');
  if (options.compressionType === 'zstd') {
    throw newer('Non-zlib compression type is only supported with');
  }
}

function checkNames(
  options: Qcow2CreateOptions,
  { hasDataFile }: { readonly hasDataFile: boolean },
): void {
  const { backingFile, preallocation = 'off', extendedL2, dataFileRaw } = options;
  if (backingFile !== undefined && preallocation !== 'off' && extendedL2 !== true) {
    throw invalid(
      'Backing file and preallocation can only be used at the same time if extended_l2 is on',
    );
  }
  if (options.backingFormat !== undefined && backingFile === undefined) {
    throw invalid('Backing format cannot be used without backing file');
  }
  if (dataFileRaw === true && !hasDataFile) throw invalid('data-file-raw requires data-file');
  if (dataFileRaw === true && backingFile !== undefined) {
    throw invalid('Backing file and data-file-raw cannot be used at the same time');
  }
  if (dataFileRaw === true && options.encryption !== undefined) {
    throw invalid('The data of an encrypted image is no raw image: data-file-raw is not possible');
  }
  if (Buffer.byteLength(backingFile ?? '') > QCOW2_BACKING_NAME_MAX) {
    throw invalid('Backing file name too long');
  }
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
