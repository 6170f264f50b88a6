// SPDX-License-Identifier: MIT
/** What makes sense to ask of a backup, and in what words QEMU refuses the rest. */
import { BlockError } from '../base/errors.js';
import type { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { clusterLengthOf } from '../block/filter/copy-before-write.js';
import type { BlockNode } from '../block/node.js';
import type { BackupOptions, BitmapSyncMode } from './backup.js';

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
>;

const WORKERS_DEFAULT = 64;
const WORKERS_MAX = 2 ** 31 - 1;

/** @throws BlockError DF_INVALID, DF_NOT_FOUND, DF_NOT_SUPPORTED, or why the bitmap can't be used */
export function checkBackup(request: BackupRequest): CheckedBackup {
  const { source, target, sync, compress, speed } = request;
  const { bitmap, mode } = checkBitmap(request);
  if (compress) {
    // The space is where QEMU names a device, which a node has not.
    throw new BlockError('DF_NOT_SUPPORTED', 'Compression is not supported for this drive ');
  }
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
    target,
    sync: sync === 'incremental' ? 'bitmap' : sync,
    bitmap,
    bitmapMode: mode,
    speed,
    clusterLength: clusterLengthOf(minClusterSize),
    requestsMax: maxWorkers,
    chunkLengthMax: Number(maxChunk),
  };
}

function checkBitmap(request: BackupRequest): {
  readonly bitmap: DirtyBitmap | undefined;
  readonly mode: BitmapSyncMode;
} {
  const { source, sync, bitmap: name } = request;
  let mode = request.bitmapMode;
  if ((sync === 'incremental' || sync === 'bitmap') && name === undefined) {
    throw invalid(`must provide a valid bitmap name for '${sync}' sync mode`);
  }
  if (sync === 'incremental') {
    if (mode !== undefined && mode !== 'on-success') {
      throw invalid("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
    }
    mode = 'on-success';
  }
  if (name === undefined) {
    if (mode !== undefined) throw invalid('Cannot specify bitmap sync mode without a bitmap');
    return { bitmap: undefined, mode: 'on-success' };
  }
  const bitmap = source.bitmaps.get(name);
  if (bitmap === undefined) {
    throw new BlockError('DF_NOT_FOUND', `Bitmap '${name}' could not be found`);
  }
  if (mode === undefined) {
    throw invalid('Bitmap sync mode must be given when providing a bitmap');
  }
  bitmap.checkUse({ allowReadOnly: mode === 'never' });
  if (sync === 'none') {
    throw invalid("sync mode 'none' does not produce meaningful bitmap outputs");
  }
  if (mode === 'never' && sync !== 'incremental' && sync !== 'bitmap') {
    throw invalid(
      `Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '${sync}'`,
    );
  }
  return { bitmap, mode };
}

const invalid = (text: string): BlockError => new BlockError('DF_INVALID', text);
