// SPDX-License-Identifier: MIT
/** Bitmaps that say what a job is to copy: which requests make sense, and what the job leaves of the marks. */
import { BlockError } from '../base/errors.js';
import type { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import type { BlockNode } from '../block/node.js';

/** When the bitmap forgets what was copied: when all was, never, or also what was before a failure. */
export type BitmapSyncMode = 'on-success' | 'never' | 'always';

/** As the QMP command has it: optional arguments may be absent, and combinations may be wrong. */
export interface SyncRequest {
  readonly source: BlockNode;
  readonly sync: 'top' | 'full' | 'none' | 'incremental' | 'bitmap';
  /** Name of a bitmap of the source. */
  readonly bitmap?: string | undefined;
  readonly bitmapMode?: BitmapSyncMode | undefined;
}

/**
 * @throws BlockError DF_INVALID, DF_NOT_FOUND, or why the bitmap can't be used, in QEMU's words for a backup
 */
export function checkSyncBitmap(request: SyncRequest): {
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

/**
 * Gives a mirror's bitmap back, which was frozen under a successor. What still differs between source
 * and target is all that it marks then, unless the mode wants the old marks kept.
 */
export function returnMirrorBitmap(
  bitmap: DirtyBitmap,
  mode: BitmapSyncMode,
  outcome: {
    readonly copied: boolean;
    /** `differences` says what there was to copy. */
    readonly began: boolean;
    readonly differences: DirtyBitmap;
  },
): void {
  const { copied, began, differences } = outcome;
  const forget = copied ? mode !== 'never' : mode === 'always' && began;
  if (!forget) {
    bitmap.reclaim();
    return;
  }
  const successor = bitmap.abdicate();
  successor.clear();
  successor.merge(differences);
}
