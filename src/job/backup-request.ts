// SPDX-License-Identifier: MIT
/** What makes sense to ask of a backup, and in what words QEMU refuses the rest. */
import { BlockError } from '../base/errors.js';
import { clusterLengthFor, clusterLengthOf } from '../block/filter/copy-before-write.js';
import { SnapshotAccessDriver } from '../block/filter/snapshot-access.js';
import type { BlockNode } from '../block/node.js';
import type { BackupOptions } from './backup.js';
import { type BitmapSyncMode, checkSyncBitmap } from './sync-bitmap.js';

/** As the QMP command has it: optional arguments may be absent, and combinations may be wrong. */
export interface BackupRequest {
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly sync: 'top' | 'full' | 'none' | 'incremental' | 'bitmap';
  /** Name of a bitmap of the source. */
  readonly bitmap?: string | undefined;
  readonly bitmapMode?: BitmapSyncMode | undefined;
  readonly compress: boolean;
  readonly speed: number | bigint;
  readonly maxWorkers?: number | undefined;
  readonly maxChunk?: number | bigint | undefined;
  readonly minClusterSize?: number | undefined;
  readonly discardSource?: boolean | undefined;
}

/** What a request comes to. */
export type CheckedBackup = Pick<
  BackupOptions,
  | 'source'
  | 'target'
  | 'sync'
  | 'bitmap'
  | 'bitmapMode'
  | 'speed'
  | 'clusterLength'
  | 'requestsMax'
  | 'chunkLengthMax'
  | 'discardSource'
  | 'compress'
>;

const WORKERS_DEFAULT = 256;
const WORKERS_MAX = 2 ** 31 - 1;

/** @throws BlockError DF_INVALID, DF_NOT_FOUND, DF_NOT_SUPPORTED, or why the bitmap can't be used */
export async function checkBackup(request: BackupRequest): Promise<CheckedBackup> {
  const { target, compress } = request;
  const settings = checkBackupSettings(request);
  const unit = target.limits.compressedUnit;
  if (compress && unit === 0) throw cannotCompress();
  const needed = Math.max(await clusterLengthFor(target), compress ? unit : 0);
  return { ...settings, clusterLength: Math.max(settings.clusterLength, needed), target };
}

/** The space at the end is where QEMU names a device, which a node has not. */
export function cannotCompress(): BlockError {
  return new BlockError('DF_NOT_SUPPORTED', 'Compression is not supported for this drive ');
}

/** What can be said before there is a target. @throws as `checkBackup` */
export function checkBackupSettings(
  request: Omit<BackupRequest, 'target'>,
): Omit<CheckedBackup, 'target'> {
  const { source, sync, compress, speed } = request;
  const { bitmap, mode } = checkSyncBitmap(request);
  const { maxWorkers = WORKERS_DEFAULT, maxChunk = 0, minClusterSize = 0 } = request;
  if (maxWorkers < 1 || maxWorkers > WORKERS_MAX) {
    throw new BlockError('DF_INVALID', `max-workers must be between 1 and ${WORKERS_MAX}`);
  }
  if (maxChunk < 0) {
    throw new BlockError('DF_INVALID', 'max-chunk must be zero (which means no limit) or positive');
  }
  if (speed < 0) {
    throw new BlockError('DF_INVALID', "Parameter 'speed' expects a non-negative value");
  }
  return {
    source,
    sync: sync === 'incremental' ? 'bitmap' : sync,
    bitmap,
    bitmapMode: mode,
    speed,
    compress,
    clusterLength: Math.max(clusterLengthOf(minClusterSize), snapshotCluster(request)),
    discardSource: request.discardSource ?? false,
    requestsMax: maxWorkers,
    chunkLengthMax: Number(maxChunk),
  };
}

/**
 * What is copied at a time has to be what can be discarded at a time; 0: nothing is to be discarded.
 * @throws BlockError for a source of which nothing may be discarded
 */
function snapshotCluster({ source, discardSource = false }: Omit<BackupRequest, 'target'>): number {
  if (!discardSource) return 0;
  const { driver } = source;
  if (!(driver instanceof SnapshotAccessDriver)) {
    throw new BlockError(
      'DF_NOT_SUPPORTED',
      `discard-source needs a snapshot-access node: the users of '${source.name}' would lose its data`,
      { node: source.name },
    );
  }
  if (source.options.readOnly) {
    throw new BlockError('DF_READ_ONLY', `Block node '${source.name}' is read-only`, {
      node: source.name,
    });
  }
  return driver.filter.copies.clusterLength;
}
