// SPDX-License-Identifier: MIT
/**
 * Filter that saves what is about to be overwritten: a point in time of the node below lives on in
 * the target. @see qapi BlockdevOptionsCbw
 */
import { isPowerOfTwo } from '../../base/byte-range.js';
import { startTimeout } from '../../base/clock.js';
import { BlockError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import { findBitmap } from '../bitmap/node-bitmaps.js';
import {
  type ChildRole,
  type DriverDefinition,
  type DriverOptions,
  REQ_WRITE_UNCHANGED,
  type RequestFlags,
} from '../block-driver.js';
import type { ChainExtent } from '../block-status.js';
import type { ChildEdge } from '../edge.js';
import { imageClusters } from '../image-clusters.js';
import type { BlockNode } from '../node.js';
import type { NodeOptions } from '../node-options.js';
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  type PermissionMask,
  type Permissions,
  type ShareMask,
} from '../permissions.js';
import {
  CBW_CLUSTER_DEFAULT,
  CBW_CLUSTER_MAX,
  noAccess,
  SnapshotCopies,
} from './copy-before-write-copies.js';
import { PassThroughDriver } from './pass-through.js';

export type OnCbwError = 'break-guest-write' | 'break-snapshot';

export interface CopyBeforeWriteOptions {
  /** What becomes of a write whose old content can't be saved: it fails, or the snapshot does. */
  readonly onCbwError?: OnCbwError | undefined;
  /** Time for saving old content, after which it counts as failed, milliseconds; 0: no limit. */
  readonly timeoutMs?: number | undefined;
  /** What belongs to the snapshot, as marked now; absent: all. */
  readonly bitmap?: DirtyBitmap | undefined;
  /**
   * The snapshot is of the moment at which the filter comes to be used, not of that at which it is
   * made: until then others may write to the node below. @returns what `bitmap` is by then
   */
  readonly whenUsed?: () => DirtyBitmap | undefined;
  /** Bytes that are copied together: a power of two from CBW_CLUSTER_DEFAULT to CBW_CLUSTER_MAX. */
  readonly clusterLength: number;
  /** @see SnapshotOptions */
  readonly compress?: boolean | undefined;
  /** What was asked for of it; default: the same. @see clusterLengthOf */
  readonly clusterLengthAsked?: number;
}

/** @param lookup finds the node of the option `bitmap` */
export function createCopyBeforeWriteDriver(
  lookup: (name: string) => BlockNode | undefined,
): DriverDefinition {
  return {
    name: 'copy-before-write',
    kind: 'filter',
    children: [
      { key: 'file', role: 'filtered', required: true },
      { key: 'target', role: 'target', required: true },
    ],
    async open(options, context) {
      const target = context.child('target');
      const asked = clusterLengthOf(Number(options['min-cluster-size'] ?? 0));
      const needed = await clusterLengthFor(target.node);
      return new CopyBeforeWriteDriver(context.child('file'), target, {
        onCbwError: options['on-cbw-error'] as OnCbwError | undefined,
        timeoutMs: Number(options['cbw-timeout'] ?? 0) * 1000,
        bitmap: bitmapOption(lookup, options),
        whenUsed: () => bitmapOption(lookup, options),
        clusterLength: Math.max(asked, needed),
        clusterLengthAsked: asked,
      });
    },
  };
}

/**
 * Bytes that are copied together, given what is asked for at least (0: nothing special).
 * @throws BlockError DF_INVALID
 */
export function clusterLengthOf(wanted: number): number {
  if (wanted !== 0 && !isPowerOfTwo(wanted)) {
    throw new BlockError('DF_INVALID', 'min-cluster-size needs to be a power of 2');
  }
  if (wanted > CBW_CLUSTER_MAX) {
    throw new BlockError(
      'DF_INVALID',
      `min-cluster-size too large: ${wanted} > ${CBW_CLUSTER_MAX}`,
    );
  }
  return Math.max(wanted, CBW_CLUSTER_DEFAULT);
}

/**
 * Bytes to be copied together into the target: an image fills up with zeroes, or with what its backing
 * node has by now, what is left of a cluster.
 */
export async function clusterLengthFor(target: BlockNode): Promise<number> {
  const clusters = await imageClusters(target);
  return Math.max(clusters?.length ?? 0, CBW_CLUSTER_DEFAULT);
}

