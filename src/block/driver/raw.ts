// SPDX-License-Identifier: MIT
/** `raw`: a node's bytes are those of the node below, all of them or a window. */
import { BlockError } from '../../base/errors.js';
import { NODE_SIZE_MAX } from '../../base/limits.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import {
  type BlockDriver,
  type BlockLimits,
  type ChildRole,
  DEFAULT_LIMITS,
  type DriverDefinition,
  type DriverFeatures,
  type DriverOptions,
  type Extent,
  type OpenContext,
  type RequestFlags,
  STATUS_OFFSET_VALID,
  type TruncateOptions,
} from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import type { FileRange, RangeUse, SendRequest } from '../file-range.js';
import { jsonFilename } from '../filter/pass-through.js';
import type { NodeOptions } from '../node-options.js';
import { PERM_RESIZE, type Permissions } from '../permissions.js';

/** Sizes given are multiples of this, so that no rounding reaches past the window. */
const SECTOR = 512;

/** The node below makes FUA and zeroes out of what its driver has. */
const FEATURES: DriverFeatures = {
  fua: true,
  writeZeroes: true,
  discard: true,
  backing: false,
  multiConn: true,
};
const SINGLE_CONN_FEATURES: DriverFeatures = { ...FEATURES, multiConn: false };

interface Window {
  readonly offset: number;
  /** Undefined: up to the end of the node below, also when that moves. */
  readonly size: number | undefined;
}

class RawDriver implements BlockDriver {
  readonly name = 'raw';
  readonly #context: OpenContext;
  #file: ChildEdge;
  #window: Window;
  #nextWindow: Window | undefined;
  #limits = DEFAULT_LIMITS;
  #limitsBelow: BlockLimits | undefined;

  constructor(context: OpenContext, options: DriverOptions) {
    this.#context = context;
    this.#file = context.child('file');
    this.#window = parseWindow(options, this.#file.size);
  }

  get features(): DriverFeatures {
    return this.#file.node.driver.features.multiConn ? FEATURES : SINGLE_CONN_FEATURES;
  }

  /** An overlay notes this: without the window it would show other data, without a name none. */
  get filename(): string {
    if (this.#whole) return this.#file.node.driver.filename;
    const { offset, size } = this.#window;
    return jsonFilename(
      'raw',
      { file: this.#file },
      size === undefined ? { offset } : { offset, size },
    );
  }

  get size(): number {
    const { offset, size } = this.#window;
    return size ?? Math.max(this.#file.size - offset, 0);
  }

  /** Unaligned requests are left to the node below, which would have to pad them anyway. */
  get limits(): BlockLimits {
    const below = this.#file.limits;
    if (below !== this.#limitsBelow) {
      this.#limitsBelow = below;
      const { memoryAlignment, optimalTransfer, discardAlignment, writeZeroesAlignment } = below;
      this.#limits = {
        ...DEFAULT_LIMITS,
        memoryAlignment,
        optimalTransfer,
        discardAlignment: this.#aligned(discardAlignment),
        writeZeroesAlignment: this.#aligned(writeZeroesAlignment),
      };
    }
    return this.#limits;
  }

  /** An alignment below is one here only when the window starts at a multiple of it. */
  #aligned(alignment: number): number {
    return this.#window.offset % alignment === 0 ? alignment : 1;
  }

  get #whole(): boolean {
    return this.#window.offset === 0 && this.#window.size === undefined;
  }

  read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return this.#file.read(offset + this.#window.offset, buffer, flags);
  }

  send(request: SendRequest): number {
    return this.#file.node.send({ ...request, offset: request.offset + this.#window.offset });
  }

  readRange(offset: number, length: number, use: RangeUse): MaybePromise<number> {
    return this.#file.readRange(offset + this.#window.offset, length, use);
  }

  whenIdle(): MaybePromise<void> {
    return this.#file.node.driver.whenIdle?.();
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    this.#checkEnd(offset, buffer.byteLength);
    return this.#file.write(offset + this.#window.offset, buffer, flags);
  }

  get passLength(): number | undefined {
    return this.#file.node.driver.passLength;
  }

  writeFrom(offset: number, source: FileRange, flags: RequestFlags): MaybePromise<number> {
    this.#checkEnd(offset, source.length);
    return this.#file.writeFrom(offset + this.#window.offset, source, flags);
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    this.#checkEnd(offset, length);
    return this.#file.writeZeroes(offset + this.#window.offset, length, flags);
  }

  discard(offset: number, length: number): MaybePromise<void> {
    return this.#file.discard(offset + this.#window.offset, length);
  }

  blockStatus(offset: number, length: number): Extent {
    return {
      length,
      flags: STATUS_OFFSET_VALID,
      hostOffset: offset + this.#window.offset,
      delegate: this.#file,
    };
  }

  async truncate(size: number, options: TruncateOptions): Promise<void> {
    if (this.#window.size !== undefined) {
      throw new BlockError('DF_NOT_SUPPORTED', 'Cannot resize fixed-size raw disks');
    }
    if (size > NODE_SIZE_MAX - this.#window.offset) {
      throw new BlockError('DF_INVALID', 'Disk size too large for the chosen offset');
    }
    await this.#file.truncate(size + this.#window.offset, options);
  }

  /** All of the node below: as a filter. A window relies on the size below staying as it is. */
  childPermissions(_role: ChildRole, { taken, shared }: Permissions): Permissions {
    return { taken, shared: this.#whole ? shared : shared & ~PERM_RESIZE };
  }

  /** @param options the node's new NodeOptions, from blockdev-reopen */
  prepareReopen(options: unknown): void {
    // The child may be another one by now.
    const { size } = this.#context.child('file');
    this.#nextWindow = parseWindow((options as NodeOptions).given, size);
  }

  childReplaced(_key: string, edge: ChildEdge): void {
    this.#file = edge;
  }

  commitReopen(): void {
    this.#window = this.#nextWindow ?? this.#window;
    this.#limitsBelow = undefined;
    this.abortReopen();
  }

  abortReopen(): void {
    this.#nextWindow = undefined;
  }

  /** The node below is its own. */
  close(): void {}

  /** A parent that may resize may write past the end of a node, but not out of a window. */
  #checkEnd(offset: number, length: number): void {
    const { size } = this.#window;
    if (size === undefined || offset + length <= size) return;
    const message = `${length} bytes at ${offset} reach past the end of the window, ${size} bytes`;
    throw new BlockError('DF_OUT_OF_RANGE', message, { offset, length });
  }
}

/** @throws BlockError DF_INVALID in QEMU's words, when the window is not inside the node below */
function parseWindow(options: DriverOptions, available: number): Window {
  const offset = Number(options.offset ?? 0);
  const size = options.size === undefined ? undefined : Number(options.size);
  if (offset > available) {
    throw invalid(
      `Offset (${offset}) cannot be greater than size of the containing file (${available})`,
    );
  }
  if (size === undefined) return { offset, size };
  if (size > available - offset) {
    throw invalid(
      `The sum of offset (${offset}) and size (${size}) has to be smaller or equal to the ` +
        ` actual size of the containing file (${available})`,
    );
  }
  if (size % SECTOR !== 0) throw invalid(`Specified size is not multiple of ${SECTOR}`);
  return { offset, size };
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);

export const rawDriver: DriverDefinition = {
  name: 'raw',
  kind: 'format',
  children: [{ key: 'file', role: 'file', required: true }],
  open: (options, context) => new RawDriver(context, options),
};
