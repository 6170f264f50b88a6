// SPDX-License-Identifier: MIT
/**
 * Filter between a format and its file: lets the file grow in large zeroed steps instead of with each
 * write, and cuts off what was not needed. @see qapi BlockdevOptionsPreallocate
 */
import { alignUp } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import { MIB } from '../../base/limits.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import {
  type ChildRole,
  type DriverDefinition,
  type DriverOptions,
  type PreallocationMode,
  REQ_NO_FALLBACK,
  type RequestFlags,
} from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import type { NodeOptions } from '../node-options.js';
import { filterPermissions, PERM_RESIZE, PERM_WRITE, type Permissions } from '../permissions.js';
import { jsonFilename, PassThroughDriver, readPadded } from './pass-through.js';

const SECTOR = 512;
const ALIGN_DEFAULT = 1 * MIB;
const SIZE_DEFAULT = 128 * MIB;
const GROWING = PERM_WRITE | PERM_RESIZE;

interface PreallocateOptions {
  /** The file's length becomes a multiple of this, bytes. */
  readonly align: number;
  /** Bytes beyond the end of the write that made the file grow. */
  readonly size: number;
}

export const preallocateDefinition: DriverDefinition = {
  name: 'preallocate',
  kind: 'filter',
  children: [{ key: 'file', role: 'filtered', required: true }],
  open(options, context) {
    const child = context.child('file');
    return new PreallocateDriver(child, parseOptions(options, child));
  },
};

function parseOptions(options: DriverOptions, child: ChildEdge): PreallocateOptions {
  const align = (options['prealloc-align'] as number | undefined) ?? ALIGN_DEFAULT;
  const size = (options['prealloc-size'] as number | undefined) ?? SIZE_DEFAULT;
  const { requestAlignment } = child.limits;
  if (align <= 0 || align % SECTOR !== 0) {
    throw invalid(`prealloc-align parameter of preallocate filter is not aligned to ${SECTOR}`);
  }
  if (align % requestAlignment !== 0) {
    throw invalid(
      'prealloc-align parameter of preallocate filter is not aligned to underlying node ' +
        `request alignment (${requestAlignment})`,
    );
  }
  if (size < 0) throw invalid('prealloc-size parameter of preallocate filter is negative');
  return { align, size };
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
class PreallocateDriver extends PassThroughDriver {
  #options: PreallocateOptions;
  #nextOptions: PreallocateOptions | undefined;
  /**
   * Where the parents' data ends, bytes; the child may be longer. Undefined while others may resize
   * the child, since nothing is known then.
   */
  #dataEnd: number | undefined;
  #nextGrows = false;
  /** The step under way; writes past the child's end wait for it. */
  #growing: Promise<void> | undefined;
  /** First byte that the step under way zeroes; what lies before it may be written meanwhile. */
  #stepStart = 0;
  /** A step failed: the child can't do it, or is full. Writes grow the child themselves from then on. */
  #givenUp = false;

  constructor(child: ChildEdge, options: PreallocateOptions) {
    super('preallocate', child);
    this.#options = options;
  }

  override get size(): number {
    return this.#dataEnd ?? this.child.size;
  }

  override get filename(): string {
    return jsonFilename('preallocate', { file: this.child });
  }

  /** Who may make the child grow is the only one, or `#dataEnd` would not be true. */
  childPermissions(_role: ChildRole, parents: Permissions): Permissions {
    const { taken, shared } = filterPermissions(parents);
    return { taken, shared: grows(taken) ? shared & ~GROWING : shared };
  }

  /** Losing the permission to resize is the last moment to cut off what was not needed. */
  async preparePermissions(taken: number): Promise<void> {
    this.#nextGrows = grows(taken);
    if (!this.#nextGrows) await this.#cut();
  }

  commitPermissions(): void {
    if (!this.#nextGrows) this.#dataEnd = undefined;
    if (!this.#nextGrows || this.#dataEnd !== undefined) return;
    this.#dataEnd = this.child.size;
    this.#givenUp = false;
  }

  /** Past the child's end lies what a failed write has left: zeroes. */
  override read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return readPadded(this.child, offset, buffer, flags);
  }

  override write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    const room = this.#makeRoom(offset + buffer.byteLength);
    if (room === undefined) return this.child.write(offset, buffer, flags);
    return room.then(() => this.child.write(offset, buffer, flags));
  }

  override writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const room = this.#makeRoom(offset + length);
    if (room === undefined) return this.child.writeZeroes(offset, length, flags);
    return room.then(() => this.child.writeZeroes(offset, length, flags));
  }

  override async truncate(
    size: number,
    options: { exact: boolean; preallocation: PreallocationMode },
  ): Promise<void> {
    const within = size <= this.child.size && size > this.size;
    if (this.#dataEnd !== undefined && within && options.preallocation === 'falloc') {
      this.#dataEnd = size; // allocated already, and zero
      return;
    }
    await this.#cut();
    await this.child.truncate(size, options);
    if (this.#dataEnd !== undefined) this.#dataEnd = size;
  }

  prepareReopen(options: NodeOptions): void {
    this.#nextOptions = parseOptions(options.given, this.child);
  }

  commitReopen(): void {
    if (this.#nextOptions !== undefined) this.#options = this.#nextOptions;
    this.#nextOptions = undefined;
  }

  abortReopen(): void {
    this.#nextOptions = undefined;
  }

  override async close(): Promise<void> {
    try {
      await this.#cut();
    } catch {
      // The child keeps some zeroes at its end, which its next user sees as unused space.
    }
  }

  /** Nothing when the child is long enough for data up to `end`, else a promise for when it is. */
  #makeRoom(end: number): MaybePromise<void> {
    if (this.#dataEnd === undefined) return;
    if (end > this.#dataEnd) this.#dataEnd = end;
    const settled = this.#growing === undefined ? this.child.size : this.#stepStart;
    if (end <= settled || this.#givenUp) return;
    return this.#grow(end);
  }

  /** One step at a time, and never over bytes that a waiting write is about to fill. */
  async #grow(end: number): Promise<void> {
    while (this.#growing !== undefined) await this.#growing;
    if (end <= this.child.size || this.#givenUp) return;
    this.#growing = this.#step(end);
    await this.#growing;
  }

  async #step(end: number): Promise<void> {
    const start = alignUp(this.child.size, this.child.limits.requestAlignment);
    this.#stepStart = this.child.size;
    const target = alignUp(Math.max(start, end) + this.#options.size, this.#options.align);
    try {
      await this.child.writeZeroes(start, target - start, REQ_NO_FALLBACK);
    } catch {
      // Only an optimisation: the write itself tells what is wrong, if anything is.
      this.#givenUp = true;
    } finally {
      this.#growing = undefined;
    }
  }

  async #cut(): Promise<void> {
    if (this.#dataEnd === undefined || this.#dataEnd >= this.child.size) return;
    await this.child.truncate(this.#dataEnd, { exact: true, preallocation: 'off' });
  }
}

const grows = (taken: number): boolean => (taken & GROWING) === GROWING;
