// SPDX-License-Identifier: MIT
/** Zeroing and discarding by whatever this file system or device can do; what it can't is asked once. */
import { BlockError } from '../../../base/errors.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { discardDevice } from '../../../sys/block-device.js';
import type { FallocateMode } from '../../../sys/holes.js';
import { REQ_MAY_UNMAP, REQ_NO_FALLBACK, type RequestFlags } from '../../block-driver.js';
import type { ImageHandle } from './image-handle.js';

type Method = 'zero' | 'punch' | 'punch and allocate' | 'discard';

export class ZeroRanges {
  readonly #missing = new Set<Method>();
  readonly #isDevice: boolean;

  constructor(device: 'device' | 'regular') {
    this.#isDevice = device === 'device';
  }

  /** @throws BlockError DF_NOT_SUPPORTED when writing zero bytes is all that is left */
  writeZeroes(
    handle: ImageHandle,
    offset: number,
    length: number,
    flags: RequestFlags,
  ): MaybePromise<void> {
    const block = handle.limits.writeZeroesAlignment;
    if (offset % block !== 0 || length % block !== 0) throw notSupported();
    const methods = this.#zeroMethods(flags);
    for (const [index, method] of methods.entries()) {
      if (this.#missing.has(method)) continue;
      try {
        const pending = perform(handle, method, offset, length);
        if (pending === undefined) return;
        return pending.catch((error: unknown) =>
          this.#tryNext(handle, methods.slice(index), { offset, length, error }),
        );
      } catch (error) {
        this.#note(method, error);
      }
    }
    throw notSupported();
  }

  /** The content of the range is no longer needed. @throws BlockError DF_NOT_SUPPORTED */
  discard(handle: ImageHandle, offset: number, length: number): MaybePromise<void> {
    const method = this.#isDevice ? 'discard' : 'punch';
    if (this.#missing.has(method)) throw notSupported();
    try {
      const pending = perform(handle, method, offset, length);
      if (pending === undefined) return;
      return pending.catch((error: unknown) => {
        this.#note(method, error);
        throw notSupported();
      });
    } catch (error) {
      this.#note(method, error);
      throw notSupported();
    }
  }

  /** The rest of `methods` after the first one failed in the pool. */
  async #tryNext(
    handle: ImageHandle,
    methods: readonly Method[],
    failed: { offset: number; length: number; error: unknown },
  ): Promise<void> {
    const [first, ...others] = methods;
    if (first !== undefined) this.#note(first, failed.error);
    for (const method of others) {
      if (this.#missing.has(method)) continue;
      try {
        return await perform(handle, method, failed.offset, failed.length);
      } catch (error) {
        this.#note(method, error);
      }
    }
    throw notSupported();
  }

  #zeroMethods(flags: RequestFlags): readonly Method[] {
    if (this.#isDevice) return deviceMethods(flags);
    return (flags & REQ_MAY_UNMAP) !== 0 ? UNMAPPING : KEEPING;
  }

  /** Remembers what is not there. @throws every other error */
  #note(method: Method, error: unknown): void {
    if (!isNotSupported(error)) throw error;
    this.#missing.add(method);
  }
}

const UNMAPPING: readonly Method[] = ['punch', 'zero'];
const KEEPING: readonly Method[] = ['zero', 'punch and allocate'];
const DEVICE_KEEPING: readonly Method[] = ['zero'];
const NONE: readonly Method[] = [];

/** A device that zeroes without unmapping may do so by writing, which is no fast zero. */
function deviceMethods(flags: RequestFlags): readonly Method[] {
  const mayUnmap = (flags & REQ_MAY_UNMAP) !== 0;
  if ((flags & REQ_NO_FALLBACK) !== 0) return mayUnmap ? ['punch'] : NONE;
  return mayUnmap ? UNMAPPING : DEVICE_KEEPING;
}

function perform(
  handle: ImageHandle,
  method: Method,
  offset: number,
  length: number,
): MaybePromise<void> {
  if (method === 'discard') return discardDevice(handle.file, offset, length);
  if (method === 'punch and allocate') return punchAndAllocate(handle, offset, length);
  return handle.holes.change(method satisfies FallocateMode, offset, length);
}

async function punchAndAllocate(
  { holes }: ImageHandle,
  offset: number,
  length: number,
): Promise<void> {
  await holes.change('punch', offset, length);
  await holes.change('allocate', offset, length);
}

/** Character devices and odd file systems say so in their own ways. */
const ABSENT: ReadonlySet<string | undefined> = new Set(['ENOTTY', 'ENODEV']);

function isNotSupported(error: unknown): error is BlockError {
  if (!(error instanceof BlockError)) return false;
  return error.code === 'DF_NOT_SUPPORTED' || ABSENT.has(error.context.errno);
}

function notSupported(): BlockError {
  return new BlockError('DF_NOT_SUPPORTED', 'the file has no way to zero or discard that range');
}
