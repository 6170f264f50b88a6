// SPDX-License-Identifier: MIT
/** `qcow2`: images that grow, with backing files. The work is done by the other files of this folder. */
import { QCOW2_COMPAT_LAZY_REFCOUNTS } from '../../../../protocol/qcow2/header.js';
import { systemClock } from '../../../base/clock.js';
import { BlockError } from '../../../base/errors.js';
import { MIB } from '../../../base/limits.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { Mutex } from '../../../base/mutex.js';
import type { BitmapStore } from '../../bitmap/bitmap-store.js';
import {
  type BackingFile,
  type BlockDriver,
  type BlockLimits,
  DEFAULT_LIMITS,
  type DriverDefinition,
  type DriverFeatures,
  type DriverOptions,
  type Extent,
  type FormatInfo,
  type InternalSnapshots,
  type OpenContext,
  REQ_OFFLOAD,
  REQ_WRITE_COMPRESSED,
  type RequestFlags,
  type TruncateOptions,
} from '../../block-driver.js';
import type { Secrets } from '../../crypto/secrets.js';
import { CRYPTO_SECTOR_SIZE } from '../../crypto/sector-cipher.js';
import type { ChildEdge } from '../../edge.js';
import type { FileRange, RangeUse } from '../../file-range.js';
import { jsonFilename } from '../../filter/pass-through.js';
import type { NodeOptions } from '../../node-options.js';
import { changeBackingFile } from './backing-file.js';
import { bitmapsReplaced, loadBitmaps, persistentBitmaps } from './bitmap-load.js';
import { checkConstraints, checkNewBitmap, removeStored, saveBitmaps } from './bitmap-save.js';
import {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
} from './change-snapshots.js';
import { qcow2Checker } from './check/check.js';
import { qcow2Creation } from './create-options.js';
import { discardGuest, emptyGuest } from './discard.js';
import { checkFormat, unlock } from './encryption.js';
import { formatInfo, specificInfo } from './format-info.js';
import { Qcow2Image } from './image.js';
import { impliedChildren } from './implied-children.js';
import { type OpenedImage, readHead, readTables } from './open.js';
import { parseQcow2Options, type Qcow2Options } from './options.js';
import { prepareWrite } from './prepare-write.js';
import { readGuest, readGuestRange } from './read.js';
import { resizeGuest } from './resize.js';
import { snapshotDisk } from './snapshot-disk.js';
import { statusOf } from './status.js';
import { writeGuest } from './write.js';
import { writeCompressed } from './write-compressed.js';
import { writeGuestFrom } from './write-from.js';
import { zeroGuest } from './zero.js';

const FEATURES: DriverFeatures = {
  fua: false,
  writeZeroes: true,
  discard: true,
  backing: true,
  multiConn: true,
};

const NS_PER_S = 1e9;
/** Bytes that a request to an encrypted image is encrypted into at a time. */
const ENCRYPTED_TRANSFER_MAX = 1 * MIB;

class Qcow2Driver implements BlockDriver {
  readonly name = 'qcow2';
  readonly features = FEATURES;
  readonly limits: BlockLimits;
  /** An image that is marked as corrupt is not written to. */
  readonly readOnly: boolean;
  readonly #context: OpenContext;
  #given: DriverOptions;
  #readOnly: boolean;
  #file: ChildEdge;
  #dataFile: ChildEdge | undefined;
  #backing: ChildEdge | undefined;
  #image: Qcow2Image;
  #next: { given: DriverOptions; options: Qcow2Options; readOnly: boolean } | undefined;
  #stopCleaning: (() => void) | undefined;

  private constructor(
    context: OpenContext,
    given: DriverOptions,
    make: (driver: Qcow2Driver) => Qcow2Image,
  ) {
    this.#context = context;
    this.#given = given;
    this.#readOnly = context.readOnly;
    const { children } = context;
    this.#file = context.child('file');
    this.#dataFile = children['data-file'];
    this.#backing = children.backing;
    this.#image = make(this);
    this.readOnly = this.#image.corruptBit;
    const { clusterSize, subclusterSize } = this.#image.geometry;
    const encrypted = this.#image.encryption !== undefined;
    this.limits = {
      ...DEFAULT_LIMITS,
      ...(encrypted
        ? { requestAlignment: CRYPTO_SECTOR_SIZE, maxTransfer: ENCRYPTED_TRANSFER_MAX }
        : {}),
      optimalTransfer: clusterSize,
      writeZeroesAlignment: subclusterSize,
      // QEMU stores compressed clusters of encrypted images as anybody can read them.
      compressedUnit: this.#image.hasDataFile || encrypted ? 0 : clusterSize,
    };
    this.#startCleaning();
  }

