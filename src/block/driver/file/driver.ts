// SPDX-License-Identifier: MIT
/** `file` and `host_device`: a node's bytes are those of a file or block device of the host. */
import { BlockError } from '../../../base/errors.js';
import { isPromise, type MaybePromise } from '../../../base/maybe-promise.js';
import { deviceSize } from '../../../sys/block-device.js';
import { isDevice } from '../../../sys/file.js';
import type { FileExtent } from '../../../sys/holes.js';
import {
  type BlockDriver,
  type BlockLimits,
  type DriverDefinition,
  type DriverFeatures,
  type DriverOptions,
  type Extent,
  type OpenContext,
  REQ_FUA,
  REQ_OFFLOAD,
  type RequestFlags,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_OFFSET_VALID,
  STATUS_ZERO,
  type TruncateOptions,
} from '../../block-driver.js';
import type { FileRange, RangeUse, SendRequest } from '../../file-range.js';
import type { NodeOptions } from '../../node-options.js';
import { PERM_RESIZE, type PermissionMask, type ShareMask } from '../../permissions.js';
import { createFile } from './create.js';
import { DataExtentCache } from './data-extent-cache.js';
import { DiscardCounts } from './discard-counts.js';
import { checkUnchanged, parseFileOptions } from './file-options.js';
import { ImageAccess } from './image-access.js';
import type { FileDriverName } from './image-handle.js';
import { resizeDevice, resizeFile } from './resize.js';
import { SharedSync } from './shared-sync.js';
import { ZeroRanges } from './zero-ranges.js';

const FEATURES: DriverFeatures = {
  fua: true,
  writeZeroes: true,
  discard: true,
  backing: false,
  multiConn: true,
};

/** Unit of `st_blocks`, bytes, whatever the file system's own is. @see stat(2) */
const STAT_BLOCK = 512;
const DATA = STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID;
const HOLE = STATUS_ZERO | STATUS_ALLOCATED | STATUS_OFFSET_VALID;

class FileDriver implements BlockDriver {
  readonly features = FEATURES;
  readonly #access: ImageAccess;
  readonly #zeroes: ZeroRanges;
  readonly #discards = new DiscardCounts();
  readonly #dataExtent = new DataExtentCache();
  readonly #sync = new SharedSync(() => this.#syncUnlessLost());
  #size: number;
  /** The error of a flush that failed: pages it dropped can't be written again, so none succeeds later. */
  #lost: unknown;

  constructor(
    readonly name: FileDriverName,
    readonly filename: string,
    readonly given: DriverOptions,
    access: ImageAccess,
  ) {
    this.#access = access;
    this.#size = access.handle.size;
    this.#zeroes = new ZeroRanges(name === 'host_device' ? 'device' : 'regular');
  }

  get size(): number {
    return this.#size;
  }

  get limits(): BlockLimits {
    return this.#access.handle.limits;
  }

  read(offset: number, buffer: Buffer, _flags: RequestFlags): MaybePromise<void> {
    return this.#access.handle.file.read(offset, buffer);
  }

  send(request: SendRequest): number {
    return this.#access.handle.sender.send(request);
  }

  readRange(offset: number, length: number, use: RangeUse): MaybePromise<number> {
    const { file } = this.#access.handle;
    if (file.kind !== 'regular' || file.options.direct) return 0;
    const pending = use({ file, offset, length });
    return isPromise(pending) ? file.keepOpen(pending) : pending;
  }