function bitmapOption(
  lookup: (name: string) => BlockNode | undefined,
  options: DriverOptions,
): DirtyBitmap | undefined {
  if (options.bitmap === undefined) return undefined;
  const { node: nodeName, name } = options.bitmap as { node: string; name: string };
  const node = lookup(nodeName);
  if (node === undefined) throw new BlockError('DF_NOT_FOUND', `Node '${nodeName}' not found`);
  return findBitmap(node, name);
}

export class CopyBeforeWriteDriver extends PassThroughDriver {
  readonly copies: SnapshotCopies;
  readonly target: ChildEdge;
  /** Called when a write could not be saved and went on all the same: the snapshot is lost. */
  onBroken: ((error: unknown) => void) | undefined;
  readonly #options: CopyBeforeWriteOptions;
  /** Nobody needs the snapshot any more, or it is lost: writes pass. */
  #over = false;
  /** Writes that wait for their copies, to be let go when the snapshot is over. */
  readonly #waiting = new Set<() => void>();
  #used = false;
  #nextUsed = false;
  /** The node below when the filter was last used, if anything was saved: a snapshot has begun. */
  #left: { readonly node: BlockNode; readonly generation: number } | undefined;

  constructor(child: ChildEdge, target: ChildEdge, options: CopyBeforeWriteOptions) {
    super('copy-before-write', child);
    const { clusterLength, bitmap, compress } = options;
    this.target = target;
    this.#options = options;
    this.copies = new SnapshotCopies({ source: child, target, clusterLength, bitmap, compress });
  }

  /**
   * The target is written, and may be below others who write too (a disk whose backing chain it is
   * in). Nobody may write to the node below but through this filter, once the filter is used.
   */
  childPermissions(role: ChildRole, parents: Permissions): Permissions {
    if (role === 'target') return { taken: PERM_WRITE, shared: PERM_ALL & ~PERM_RESIZE };
    if (!isUsed(parents)) return parents;
    const read = (parents.taken & PERM_WRITE) !== 0 ? PERM_CONSISTENT_READ : 0;
    return {
      taken: parents.taken | read,
      shared: parents.shared & ~(PERM_WRITE | PERM_RESIZE),
    };
  }

