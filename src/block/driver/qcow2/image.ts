// SPDX-License-Identifier: MIT
/**
 * An open qcow2 image: what all its parts share. The parts are one subject a file: `cluster-map` finds,
 * `refcounts` counts, `metadata-writer` makes changes last, `read`, `write`, `zero`, `discard`, `status`
 * and `resize` carry out requests.
 */
import type { StoredBitmap } from '../../../../protocol/qcow2/bitmaps.js';
import {
  QCOW2_AUTOCLEAR_DATA_FILE_RAW,
  QCOW2_INCOMPAT_CORRUPT,
  QCOW2_INCOMPAT_DATA_FILE,
} from '../../../../protocol/qcow2/header.js';
import { BufferPool } from '../../../base/buffer-pool.js';
import { BlockError } from '../../../base/errors.js';
import { QCOW2_SCRATCH_IDLE_MAX } from '../../../base/limits.js';
import { Mutex } from '../../../base/mutex.js';
import { RangeLock } from '../../../base/range-lock.js';
import type { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import { ClusterMap } from './cluster-map.js';
import { type ClusterCodec, codecFor } from './codec.js';
import { CompressedSpace } from './compressed-space.js';
import { DecompressedClusters } from './decompressed-clusters.js';
import type { ImageEncryption } from './encryption.js';
import type { Geometry } from './geometry.js';
import type { GuestCipher } from './guest-cipher.js';
import { HeaderState } from './header-state.js';
import type { BackingIo, ImageIo } from './image-io.js';
import { L1Table } from './l1-table.js';
import { MetadataWriter } from './metadata-writer.js';
import type { OpenedImage } from './open.js';
import type { Qcow2Options } from './options.js';
import type { OverlapGuard } from './overlap.js';
import { PendingFrees } from './pending-frees.js';
import { Refcounts } from './refcounts.js';
import { TableCache } from './table-cache.js';

/** The nodes that an image lies on; asked for anew with each use, because edges can be replaced. */
export interface ImageNodes {
  file(): ImageIo;
  /** The external data file; undefined: guest data is in the image file. */
  dataFile(): ImageIo | undefined;
  backing(): BackingIo | undefined;
}

/** @see qapi BLOCK_IMAGE_CORRUPTED */
export interface Corruption {
  readonly message: string;
  /** Host bytes that the trouble is about. */
  readonly offset?: number;
  readonly size?: number;
  /** The image can not be used any more. */
  readonly fatal: boolean;
}

export interface ImageContext {
  readonly nodes: ImageNodes;
  /** Nothing may be changed, not even a mark that the image is corrupt. */
  readonly readOnly: () => boolean;
  readonly onCorruption: (corruption: Corruption) => void;
}

export class Qcow2Image {
  readonly geometry: Geometry;
  readonly header: HeaderState;
  readonly context: ImageContext;
  readonly hasDataFile: boolean;
  readonly l2: TableCache;
  readonly refcountCache: TableCache;
  readonly refcounts: Refcounts;
  readonly map: ClusterMap;
  readonly metadata: MetadataWriter;
  readonly frees = new PendingFrees();
  readonly codec: ClusterCodec;
  /** Memory for compressed data on its way. */
  readonly scratch = new BufferPool({ idleMax: QCOW2_SCRATCH_IDLE_MAX });
  readonly decompressed: DecompressedClusters;
  /** Where the next compressed cluster goes. */
  readonly compressedSpace: CompressedSpace;
  /** For who allocates or frees host clusters. Nothing that waits for `metadata.commit` may hold it. */
  readonly allocation = new Mutex();
  /** Guest ranges, whole clusters, for who gives them other host clusters. */
  readonly clusterLock = new RangeLock();
  /** Requests to host clusters that are under way: these must not be given to others meanwhile. */
  readonly hostIo = new Set<Promise<unknown>>();
  options: Qcow2Options;
  /** Undefined: the guest's data lies in the file as it is. */
  encryption: ImageEncryption | undefined;
  /** Virtual size, bytes. */
  size: number;
  /** Host bytes from here on were never written: they read as zeroes. */
  freshFrom: number;
  /** What the directory of bitmaps says; empty: there is none that is valid. */
  storedBitmaps: readonly StoredBitmap[] = [];
  /** The node's bitmaps as they were loaded or stored last. A job may put another in one's place. */
  loadedBitmaps: ReadonlySet<DirtyBitmap> = new Set();
  /** Present from the first change on. */
  guard: OverlapGuard | undefined;
  /** Why the image can't be used any more. */
  #dead: BlockError | undefined;
  #reported = false;
  #marking: Promise<void> | undefined;

  /** @throws BlockError DF_NOT_SUPPORTED when nothing on this machine can decompress its clusters */
  constructor(opened: OpenedImage, options: Qcow2Options, context: ImageContext) {
    const { geometry } = opened;
    this.geometry = geometry;
    this.context = context;
    this.options = options;
    this.size = opened.size;
    this.encryption = opened.encryption;
    this.freshFrom = context.nodes.file().size;
    this.header = new HeaderState(opened.content, () => this.file);
    this.hasDataFile = (opened.content.header.incompatible & QCOW2_INCOMPAT_DATA_FILE) !== 0n;
    const corrupt = (message: string): never => this.corrupt({ message, fatal: true });
    this.l2 = new TableCache({
      file: () => this.file,
      tableLength: options.sliceLength,
      tablesMax: options.l2Slices,
      writeBack: () => this.metadata.commit(),
    });
    this.refcountCache = new TableCache({
      file: () => this.file,
      tableLength: geometry.clusterSize,
      tablesMax: options.refcountBlocks,
      writeBack: () => this.metadata.writeRefcounts(),
    });
    this.metadata = new MetadataWriter(this);
    this.refcounts = new Refcounts(
      {
        geometry,
        cache: this.refcountCache,
        corrupt,
        replaceTable: (table) => this.metadata.replaceRefcountTable(table),
        tableReplaced: () => this.guard?.refresh(),
        blockAdded: (offset) => this.guard?.add('refcount-block', offset),
        lowered: (run) => this.compressedSpace.forget(run),
      },
      opened.refcountTable,
    );
    this.map = new ClusterMap(
      {
        geometry,
        cache: this.l2,
        sliceLength: options.sliceLength,
        dataFile: this.hasDataFile,
        corrupt,
      },
      new L1Table(opened.l1.offset, opened.l1.bytes),
    );
    this.codec = codecFor(this.header.header.compressionType);
    this.decompressed = new DecompressedClusters(geometry.clusterSize);
    this.compressedSpace = new CompressedSpace(this);
  }

  get file(): ImageIo {
    return this.context.nodes.file();
  }

  /** Where guest data is. */
  get data(): ImageIo {
    return this.context.nodes.dataFile() ?? this.context.nodes.file();
  }

  get backing(): BackingIo | undefined {
    return this.context.nodes.backing();
  }

  /** For an encrypted image. @throws BlockError DF_ACCESS when it was opened without its key */
  get cipher(): GuestCipher {
    const cipher = this.encryption?.cipher;
    if (cipher !== undefined) return cipher;
    throw new BlockError('DF_ACCESS', 'The image is encrypted and was opened without its key');
  }

  /** The data file is to be readable as a raw image by itself. */
  get dataFileRaw(): boolean {
    return (this.header.header.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) !== 0n;
  }

  get corruptBit(): boolean {
    return (this.header.header.incompatible & QCOW2_INCOMPAT_CORRUPT) !== 0n;
  }

  /** @throws BlockError DF_CORRUPT_IMAGE when the image has been found to be unusable */
  checkUsable(): void {
    if (this.#dead !== undefined) throw this.#dead;
  }

  /** Keeps host clusters from being reused while `pending` may still read or write them. */
  track<T>(pending: Promise<T>): Promise<T> {
    this.hostIo.add(pending);
    const done = (): void => {
      this.hostIo.delete(pending);
    };
    pending.then(done, done);
    return pending;
  }

  /**
   * Reports the image as corrupt, marks it so when it is written to, and throws.
   * @throws BlockError DF_CORRUPT_IMAGE, always
   */
  corrupt(corruption: Corruption): never {
    const error = new BlockError('DF_CORRUPT_IMAGE', corruption.message);
    const fatal = corruption.fatal && !this.context.readOnly();
    if (this.#dead !== undefined) throw error;
    if (!this.#reported || fatal) this.context.onCorruption({ ...corruption, fatal });
    this.#reported = true;
    if (fatal) {
      this.#dead = error;
      this.#mark();
    }
    throw error;
  }

  /** Only version 3 has the mark. That it can't be written changes nothing for us. */
  #mark(): void {
    if (this.geometry.version < 3) return;
    const incompatible = this.header.header.incompatible | QCOW2_INCOMPAT_CORRUPT;
    this.#marking = this.header.update({ incompatible }).catch(() => undefined);
  }

  /** Fulfilled when a mark of corruption has reached the file, if there is one to write. */
  whenMarked(): Promise<void> | undefined {
    return this.#marking;
  }

  /** @throws BlockError DF_CORRUPT_IMAGE when the bytes belong to the image's own structures */
  checkOverlap(offset: number, length: number): void {
    const what = this.guard?.find(offset, length);
    if (what === undefined) return;
    this.corrupt({
      message: `Preventing invalid write on metadata (overlaps with ${what})`,
      offset,
      size: length,
      fatal: true,
    });
  }
}
