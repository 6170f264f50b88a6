// SPDX-License-Identifier: MIT
/** What a mirror is told, and what it tells. */
import { BlockError } from '../base/errors.js';
import type { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { defaultGranularity } from '../block/bitmap/node-bitmaps.js';
import { canReplace } from '../block/can-replace.js';
import { MirrorTopDriver } from '../block/filter/mirror-top.js';
import { checkMovable, isBelow } from '../block/graph.js';
import { imageClusters } from '../block/image-clusters.js';
import type { BlockNode } from '../block/node.js';
import { PERM_WRITE, PERM_WRITE_UNCHANGED, type Permissions } from '../block/permissions.js';
import { sizeMismatch } from '../block/size-mismatch.js';
import type { BlockJobObserver, BlockJobOptions } from './block-job.js';
import type { CommitChain } from './commit-chain.js';
import type { CopyRates } from './convergence.js';
import type { MirrorJob } from './mirror.js';
import type { MirrorCopyMode } from './mirror-writes.js';
import { checkUnclaimed, claimNodes } from './node-claims.js';
import type { BitmapSyncMode } from './sync-bitmap.js';

/** `bitmap`: what is marked in the bitmap. */
export type MirrorSync = 'full' | 'top' | 'none' | 'bitmap';

export interface MirrorOptions extends BlockJobOptions {
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly sync: MirrorSync;
  /** The target is a backing node of the source: a commit of the active layer, which has taken both. */
  readonly commit?: CommitChain;
  /** Of the source. Frozen while the job runs; what is written meanwhile its successor records. */
  readonly bitmap?: DirtyBitmap | undefined;
  readonly bitmapMode?: BitmapSyncMode | undefined;
  /** The target reads as zeroes when the job is made; what is zero in the source is left out. */
  readonly targetIsZero?: boolean | undefined;
  /** Node whose users the pivot moves to the target; the source when absent. */
  readonly replaces?: BlockNode;
  readonly filterNodeName?: string;
  /** Bytes a bit, a power of two from 512 to 64 MiB. Default: as large as the target's clusters. */
  readonly granularity?: number | undefined;
  /** Bytes in flight at most, over a target that answers at once. */
  readonly windowLength: number;
  /** Bytes in flight at most over a link with delay. Default: `windowLength`. */
  readonly windowLengthMax?: number;
  /** Zeroes may become holes in the target. */
  readonly unmap: boolean;
  /** Default: background. */
  readonly copyMode?: MirrorCopyMode | undefined;
}

/** With what a mirror tracks together, bytes, and whether that must not be copied in part. */
export type GranularOptions = MirrorOptions & {
  readonly granularity: number;
  readonly wholeGranules: boolean;
};

/**
 * An image that has no backing node fills up with zeroes what is left of a cluster, whatever it is to
 * be read over later: it gets whole clusters, unless all of it is copied anyway.
 */
export async function withGranules(options: MirrorOptions): Promise<GranularOptions> {
  const clusters = await imageClusters(options.target);
  const granularity = options.granularity ?? defaultGranularity(clusters);
  if (clusters === undefined || clusters.filledUp || options.sync === 'full') {
    return { ...options, granularity, wholeGranules: false };
  }
  const whole = Math.max(granularity, clusters.length);
  return { ...options, granularity: whole, wholeGranules: true };
}

/** Who wants to know more of a mirror than of other jobs. */
export interface MirrorObserver extends BlockJobObserver {
  /** Writers keep up with the copy. `copyMode`: what is in force from now on. */
  notConverging?(job: MirrorJob, rates: CopyRates, copyMode: Exclude<MirrorCopyMode, 'auto'>): void;
}

/** What a mirror asks of its target. Where that lies above the source, users write below it. */
export function targetPermissions({
  source,
  target,
}: Pick<MirrorOptions, 'source' | 'target'>): Permissions {
  const written = isBelow(source, target) ? PERM_WRITE : 0;
  return { taken: PERM_WRITE, shared: PERM_WRITE_UNCHANGED | written };
}

/** @throws BlockError when the nodes can't be what they are meant to be */
export function checkMirrorNodes(options: MirrorOptions): void {
  const { source, target, commit } = options;
  if (source === target) throw new BlockError('DF_INVALID', "Can't mirror node into itself");
  if (target.size !== source.size && commit === undefined) {
    throw sizeMismatch(source, target);
  }
  checkReplaces(options);
}

/** For a target that is still to be made. @throws BlockError when the source can't be mirrored */
export function checkMirrorSource(options: Pick<MirrorOptions, 'source' | 'replaces'>): void {
  const { source } = options;
  checkReplaces(options);
  checkNoMirror(source);
  checkUnclaimed(source);
  checkMovable(source.parents);
}

function checkReplaces({ source, replaces }: Pick<MirrorOptions, 'source' | 'replaces'>): void {
  if (replaces !== undefined && !canReplace(source, replaces)) {
    throw new BlockError(
      'DF_INVALID',
      `Cannot replace '${replaces.name}' by a node mirrored from '${source.name}', because it ` +
        'cannot be guaranteed that doing so would not lead to an abrupt change of visible data',
    );
  }
  if (replaces !== undefined && replaces.size !== source.size) {
    throw new BlockError(
      'DF_INVALID',
      `cannot replace image with a mirror image of different size: node '${replaces.name}' has ` +
        `${replaces.size} bytes, node '${source.name}' ${source.size}`,
    );
  }
}

/** For the end of a job that pivots. @throws BlockError when the graph has changed meanwhile */
export function checkStillReplaceable({ source, target, replaces }: MirrorOptions): void {
  if (replaces === undefined || canReplace(source, replaces)) return;
  throw new BlockError(
    'DF_INVALID',
    `Can no longer replace '${replaces.name}' by '${target.name}', because it can no longer be ` +
      'guaranteed that doing so would not lead to an abrupt change of visible data',
  );
}

/**
 * Makes a mirror the only one of its source: after one has pivoted, another would not see what is
 * written, and lose it by its own pivot.
 * @returns what lets the source go @throws BlockError DF_IN_USE
 */
export function claimSource({ source, commit }: MirrorOptions): () => void {
  if (commit !== undefined) return () => undefined;
  checkNoMirror(source);
  return claimNodes([source], 'mirror');
}

function checkNoMirror(source: BlockNode): void {
  if (!(source.driver instanceof MirrorTopDriver)) return;
  throw new BlockError(
    'DF_IN_USE',
    `Node '${source.name}' is busy: block device is in use by block job: mirror`,
    { node: source.name },
  );
}