  static async open(
    given: DriverOptions,
    context: OpenContext,
    secrets: Secrets,
  ): Promise<Qcow2Driver> {
    const file = context.child('file');
    const head = await readHead(file);
    const { metadataOnly, signal } = context;
    const encryption = await unlock(file, head, { given, secrets, metadataOnly, signal });
    const opened = await readTables(file, head, encryption);
    const options = optionsFor(given, opened, context.discard);
    const driver = new Qcow2Driver(context, given, (self) => {
      return new Qcow2Image(opened, options, self.#imageContext());
    });
    try {
      driver.#checkOpened();
      await driver.#loadBitmaps();
    } catch (error) {
      await driver.close();
      throw error;
    }
    return driver;
  }

  #loadBitmaps(): Promise<void> {
    const readOnly = this.#readOnly || this.#image.corruptBit;
    return loadBitmaps(this.#image, this.#context.bitmaps, { readOnly });
  }

  /** Bitmaps as they are stored can't be changed until they are ours again. */
  #lockBitmaps({ readOnly }: { readonly readOnly: boolean }): void {
    for (const bitmap of persistentBitmaps(this.#context.bitmaps)) bitmap.readOnly = readOnly;
  }

  readonly bitmapStore: BitmapStore = {
    checkNew: (bitmap) => checkNewBitmap(this.#image, this.#context.bitmaps, bitmap),
    prepareChange: () => prepareWrite(this.#image),
    remove: async (name) => {
      await prepareWrite(this.#image);
      await removeStored(this.#image, name);
    },
  };

  #imageContext(): ConstructorParameters<typeof Qcow2Image>[2] {
    return {
      nodes: {
        file: () => this.#file,
        dataFile: () => this.#dataFile,
        backing: () => this.#backing,
      },
      readOnly: () => this.#readOnly,
      onCorruption: (corruption) => this.#context.imageCorrupted(corruption),
    };
  }

  #checkOpened(): void {
    const image = this.#image;
    if (image.corruptBit && !this.#readOnly && !this.#context.autoReadOnly) {
      throw new BlockError('DF_ACCESS', 'qcow2: Image is corrupt; cannot be opened read/write');
    }
    const { metadataOnly = false } = this.#context;
    if (image.hasDataFile && this.#dataFile === undefined && !metadataOnly) {
      throw new BlockError('DF_INVALID', "'data-file' is required for this image");
    }
    if (!image.hasDataFile && this.#dataFile !== undefined) {
      throw new BlockError(
        'DF_INVALID',
        "'data-file' can only be set for images with an external data file",
      );
    }
  }

  get encrypted(): boolean {
    return this.#image.encryption !== undefined;
  }

  get size(): number {
    return this.#image.size;
  }

  /** Who opens it again needs to know which secret it takes, where that was said. */
  get filename(): string {
    const { encrypt } = this.#given as { readonly encrypt?: { readonly 'key-secret'?: string } };
    const id = encrypt?.['key-secret'];
    if (id === undefined) return this.imageFilename;
    return jsonFilename('qcow2', { file: this.#file }, { 'encrypt.key-secret': id });
  }

  /** The image file's own name, from which a relative backing file starts. */
  get imageFilename(): string {
    return this.#file.node.driver.filename;
  }

  read(offset: number, buffer: Buffer, _flags: RequestFlags): MaybePromise<void> {
    this.#image.checkUsable();
    return readGuest(this.#image, offset, buffer);
  }

  readRange(offset: number, length: number, use: RangeUse): MaybePromise<number> {
    return readGuestRange(this.#image, offset, length, use);
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    this.#image.checkUsable();
    this.#checkEnd(offset, buffer.byteLength);
    if ((flags & REQ_WRITE_COMPRESSED) !== 0) return writeCompressed(this.#image, offset, buffer);
    return writeGuest(this.#image, offset, buffer);
  }

  writeFrom(offset: number, source: FileRange, flags: RequestFlags): MaybePromise<number> {
    if ((flags & REQ_OFFLOAD) === 0) return 0;
    this.#image.checkUsable();
    this.#checkEnd(offset, source.length);
    return writeGuestFrom(this.#image, offset, source);
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    this.#image.checkUsable();
    this.#checkEnd(offset, length);
    return zeroGuest(this.#image, offset, length, flags);
  }

  discard(offset: number, length: number): MaybePromise<void> {
    this.#image.checkUsable();
    this.#checkEnd(offset, length);
    return discardGuest(this.#image, offset, length);
  }

  flush(): MaybePromise<void> {
    this.#image.checkUsable();
    if (this.#image.metadata.clean) return;
    return this.#image.metadata.commit();
  }

  blockStatus(offset: number, length: number): MaybePromise<Extent> {
    this.#image.checkUsable();
    return statusOf(this.#image, this.#dataFile ?? this.#file, offset, length);
  }

  async truncate(size: number, options: TruncateOptions): Promise<void> {
    this.#image.checkUsable();
    for (const bitmap of persistentBitmaps(this.#context.bitmaps)) {
      bitmap.checkUse();
      checkConstraints(this.#image, { granularity: bitmap.granularity, size });
    }
    await resizeGuest(this.#image, size, options);
  }

  /** A parent that may resize may write past the end of a node; here only `truncate` makes room. */
  #checkEnd(offset: number, length: number): void {
    if (offset + length <= this.#image.size) return;
    const message = `${length} bytes at ${offset} reach past the end, ${this.#image.size} bytes`;
    throw new BlockError('DF_OUT_OF_RANGE', message, { offset, length });
  }

  changeBackingFile(backing: BackingFile | undefined): Promise<void> {
    this.#image.checkUsable();
    return changeBackingFile(this.#image.header, backing);
  }

  async makeEmpty(): Promise<void> {
    this.#image.checkUsable();
    await emptyGuest(this.#image);
  }

  formatInfo(): FormatInfo {
    return formatInfo(this.#image, this.imageFilename);
  }

  specificInfo(): Record<string, unknown> {
    return { type: 'qcow2', data: specificInfo(this.#image) };
  }

  /** A list is of one moment: it may be asked for while a snapshot is made. */
  readonly #snapshotLock = new Mutex();

  readonly snapshots: InternalSnapshots = {
    list: () => this.#snapshotLock.run(() => listSnapshots(this.#image)),
    create: (snapshot) => this.#snapshotLock.run(() => createSnapshot(this.#image, snapshot)),
    delete: (snapshot) => this.#snapshotLock.run(() => deleteSnapshot(this.#image, snapshot)),
    apply: async (wanted) => {
      // They would not tell of what becomes different now.
      if (this.#context.bitmaps.bitmaps.size > 0) {
        throw new BlockError('DF_IN_USE', 'Device has active dirty bitmaps');
      }
      await this.#snapshotLock.run(() => applySnapshot(this.#image, wanted));
    },
    show: async ({ id }) => {
      const shown = await snapshotDisk(this.#image, id);
      this.#image = reopened(this.#image, this.#image.options, this.#imageContext(), shown);
    },
  };

  async inactivate(): Promise<void> {
    await this.#settle();
    this.#lockBitmaps({ readOnly: true });
  }

  async #noticeReplaced(): Promise<void> {
    if (this.#readOnly || this.#image.corruptBit) return;
    if (bitmapsReplaced(this.#image, this.#context.bitmaps)) await prepareWrite(this.#image);
  }

  /** Everything that is only in memory goes to the file; the next change gets the image ready anew. */
  async #settle(): Promise<void> {
    const image = this.#image;
    await this.#noticeReplaced();
    if (image.guard !== undefined) {
      await saveBitmaps(image, this.#context.bitmaps);
      await image.metadata.finish();
      image.guard = undefined;
    }
    await this.#file.flush();
  }

  /** Somebody else may have changed everything. */
  async activate(): Promise<void> {
    const head = await readHead(this.#file);
    checkSameMethod(this.#image, head);
    const opened = await readTables(this.#file, head, this.#image.encryption);
    const options = optionsFor(this.#given, opened, this.#context.discard);
    this.#image = new Qcow2Image(opened, options, this.#imageContext());
    this.#checkOpened();
    await this.#loadBitmaps();
  }

  /** @param options the node's new NodeOptions, from blockdev-reopen */
  async prepareReopen(options: unknown): Promise<void> {
    const { given, discard, readOnly } = options as NodeOptions;
    const image = this.#image;
    if (!readOnly && image.corruptBit) {
      throw new BlockError('DF_ACCESS', 'qcow2: Image is corrupt; cannot be opened read/write');
    }
    checkFormat(given, image.header);
    await this.#settle();
    // With everything in the file, the image can be opened anew with other caches.
    const next = parseQcow2Options(given, factsOf(image, discard));
    this.#next = { given, options: next, readOnly };
  }

  commitReopen(): void {
    const next = this.#next;
    if (next === undefined) return;
    this.#next = undefined;
    this.#given = next.given;
    this.#readOnly = next.readOnly;
    this.#image = reopened(this.#image, next.options, this.#imageContext());
    this.#lockBitmaps({ readOnly: next.readOnly });
    this.#startCleaning();
  }

  abortReopen(): void {
    this.#next = undefined;
  }

  childReplaced(key: string, edge: ChildEdge | undefined): void {
    if (key === 'backing') this.#backing = edge;
    else if (key === 'data-file') this.#dataFile = edge;
    else if (key === 'file' && edge !== undefined) this.#file = edge;
  }

  #startCleaning(): void {
    this.#stopCleaning?.();
    this.#stopCleaning = undefined;
    const seconds = this.#image.options.cleanInterval;
    if (seconds === 0) return;
    const clean = (): void => {
      this.#image.l2.trim();
      this.#image.refcountCache.trim();
      this.#stopCleaning = systemClock.startTimer(seconds * NS_PER_S, clean);
    };
    this.#stopCleaning = systemClock.startTimer(seconds * NS_PER_S, clean);
  }

  async close(): Promise<void> {
    this.#stopCleaning?.();
    this.#stopCleaning = undefined;
    const image = this.#image;
    try {
      await image.whenMarked();
      await this.#noticeReplaced();
      if (image.guard === undefined) return;
      await this.#saveBitmapsAtClose();
      await image.metadata.finish();
    } catch {
      // Flushing before the close has told of it; what is missing are counts at most.
    }
  }

  async #saveBitmapsAtClose(): Promise<void> {
    try {
      this.#image.checkUsable();
      await saveBitmaps(this.#image, this.#context.bitmaps);
    } catch (error) {
      const usable = persistentBitmaps(this.#context.bitmaps).some((one) => !one.inconsistent);
      if (!usable) return;
      // In the image they are marked as not stored.
      this.#context.bitmapsLost(error);
    }
  }
}

/** The key is kept; another owner may have changed slots of the header, but not what they give access to. */
function checkSameMethod(
  { header }: Qcow2Image,
  { content }: Awaited<ReturnType<typeof readHead>>,
): void {
  if (content.header.cryptMethod === header.header.cryptMethod) return;
  throw new BlockError('DF_CORRUPT_IMAGE', 'The encryption of the image is another than it was');
}

type Facts = Parameters<typeof parseQcow2Options>[1];

function factsOf(image: Qcow2Image, discard: Facts['discard']): Facts {
  const { geometry, size, header } = image;
  const lazyRefcounts = (header.header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS) !== 0n;
  return { geometry, size, lazyRefcounts, discard };
}

function optionsFor(
  given: DriverOptions,
  { geometry, size, content }: Awaited<ReturnType<typeof readHead>>,
  discard: Facts['discard'],
): Qcow2Options {
  const lazyRefcounts = (content.header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS) !== 0n;
  return parseQcow2Options(given, { geometry, size, lazyRefcounts, discard });
}

/** The same image with other options; nothing of it is only in memory. */
function reopened(
  image: Qcow2Image,
  options: Qcow2Options,
  context: ConstructorParameters<typeof Qcow2Image>[2],
  disk: Pick<OpenedImage, 'l1' | 'size'> = { l1: image.map.l1, size: image.size },
): Qcow2Image {
  const { header, geometry, refcounts } = image;
  const next = new Qcow2Image(
    {
      content: header.content,
      geometry,
      ...disk,
      backingFormat: undefined,
      encryption: image.encryption,
      refcountTable: refcounts.table,
    },
    options,
    context,
  );
  next.storedBitmaps = image.storedBitmaps;
  next.loadedBitmaps = image.loadedBitmaps;
  return next;
}

/** @param secrets where encrypted images find the secret that they name */
export function createQcow2Driver(secrets: Secrets): DriverDefinition {
  return {
    name: 'qcow2',
    kind: 'format',
    children: [
      { key: 'file', role: 'file', required: true },
      { key: 'backing', role: 'backing', required: false },
      { key: 'data-file', role: 'data-file', required: false },
    ],
    open: (options, context) => Qcow2Driver.open(options, context, secrets),
    impliedChildren,
    compresses: true,
    create: qcow2Creation(secrets),
    checker: qcow2Checker,
  };
}