  /** @throws BlockError when the snapshot can't begin: the node below, or the bitmap, is another now */
  preparePermissions(taken: PermissionMask, shared: ShareMask): void {
    this.#nextUsed = isUsed({ taken, shared });
    const { whenUsed } = this.#options;
    // The filter of a job begins with the job: what comes under it later may be longer.
    if (whenUsed === undefined) return;
    if (!this.#nextUsed || this.#used || this.#left !== undefined) return;
    const bitmap = whenUsed();
    const { name } = this.child.node;
    if (this.child.size !== this.copies.size) {
      const text = `Node '${name}' has changed its size since its filter was made`;
      throw new BlockError('DF_INVALID', text, { node: name });
    }
    if (bitmap !== undefined && bitmap.size !== this.copies.size) {
      throw new BlockError('DF_INVALID', `Bitmap '${bitmap.name}' has changed its size`);
    }
  }

  /** Nobody else writes to the node below from when the filter is used until it is not any more. */
  commitPermissions(): void {
    const used = this.#nextUsed;
    if (used === this.#used || this.#options.whenUsed === undefined) return;
    this.#used = used;
    const { node } = this.child;
    const generation = node.writeGeneration;
    // Nothing was written through it: what it would show then is no more than what is there.
    if (!used) this.#left = this.copies.generation === 0 ? undefined : { node, generation };
    else if (this.#left === undefined) this.copies.beginAnew(this.#options.whenUsed());
    else if (this.#left.node !== node || this.#left.generation !== generation) this.endSnapshot();
  }

  /** Others may write to the node below, where we do not see it. */
  inactivate(): void {
    if (this.#used || this.#left !== undefined) this.endSnapshot();
  }

  override write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    const saved = this.#save(offset, buffer.byteLength, flags);
    if (saved === undefined) return this.child.write(offset, buffer, flags);
    return saved.then(() => this.child.write(offset, buffer, flags));
  }

  override writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const saved = this.#save(offset, length, flags);
    if (saved === undefined) return this.child.writeZeroes(offset, length, flags);
    return saved.then(() => this.child.writeZeroes(offset, length, flags));
  }

  override discard(offset: number, length: number): MaybePromise<void> {
    const saved = this.#save(offset, length, 0);
    if (saved === undefined) return this.child.discard(offset, length);
    return saved.then(() => this.child.discard(offset, length));
  }

  /** The snapshot has the size that the node had when it was taken. */
  override async truncate(): Promise<void> {
    throw new BlockError('DF_NOT_SUPPORTED', 'copy-before-write does not support resize');
  }

  /** Reads the snapshot, whatever was written since. @throws BlockError DF_ACCESS when it is over */
  async readSnapshot(offset: number, buffer: Buffer): Promise<void> {
    if (this.#over) throw noAccess(offset, buffer.byteLength);
    await this.copies.read(offset, buffer);
  }

  /** Status of a prefix of the range in the snapshot. @throws as `readSnapshot` */
  async snapshotStatus(offset: number, length: number): Promise<ChainExtent> {
    if (this.#over) throw noAccess(offset, length);
    return this.copies.status(offset, length);
  }

  /** Takes the range out of the snapshot, in whole clusters. @see SnapshotCopies.discard */
  async discardSnapshot(offset: number, length: number): Promise<void> {
    if (!this.#over) await this.copies.discard(offset, length);
  }

  /** Nobody needs the snapshot any more: writes pass from now on, those that wait for a copy too. */
  endSnapshot(): void {
    if (this.#over) return;
    this.#over = true;
    this.copies.close();
    for (const release of this.#waiting) release();
  }

  /** Options stay as they are, as do children: another point in time takes another filter. */
  prepareReopen({ given }: NodeOptions): void {
    const { onCbwError = 'break-guest-write', timeoutMs = 0 } = this.#options;
    const { clusterLength, clusterLengthAsked = clusterLength } = this.#options;
    if ((given['on-cbw-error'] ?? 'break-guest-write') !== onCbwError) {
      throw cannotChange('on-cbw-error');
    }
    if (Number(given['cbw-timeout'] ?? 0) * 1000 !== timeoutMs) throw cannotChange('cbw-timeout');
    if (clusterLengthOf(Number(given['min-cluster-size'] ?? 0)) !== clusterLengthAsked) {
      throw cannotChange('min-cluster-size');
    }
    if ((given.bitmap === undefined) !== (this.#options.bitmap === undefined)) {
      throw cannotChange('bitmap');
    }
  }

  override close(): void {
    this.endSnapshot();
  }

  /** What a write needs before it may change the range: nothing, at best. */
  #save(offset: number, length: number, flags: RequestFlags): Promise<void> | undefined {
    if (this.#over || length === 0 || (flags & REQ_WRITE_UNCHANGED) !== 0) return undefined;
    if (this.copies.isFree(offset, length)) return undefined;
    return this.#copyFirst(offset, length);
  }

  async #copyFirst(offset: number, length: number): Promise<void> {
    try {
      await this.#copied(offset, length);
    } catch (error) {
      if (this.#over) return;
      if (this.#options.onCbwError !== 'break-snapshot') throw error;
      await this.copies.waitForReaders(offset, length);
      this.endSnapshot();
      this.onBroken?.(error);
      return;
    }
    if (this.#over) return;
    this.copies.markOverwritten(offset, length);
    await this.copies.waitForReaders(offset, length);
  }

  /** Until the range is copied, the snapshot is over, or the time is. */
  #copied(offset: number, length: number): Promise<void> {
    const { timeoutMs = 0 } = this.#options;
    return new Promise<void>((resolve, reject) => {
      const callOff =
        timeoutMs > 0
          ? startTimeout(timeoutMs, () => settle(() => reject(tooLate(timeoutMs))))
          : undefined;
      const settle = (act: () => void): void => {
        callOff?.();
        this.#waiting.delete(resolve);
        act();
      };
      this.#waiting.add(resolve);
      this.copies.copyAround(offset, length).then(
        () => settle(resolve),
        (error: unknown) => settle(() => reject(error)),
      );
    });
  }
}

function isUsed({ taken, shared }: Permissions): boolean {
  return taken !== 0 || shared !== PERM_ALL;
}

function tooLate(timeoutMs: number): BlockError {
  return new BlockError(
    'DF_TIMEOUT',
    `saving the old content before a write took more than ${timeoutMs} ms`,
    { op: 'write', errno: 'ETIMEDOUT' },
  );
}

function cannotChange(key: string): BlockError {
  return new BlockError('DF_INVALID', `Cannot change the option '${key}'`);
}
