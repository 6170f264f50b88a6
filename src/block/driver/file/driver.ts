// SPDX-License-Identifier: MIT
/** `file` and `host_device`: a node's bytes are those of a file or block device of the host. */
import { BlockError } from '../../../base/errors.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { deviceSize } from '../../../sys/block-device.js';
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
  type RequestFlags,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_OFFSET_VALID,
  STATUS_ZERO,
  type TruncateOptions,
} from '../../block-driver.js';
import type { NodeOptions } from '../../node-options.js';
import { PERM_ALL, PERM_RESIZE, type PermissionMask, type ShareMask } from '../../permissions.js';
import { DataExtentCache } from './data-extent-cache.js';
import {
  type AccessMode,
  checkUnchanged,
  descriptorOptions,
  type FileOptions,
  parseFileOptions,
} from './file-options.js';
import { type FileDriverName, ImageHandle } from './image-handle.js';
import { resizeDevice, resizeFile } from './resize.js';
import { ZeroRanges } from './zero-ranges.js';

const FEATURES: DriverFeatures = {
  fua: true,
  writeZeroes: true,
  discard: true,
  backing: false,
  multiConn: true,
};

const DATA = STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID;
const HOLE = STATUS_ZERO | STATUS_ALLOCATED | STATUS_OFFSET_VALID;

class FileDriver implements BlockDriver {
  readonly features = FEATURES;
  readonly #locking: 'used' | 'unused';
  readonly #zeroes: ZeroRanges;
  readonly #dataExtent = new DataExtentCache();
  #size: number;
  /** What is in force. */
  #handle: ImageHandle;
  #mode: AccessMode;
  #taken: PermissionMask = 0;
  #shared: ShareMask = PERM_ALL;
  /** What a reopen or a change of permissions has got ready. */
  #nextHandle: ImageHandle | undefined;
  #nextMode: AccessMode | undefined;
  #nextPermissions: { taken: PermissionMask; shared: ShareMask } | undefined;
  /** The error of a flush that failed: pages it dropped can't be written again, so none succeeds later. */
  #lost: unknown;
  /** Old handles that wait for what is in flight. */
  readonly #retired = new Set<Promise<void>>();

  constructor(
    readonly name: FileDriverName,
    readonly given: DriverOptions,
    private readonly options: FileOptions,
    state: { handle: ImageHandle; mode: AccessMode },
  ) {
    const { handle, mode } = state;
    this.#handle = handle;
    this.#mode = mode;
    this.#size = handle.size;
    this.#zeroes = new ZeroRanges(name === 'host_device' ? 'device' : 'regular');
    this.#locking = options.locking === 'off' ? 'unused' : 'used';
  }

  get filename(): string {
    return this.options.filename;
  }

  get size(): number {
    return this.#size;
  }

  get limits(): BlockLimits {
    return this.#handle.limits;
  }

