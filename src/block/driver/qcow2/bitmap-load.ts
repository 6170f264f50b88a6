// SPDX-License-Identifier: MIT
/** Stored bitmaps become those of the node. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  QCOW2_BITMAP_AUTO,
  QCOW2_BITMAP_IN_USE,
  type StoredBitmap,
} from '../../../../protocol/qcow2/bitmaps.js';
import { BlockError } from '../../../base/errors.js';
import { type BitmapHolder, DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import { readDirectory, readTable } from './bitmap-directory.js';
import type { Qcow2Image } from './image.js';
import { readPadded } from './image-io.js';

/** Clusters after which others get their turn. */
const TURN = 16;

/**
 * Reads all bitmaps of an image and puts them on its node, in place of those that were loaded before.
 * @throws BlockError DF_INVALID in QEMU's words; the node is as before then
 */
export async function loadBitmaps(
  image: Qcow2Image,
  holder: BitmapHolder,
  { readOnly }: { readonly readOnly: boolean },
): Promise<void> {
  const stored = await readDirectory(image);
  const before = persistentBitmaps(holder);
  // A valid image refers to each of its clusters once: no more can be read than there is.
  const budget = { bytes: image.file.size };
  const loaded: DirtyBitmap[] = [];
  for (const entry of stored) {
    const there = holder.bitmaps.get(entry.name);
    if (there !== undefined && !before.includes(there)) {
      throw invalid(`Bitmap already exists: ${entry.name}`);
    }
    loaded.push(await loadBitmap(image, entry, budget));
  }
  for (const bitmap of before) bitmap.detach();
  for (const bitmap of loaded) {
    bitmap.readOnly = readOnly;
    bitmap.attach(holder);
  }
  image.storedBitmaps = stored;
  image.loadedBitmaps = new Set(loaded);
}

/** A job has put others in the place of bitmaps that were loaded, though the disk was not written. */
export function bitmapsReplaced(image: Qcow2Image, holder: BitmapHolder): boolean {
  return persistentBitmaps(holder).some(
    (bitmap) => !bitmap.inconsistent && !image.loadedBitmaps.has(bitmap),
  );
}

export function persistentBitmaps(holder: BitmapHolder): DirtyBitmap[] {
  return [...holder.bitmaps.values()].filter(({ persistent }) => persistent);
}

async function loadBitmap(
  image: Qcow2Image,
  entry: StoredBitmap,
  budget: { bytes: number },
): Promise<DirtyBitmap> {
  const bitmap = new DirtyBitmap({
    name: entry.name,
    size: image.size,
    granularity: 2 ** entry.granularityBits,
    persistent: true,
    disabled: (entry.flags & QCOW2_BITMAP_AUTO) === 0,
  });
  if ((entry.flags & QCOW2_BITMAP_IN_USE) !== 0) bitmap.markInconsistent();
  else await loadContent(image, entry, bitmap, budget);
  return bitmap;
}

async function loadContent(
  image: Qcow2Image,
  entry: StoredBitmap,
  bitmap: DirtyBitmap,
  budget: { bytes: number },
): Promise<void> {
  const { clusterSize } = image.geometry;
  const { file } = image;
  const length = bitmap.serializedLength;
  if (entry.tableEntries !== Math.ceil(length / clusterSize)) throw cannotRead(entry.name);
  budget.bytes -= entry.tableEntries * 8;
  if (budget.bytes < 0) throw cannotRead(entry.name);
  const clusters = await readTable(image, entry);
  const buffer = Buffer.alloc(clusterSize);
  const coverage = clusterSize * 8 * bitmap.granularity;
  for (const [index, cluster] of clusters.entries()) {
    if (index % TURN === 0) await nextTurn();
    if (cluster === 'zeroes') continue;
    if (cluster === 'ones') {
      const from = index * coverage;
      bitmap.setDirty(from, Math.min(coverage, image.size - from));
      continue;
    }
    const at = index * clusterSize;
    budget.bytes -= Math.min(clusterSize, length - at);
    if (cluster >= file.size || budget.bytes < 0) throw cannotRead(entry.name);
    await readPadded(file, cluster, buffer);
    bitmap.deserialize(buffer.subarray(0, Math.min(clusterSize, length - at)), at);
  }
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
const cannotRead = (name: string): BlockError =>
  invalid(`Could not read bitmap '${name}' from image: Invalid argument`);
