// SPDX-License-Identifier: MIT
/** The named bitmaps of a node: what QMP's block-dirty-bitmap commands do, and refuse, in QEMU's words. */
import { BlockError } from '../../base/errors.js';
import {
  BITMAP_NAME_MAX,
  type BitmapBackup,
  type BitmapHolder,
  checkGranularity,
  DirtyBitmap,
} from './dirty-bitmap.js';

/** Granularity where none is asked for and the node has no clusters, bytes. */
const GRANULARITY_DEFAULT = 64 * 1024;
const GRANULARITY_DEFAULT_MIN = 4 * 1024;

/** A holder that knows how large it is: a node. */
export interface SizedHolder extends BitmapHolder {
  /** Bytes. */
  readonly size: number;
}

export interface AddBitmapOptions {
  readonly name: string;
  /** Bytes; default: GRANULARITY_DEFAULT. */
  readonly granularity?: number;
  readonly disabled?: boolean;
  /** The caller has made sure that the node's driver can store it. */
  readonly persistent?: boolean;
}

/** The default granularity on an image with such clusters, bytes. */
export function defaultGranularity(clusters: { readonly length: number } | undefined): number {
  const length = clusters?.length ?? GRANULARITY_DEFAULT;
  return Math.min(Math.max(length, GRANULARITY_DEFAULT_MIN), GRANULARITY_DEFAULT);
}

/** @throws BlockError DF_INVALID, DF_EXISTS when the holder can't get a bitmap of that name */
export function checkBitmapName(holder: BitmapHolder, name: string): void {
  if (name === '') throw new BlockError('DF_INVALID', 'Bitmap name cannot be empty');
  if (holder.bitmaps.has(name)) {
    throw new BlockError('DF_EXISTS', `Bitmap already exists: ${name}`);
  }
  if (Buffer.byteLength(name) > BITMAP_NAME_MAX) {
    throw new BlockError('DF_INVALID', `Bitmap name too long: ${name}`);
  }
}

/** Adds a clean bitmap. @throws BlockError DF_INVALID, DF_EXISTS */
export function addBitmap(holder: SizedHolder, options: AddBitmapOptions): DirtyBitmap {
  const { name, granularity = GRANULARITY_DEFAULT } = options;
  if (name !== '') checkGranularity(granularity);
  checkBitmapName(holder, name);
  const bitmap = new DirtyBitmap({ ...options, granularity, size: holder.size });
  bitmap.attach(holder);
  return bitmap;
}

/** @throws BlockError DF_NOT_FOUND */
export function findBitmap(holder: BitmapHolder, name: string): DirtyBitmap {
  const bitmap = holder.bitmaps.get(name);
  if (bitmap === undefined) {
    throw new BlockError('DF_NOT_FOUND', `Dirty bitmap '${name}' not found`);
  }
  return bitmap;
}

/** @returns what `restore` needs to undo it. @throws BlockError */
export function clearBitmap(holder: BitmapHolder, name: string): BitmapBackup {
  const bitmap = findBitmap(holder, name);
  bitmap.checkUse();
  return bitmap.clear();
}

/** @throws BlockError */
export function enableBitmap(holder: BitmapHolder, name: string): void {
  const bitmap = findBitmap(holder, name);
  bitmap.checkUse({ allowReadOnly: true });
  bitmap.enable();
}

/** @throws BlockError */
export function disableBitmap(holder: BitmapHolder, name: string): void {
  const bitmap = findBitmap(holder, name);
  bitmap.checkUse({ allowReadOnly: true });
  bitmap.disable();
}

/**
 * Adds what is dirty in the sources to the target. All or nothing.
 * @returns what `restore` needs to undo it; undefined when there were no sources
 * @throws BlockError naming the bitmap that can't be used; the target is then as before
 */
export function mergeBitmaps(
  target: DirtyBitmap,
  sources: readonly DirtyBitmap[],
): BitmapBackup | undefined {
  let backup: BitmapBackup | undefined;
  try {
    for (const source of sources) {
      target.checkUse();
      source.checkUse({ allowReadOnly: true });
      const before = target.merge(source);
      backup ??= before;
    }
  } catch (error) {
    if (backup !== undefined) target.restore(backup);
    throw error;
  }
  return backup;
}