  read(offset: number, buffer: Buffer, _flags: RequestFlags): MaybePromise<void> {
    return this.#handle.file.read(offset, buffer);
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    const durable = (flags & REQ_FUA) !== 0 && !this.#mode.noFlush;
    const pending = this.#handle.file.write(offset, buffer, durable ? 'durable' : 'cached');
    const end = offset + buffer.byteLength;
    if (pending !== undefined) return pending.then(() => this.#grownTo(end));
    if (end > this.#size) this.#grownTo(end);
  }

  /** Padding up to the alignment of direct I/O may also lie past the end; that is no growth. */
  #grownTo(end: number): void {
    if (end > this.#size && (this.#taken & PERM_RESIZE) !== 0) this.#size = end;
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const end = offset + length;
    this.#dataExtent.forget(offset, length);
    if (end > this.#size) return this.#zeroAndGrow(offset, end, flags);
    const pending = this.#zeroes.writeZeroes(this.#handle, offset, length, flags);
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
    if ((flags & REQ_FUA) !== 0 && !this.#mode.noFlush) await this.flush();
  }

  /**
   * What lies past the end becomes a hole, which reads as zeroes. The file grows by writing its last
   * block, because ftruncate would cut off what another request has written further out meanwhile.
   */
  async #zeroAndGrow(offset: number, end: number, flags: RequestFlags): Promise<void> {
    const inside = this.#size - offset;
    if (inside > 0) await this.#zeroes.writeZeroes(this.#handle, offset, inside, flags);
    const last = Buffer.alloc(this.limits.requestAlignment);
    await this.#handle.file.write(end - last.byteLength, last, 'cached');
    this.#grownTo(end);
    await this.#afterZeroing(undefined, offset, end - offset, flags);
  }

  discard(offset: number, length: number): MaybePromise<void> {
    this.#dataExtent.forget(offset, length);
    const pending = this.#zeroes.discard(this.#handle, offset, length);
    if (pending !== undefined) return this.#afterZeroing(pending, offset, length, 0);
  }

  /** @throws BlockError, the same again once a flush has failed: what it lost is lost */
  async flush(): Promise<void> {
    if (this.#lost !== undefined) throw this.#lost;
    try {
      await this.#handle.file.sync();
    } catch (error) {
      this.#lost = error;
      throw error;
    }
  }

  blockStatus(offset: number, length: number): MaybePromise<Extent> {
    const known = this.#dataExtent.dataEnd(offset);
    if (known !== 0) return extentTo(known, { offset, length, data: true });
    const { generation } = this.#dataExtent;
    try {
      const found = this.#handle.holes.find(offset);
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
    const handle = this.#handle;
    if (this.name === 'host_device') {
      this.#size = deviceSize(handle.file);
      resizeDevice({ from: this.#size, to: size }, options);
      return;
    }
    this.#dataExtent.forget(0, Number.MAX_SAFE_INTEGER);
    await resizeFile(handle, { from: this.#size, to: size }, options);
    this.#size = size;
  }

  preparePermissions(taken: PermissionMask, wanted: ShareMask): MaybePromise<void> {
    const mode = this.#nextMode ?? this.#mode;
    const shared = mode.forceShare ? PERM_ALL : wanted;
    const pending = this.#prepareHandle(mode, taken);
    if (pending === undefined) return this.#prepareLocks(taken, shared);
    return pending.then(() => this.#prepareLocks(taken, shared));
  }

  commitPermissions(): void {
    if (this.#nextPermissions !== undefined) {
      this.#taken = this.#nextPermissions.taken;
      this.#shared = this.#nextPermissions.shared;
      this.#nextPermissions = undefined;
    }
    this.#commitHandle();
    if (this.#locking === 'used') this.#handle.locks.reduce(this.#held);
  }

  abortPermissions(): void {
    this.#nextPermissions = undefined;
    if (this.#locking === 'used') this.#handle.locks.reduce(this.#held);
    this.#dropNextHandle();
  }

  /** @param options the node's new NodeOptions, from blockdev-reopen */
  async prepareReopen(options: unknown): Promise<void> {
    const { given, cache, ...access } = options as NodeOptions;
    checkUnchanged(this.given, given);
    this.#nextMode = { ...access, direct: cache.direct, noFlush: cache.noFlush };
    try {
      await this.#prepareHandle(this.#nextMode, this.#taken);
      if (this.#locking === 'used') this.#nextHandle?.locks.add(this.#held);
    } catch (error) {
      this.abortReopen();
      throw error;
    }
  }

  commitReopen(): void {
    if (this.#nextMode !== undefined) this.#mode = this.#nextMode;
    this.#nextMode = undefined;
    this.#commitHandle();
  }

  abortReopen(): void {
    this.#nextMode = undefined;
    this.#dropNextHandle();
  }

  async close(): Promise<void> {
    this.#dropNextHandle();
    await this.#handle.file.close();
    await Promise.all(this.#retired);
  }

  get #held(): { taken: PermissionMask; shared: ShareMask } {
    return { taken: this.#taken, shared: this.#shared };
  }

  /** Opens another descriptor where the present one has not the access that is needed. */
  #prepareHandle(mode: AccessMode, taken: PermissionMask): MaybePromise<void> {
    const wanted = descriptorOptions(mode, taken);
    if (this.#nextHandle?.matches(wanted)) return;
    this.#dropNextHandle();
    if (this.#handle.matches(wanted)) return;
    return ImageHandle.open(this.name, this.filename, wanted).then((handle) => {
      this.#nextHandle = handle;
    });
  }

  /** On the old descriptor first, which sees the locks of others and not those of the new one. */
  #prepareLocks(taken: PermissionMask, shared: ShareMask): void {
    this.#nextPermissions = { taken, shared };
    if (this.#locking === 'unused') return;
    const before = this.#held;
    const more = (taken & ~before.taken) !== 0 || (before.shared & ~shared) !== 0;
    try {
      if (more) {
        this.#handle.locks.add({ taken: taken | before.taken, shared: shared & before.shared });
        this.#handle.locks.check({ taken, shared });
      }
      this.#nextHandle?.locks.add({ taken, shared });
    } catch (error) {
      this.abortPermissions();
      throw error;
    }
  }

  #commitHandle(): void {
    const next = this.#nextHandle;
    if (next === undefined) return;
    this.#nextHandle = undefined;
    this.#retire(this.#handle);
    this.#handle = next;
  }

  #dropNextHandle(): void {
    if (this.#nextHandle !== undefined) this.#retire(this.#nextHandle);
    this.#nextHandle = undefined;
  }

  #retire({ file }: ImageHandle): void {
    const closed = file.close().finally(() => this.#retired.delete(closed));
    this.#retired.add(closed);
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
  const options = parseFileOptions(given);
  const mode: AccessMode = {
    readOnly: context.readOnly,
    autoReadOnly: context.autoReadOnly,
    forceShare: context.forceShare,
    direct: context.cache.direct,
    noFlush: context.cache.noFlush,
  };
  const handle = await ImageHandle.open(name, options.filename, descriptorOptions(mode, 0));
  return new FileDriver(name, given, options, { handle, mode });
}

export const fileDriver: DriverDefinition = {
  name: 'file',
  kind: 'protocol',
  children: [],
  open: (options, context) => open('file', options, context),
};

export const hostDeviceDriver: DriverDefinition = {
  name: 'host_device',
  kind: 'protocol',
  children: [],
  open: (options, context) => open('host_device', options, context),
};