  whenIdle(): MaybePromise<void> {
    return this.#access.handle.sender.whenReturned();
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    const durable = (flags & REQ_FUA) !== 0 && !this.#access.mode.noFlush;
    const pending = this.#access.handle.file.write(offset, buffer, durable ? 'durable' : 'cached');
    const end = offset + buffer.byteLength;
    if (pending !== undefined) return pending.then(() => this.#grownTo(end));
    if (end > this.#size) this.#grownTo(end);
  }

  writeFrom(
    offset: number,
    { file, offset: from, length }: FileRange,
    flags: RequestFlags,
  ): MaybePromise<number> {
    const { copier } = this.#access.handle;
    if ((flags & (REQ_OFFLOAD | REQ_FUA)) !== REQ_OFFLOAD || !copier.takes(file)) return 0;
    return copier.copy(offset, file, from, length).then((copied) => {
      this.#grownTo(offset + copied);
      return copied;
    });
  }

  /** Padding up to the alignment of direct I/O may also lie past the end; that is no growth. */
  #grownTo(end: number): void {
    if (end > this.#size && (this.#access.taken & PERM_RESIZE) !== 0) this.#size = end;
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const end = offset + length;
    this.#dataExtent.forget(offset, length);
    if (end > this.#size) return this.#zeroAndGrow(offset, end, flags);
    const pending = this.#zeroes.writeZeroes(this.#access.handle, offset, length, flags);
    if (pending === undefined && (flags & REQ_FUA) === 0) return;
    return this.#afterZeroing(pending, offset, length, flags);
  }

  async #afterZeroing(
    pending: MaybePromise<void>,
    offset: number,
    length: number,
    flags: RequestFlags,
  ): Promise<void> {
    try {
      await pending;
    } finally {
      this.#dataExtent.forget(offset, length);
    }
    if ((flags & REQ_FUA) !== 0 && !this.#access.mode.noFlush) await this.flush();
  }

  /**
   * What lies past the end becomes a hole, which reads as zeroes. The file grows by writing its last
   * block, because ftruncate would cut off what another request has written further out meanwhile.
   */
  async #zeroAndGrow(offset: number, end: number, flags: RequestFlags): Promise<void> {
    const inside = this.#size - offset;
    if (inside > 0) await this.#zeroes.writeZeroes(this.#access.handle, offset, inside, flags);
    const last = Buffer.alloc(this.limits.requestAlignment);
    await this.#access.handle.file.write(end - last.byteLength, last, 'cached');
    this.#grownTo(end);
    await this.#afterZeroing(undefined, offset, end - offset, flags);
  }

  discard(offset: number, length: number): MaybePromise<void> {
    this.#dataExtent.forget(offset, length);
    const pending = this.#discards.counted(length, () =>
      this.#zeroes.discard(this.#access.handle, offset, length),
    );
    if (pending !== undefined) return this.#afterZeroing(pending, offset, length, 0);
  }

  /** @throws BlockError, the same again once a flush has failed: what it lost is lost */
  flush(): Promise<void> {
    return this.#sync.run();
  }

  /** Who waited for a sync that failed must not be told that the next one is fine. */
  async #syncUnlessLost(): Promise<void> {
    if (this.#lost !== undefined) throw this.#lost;
    try {
      await this.#access.handle.file.sync();
    } catch (error) {
      this.#lost = error;
      throw error;
    }
  }

  async allocatedSize(): Promise<number> {
    const { blocks } = await this.#access.handle.file.stat();
    return blocks * STAT_BLOCK;
  }

  blockStatus(offset: number, length: number): MaybePromise<Extent> {
    const known = this.#dataExtent.dataEnd(offset);
    if (known !== 0) return extentTo(known, { offset, length, data: true });
    const { generation } = this.#dataExtent;
    try {
      const found = this.#access.handle.holes.find(offset);
      if (found instanceof Promise) {
        return found.then(
          (extent) => this.#found(extent, { offset, length, generation }),
          (error: unknown) => statusUnknown(error, offset, length),
        );
      }
      return this.#found(found, { offset, length, generation });
    } catch (error) {
      return statusUnknown(error, offset, length);
    }
  }

  #found(
    extent: FileExtent,
    asked: { offset: number; length: number; generation: number },
  ): Extent {
    if (extent.data) this.#dataExtent.remember(asked.offset, extent.end, asked.generation);
    return extentTo(extent.end, { ...asked, data: extent.data });
  }

  async truncate(size: number, options: TruncateOptions): Promise<void> {
    const handle = this.#access.handle;
    if (this.name === 'host_device') {
      this.#size = deviceSize(handle.file);
      resizeDevice({ from: this.#size, to: size }, options);
      return;
    }
    this.#dataExtent.forget(0, Number.MAX_SAFE_INTEGER);
    await resizeFile(handle, { from: this.#size, to: size }, options);
    this.#size = size;
  }

  /** Others had the file meanwhile: it may have another size, and holes elsewhere. */
  async activate(): Promise<void> {
    const { file } = this.#access.handle;
    this.#dataExtent.forget(0, Number.MAX_SAFE_INTEGER);
    this.#size = this.name === 'host_device' ? deviceSize(file) : (await file.stat()).size;
  }

  specificStats(): Readonly<Record<string, unknown>> {
    return this.#discards.describe();
  }

  preparePermissions(taken: PermissionMask, shared: ShareMask): MaybePromise<void> {
    return this.#access.preparePermissions(taken, shared);
  }

  commitPermissions(): void {
    this.#access.commitPermissions();
  }

  abortPermissions(): void {
    this.#access.abortPermissions();
  }

  /** @param options the node's new NodeOptions, from blockdev-reopen */
  async prepareReopen(options: unknown): Promise<void> {
    const { given, cache, ...mode } = options as NodeOptions;
    checkUnchanged(this.given, given);
    await this.#access.prepareMode({ ...mode, direct: cache.direct, noFlush: cache.noFlush });
  }

  commitReopen(): void {
    this.#access.commitMode();
  }

  abortReopen(): void {
    this.#access.abortMode();
  }

  close(): Promise<void> {
    return this.#access.close();
  }
}

function extentTo(
  end: number,
  { offset, length, data }: { offset: number; length: number; data: boolean },
): Extent {
  return {
    length: Math.min(length, end - offset),
    flags: data ? DATA : HOLE,
    hostOffset: offset,
  };
}

/** A file system that can't tell has data everywhere; other failures would fail the reads as well. */
function statusUnknown(error: unknown, offset: number, length: number): Extent {
  if (!(error instanceof BlockError)) throw error;
  return { length, flags: DATA, hostOffset: offset };
}

async function open(
  name: FileDriverName,
  given: DriverOptions,
  context: OpenContext,
): Promise<BlockDriver> {
  const { filename, locking } = parseFileOptions(given);
  const { readOnly, autoReadOnly, forceShare, cache } = context;
  const mode = {
    readOnly,
    autoReadOnly,
    forceShare,
    direct: cache.direct,
    noFlush: cache.noFlush,
  };
  const access = await ImageAccess.open({
    driver: name,
    path: filename,
    mode,
    locking: locking !== 'off',
  });
  return new FileDriver(name, filename, given, access);
}

export const fileDriver: DriverDefinition = {
  name: 'file',
  kind: 'protocol',
  children: [],
  open: (options, context) => open('file', options, context),
  create: { create: createFile },
};

export const hostDeviceDriver: DriverDefinition = {
  name: 'host_device',
  kind: 'protocol',
  children: [],
  open: (options, context) => open('host_device', options, context),
  fromFilename: async (filename) => ((await isDevice(filename)) ? { filename } : undefined),
};
