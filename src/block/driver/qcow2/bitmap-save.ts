// SPDX-License-Identifier: MIT
/**
 * Bitmaps of the node become stored ones. Everything is written to new clusters first; the header takes
 * the image from the old directory to the new one in one step, and then the old clusters come free.
 */
import {
  type BitmapCluster,
  bitmapEntryLength,
  encodeBitmapDirectory,
  encodeBitmapTable,
  QCOW2_BITMAP_AUTO,
  QCOW2_BITMAP_DIRECTORY_MAX,
  QCOW2_BITMAP_GRANULARITY_BITS_MAX,
  QCOW2_BITMAP_LENGTH_MAX,
  QCOW2_BITMAP_NAME_MAX,
  QCOW2_BITMAPS_MAX,
  type StoredBitmap,
} from '../../../../protocol/qcow2/bitmaps.js';
import {
  QCOW2_AUTOCLEAR_BITMAPS,
  QCOW2_AUTOCLEAR_DATA_FILE_RAW,
} from '../../../../protocol/qcow2/header.js';
import { alignUp } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import { type BitmapHolder, DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import { allocateContiguousLocked, allocateLocked } from './allocate.js';
import { directoryPlace, extensionsWith, readTable } from './bitmap-directory.js';
import { persistentBitmaps } from './bitmap-load.js';
import { layOut } from './header-state.js';
import type { Qcow2Image } from './image.js';

/** What has been allocated and is referred to by nothing yet. */
type Ranges = { offset: number; length: number }[];

/**
 * Whether the image can store a bitmap of this granularity, at this size of the disk.
 * @throws BlockError DF_INVALID, in QEMU's words
 */
export function checkConstraints(
  image: Qcow2Image,
  { granularity, size }: { readonly granularity: number; readonly size: number },
): void {
  if (granularity > 2 ** QCOW2_BITMAP_GRANULARITY_BITS_MAX) {
    throw invalid(`Granularity exceeds maximum (${2 ** QCOW2_BITMAP_GRANULARITY_BITS_MAX} bytes)`);
  }
  const length = Math.ceil(size / granularity / 8);
  // The directory's check is stricter where a table ends within a cluster.
  if (alignUp(length, image.geometry.clusterSize) > QCOW2_BITMAP_LENGTH_MAX) {
    throw invalid('Too much space will be occupied by the bitmap. Use larger granularity');
  }
}

/** One more bitmap. @throws BlockError DF_INVALID, DF_NOT_SUPPORTED, in QEMU's words */
export function checkNewBitmap(
  image: Qcow2Image,
  holder: BitmapHolder,
  { name, granularity }: { readonly name: string; readonly granularity: number },
): void {
  if (image.geometry.version < 3) {
    throw new BlockError('DF_NOT_SUPPORTED', 'Cannot store dirty bitmaps in qcow2 v2 files');
  }
  checkConstraints(image, { granularity, size: image.size });
  const nameLength = Buffer.byteLength(name);
  if (nameLength > QCOW2_BITMAP_NAME_MAX) {
    throw invalid(`Name length exceeds maximum (${QCOW2_BITMAP_NAME_MAX} characters)`);
  }
  if (name.includes('\0')) throw invalid('A name can not have a NUL character in it');
  const others = persistentBitmaps(holder);
  if (others.length + 1 > QCOW2_BITMAPS_MAX) {
    throw invalid('Maximum number of persistent bitmaps is already reached');
  }
  const length = others.reduce(
    (sum, other) => sum + bitmapEntryLength(Buffer.byteLength(other.name ?? '')),
    bitmapEntryLength(nameLength),
  );
  if (length > QCOW2_BITMAP_DIRECTORY_MAX) {
    throw invalid('Not enough space in the bitmap directory');
  }
  layOut(
    {
      ...image.header.content,
      extensions: extensionsWith(image, { offset: 0, length: 0, count: 1 }),
    },
    {},
  );
}

/**
 * Stores the node's persistent bitmaps, but for inconsistent ones, which stay as they are. Durable when
 * done. To be called before the image is let go of, when it was got ready for changes.
 * @throws BlockError; the image is as before then, its bitmaps count as old
 */
export async function saveBitmaps(image: Qcow2Image, holder: BitmapHolder): Promise<void> {
  const wanted = persistentBitmaps(holder).filter(({ inconsistent }) => !inconsistent);
  if (wanted.length === 0) return;
  for (const { granularity, size } of wanted) checkConstraints(image, { granularity, size });
  const names = new Set(wanted.map(({ name }) => name));
  const kept = image.storedBitmaps.filter(({ name }) => !names.has(name));
  const replaced = image.storedBitmaps.filter(({ name }) => names.has(name));
  const taken: Ranges = [];
  try {
    const stored: StoredBitmap[] = [];
    for (const bitmap of wanted) stored.push(await saveBitmap(image, bitmap, taken));
    await replaceDirectory(image, [...kept, ...stored], taken);
  } catch (error) {
    giveUp(image, taken);
    throw error;
  }
  image.loadedBitmaps = new Set(wanted);
  for (const bitmap of replaced) await freeBitmap(image, bitmap);
}

/** Takes a bitmap out of the image; durable when done. Without one of that name nothing is done. */
export async function removeStored(image: Qcow2Image, name: string): Promise<void> {
  const bitmap = image.storedBitmaps.find((stored) => stored.name === name);
  if (bitmap === undefined) return;
  const taken: Ranges = [];
  const others = image.storedBitmaps.filter((stored) => stored !== bitmap);
  try {
    await replaceDirectory(image, others, taken);
  } catch (error) {
    giveUp(image, taken);
    throw error;
  }
  await freeBitmap(image, bitmap);
  await image.metadata.commit();
}

async function saveBitmap(
  image: Qcow2Image,
  bitmap: DirtyBitmap,
  taken: Ranges,
): Promise<StoredBitmap> {
  const { clusterSize } = image.geometry;
  const content = contentOf(bitmap);
  const clusters: BitmapCluster[] = [];
  const length = content.serializedLength;
  const coverage = clusterSize * 8 * content.granularity;
  for (let at = 0; at < length; at += clusterSize) {
    const from = (at / clusterSize) * coverage;
    clusters.push(await saveCluster(image, content, { at, from, coverage }, taken));
  }
  const table = await takeClusters(image, clusters.length * 8, taken);
  await image.file.write(table, Buffer.from(encodeBitmapTable(clusters)));
  return {
    name: bitmap.name ?? '',
    tableOffset: table,
    tableEntries: clusters.length,
    flags: bitmap.recording ? QCOW2_BITMAP_AUTO : 0,
    granularityBits: Math.log2(bitmap.granularity),
  };
}

/** What is marked, here and in the successor that records while an operation has the bitmap. */
function contentOf(bitmap: DirtyBitmap): DirtyBitmap {
  const { successor, size, granularity } = bitmap;
  if (successor === undefined) return bitmap;
  const both = new DirtyBitmap({ size, granularity });
  both.merge(bitmap);
  both.merge(successor);
  return both;
}

async function saveCluster(
  image: Qcow2Image,
  content: DirtyBitmap,
  place: { readonly at: number; readonly from: number; readonly coverage: number },
  taken: Ranges,
): Promise<BitmapCluster> {
  const { at, from, coverage } = place;
  if (from >= content.size || content.nextDirty(from, coverage) < 0) return 'zeroes';
  const { clusterSize } = image.geometry;
  const buffer = Buffer.alloc(clusterSize);
  content.serialize(buffer.subarray(0, Math.min(clusterSize, content.serializedLength - at)), at);
  const offset = await image.allocation.run(async () => (await allocateLocked(image, 1)).offset);
  taken.push({ offset, length: clusterSize });
  await image.file.write(offset, buffer);
  return offset;
}

async function takeClusters(image: Qcow2Image, length: number, taken: Ranges): Promise<number> {
  const clusters = Math.ceil(length / image.geometry.clusterSize);
  const offset = await image.allocation.run(
    async () => (await allocateContiguousLocked(image, clusters)).offset,
  );
  taken.push({ offset, length: clusters * image.geometry.clusterSize });
  return offset;
}

/** Writes the directory and points the header at it, durably; the old one comes free. */
async function replaceDirectory(
  image: Qcow2Image,
  bitmaps: readonly StoredBitmap[],
  taken: Ranges,
): Promise<void> {
  const { header, metadata, file, geometry } = image;
  const old = directoryPlace(image);
  const rest = header.header.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW;
  if (bitmaps.length === 0) {
    await header.rewrite({ extensions: extensionsWith(image), fields: { autoclear: rest } });
  } else {
    const bytes = Buffer.from(encodeBitmapDirectory(bitmaps));
    const offset = await takeClusters(image, bytes.byteLength, taken);
    const cluster = Buffer.alloc(alignUp(bytes.byteLength, geometry.clusterSize));
    bytes.copy(cluster);
    await file.write(offset, cluster);
    await metadata.writeRefcounts();
    await file.flush();
    // Should this fail, it is not known which directory the header names: both stay as they are.
    taken.length = 0;
    const place = { offset, length: bytes.byteLength, count: bitmaps.length };
    await header.rewrite({
      extensions: extensionsWith(image, place),
      fields: { autoclear: rest | QCOW2_AUTOCLEAR_BITMAPS },
    });
  }
  image.storedBitmaps = bitmaps;
  image.guard?.refresh();
  if (old !== undefined) free(image, old.offset, old.length);
}

/** Clusters that a table can't tell any more are left to `qemu-img check`. */
async function freeBitmap(image: Qcow2Image, bitmap: StoredBitmap): Promise<void> {
  const { clusterSize } = image.geometry;
  let clusters: BitmapCluster[] = [];
  try {
    clusters = await readTable(image, bitmap);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
  for (const cluster of clusters) {
    if (typeof cluster === 'number') free(image, cluster, clusterSize);
  }
  free(image, bitmap.tableOffset, bitmap.tableEntries * 8);
}

function free(image: Qcow2Image, offset: number, length: number): void {
  image.frees.add({
    offset,
    length: alignUp(length, image.geometry.clusterSize),
    table: false,
    discard: image.options.passDiscard.other,
  });
}

function giveUp(image: Qcow2Image, taken: Ranges): void {
  for (const { offset, length } of taken) free(image, offset, length);
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
