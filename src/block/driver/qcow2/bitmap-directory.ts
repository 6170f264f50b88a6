// SPDX-License-Identifier: MIT
/** The directory of stored bitmaps: read and checked, marked as in use, written anew. */
import {
  type BitmapCluster,
  decodeBitmapDirectory,
  decodeBitmapTable,
  encodeBitmapDirectory,
  QCOW2_BITMAP_DIRECTORY_MAX,
  QCOW2_BITMAP_IN_USE,
  QCOW2_BITMAPS_EXTENSION,
  QCOW2_BITMAPS_MAX,
  type StoredBitmap,
} from '../../../../protocol/qcow2/bitmaps.js';
import { QCOW2_EXT_BITMAPS } from '../../../../protocol/qcow2/extensions.js';
import {
  QCOW2_AUTOCLEAR_BITMAPS,
  QCOW2_AUTOCLEAR_DATA_FILE_RAW,
} from '../../../../protocol/qcow2/header.js';
import { BlockError, toError } from '../../../base/errors.js';
import type { Qcow2Image } from './image.js';

/** Where the directory lies, host bytes. */
export interface DirectoryPlace {
  readonly offset: number;
  readonly length: number;
}

/**
 * The directory that the image says is valid.
 * @throws BlockError DF_INVALID, in QEMU's words
 */
export async function readDirectory(
  image: Pick<Qcow2Image, 'file' | 'geometry' | 'header'>,
): Promise<StoredBitmap[]> {
  const { header, geometry, file } = image;
  const data = header.extension(QCOW2_EXT_BITMAPS);
  if (data === undefined || (header.header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) === 0n) return [];
  const { count, reserved, directoryLength, directoryOffset } =
    QCOW2_BITMAPS_EXTENSION.decode(data);
  if (reserved !== 0) throw invalid('bitmaps_ext: Reserved field is not zero');
  if (count > QCOW2_BITMAPS_MAX) {
    throw invalid(
      `bitmaps_ext: Image has ${count} bitmaps, exceeding the QEMU supported maximum of ${QCOW2_BITMAPS_MAX}`,
    );
  }
  if (count === 0) throw invalid('found bitmaps extension with zero bitmaps');
  if (directoryOffset % BigInt(geometry.clusterSize) !== 0n) {
    throw invalid('bitmaps_ext: invalid bitmap directory offset');
  }
  if (directoryLength > BigInt(QCOW2_BITMAP_DIRECTORY_MAX)) {
    throw invalid(
      `bitmaps_ext: bitmap directory size (${directoryLength}) exceeds the maximum supported size (${QCOW2_BITMAP_DIRECTORY_MAX})`,
    );
  }
  if (directoryLength === 0n) throw invalid('Requested bitmap directory size is zero');
  if (directoryOffset === 0n || directoryOffset + directoryLength > BigInt(file.size)) {
    throw invalid(`Failed to read bitmap directory: it lies outside the file`);
  }
  const bytes = Buffer.alloc(Number(directoryLength));
  await file.read(Number(directoryOffset), bytes);
  try {
    const found = decodeBitmapDirectory(bytes, { count, clusterSize: geometry.clusterSize });
    checkNames(found);
    return found;
  } catch (error) {
    throw invalid(toError(error).message);
  }
}

function checkNames(bitmaps: readonly StoredBitmap[]): void {
  const names = new Set<string>();
  for (const { name } of bitmaps) {
    if (names.has(name)) throw new RangeError(`Bitmap already exists: ${name}`);
    names.add(name);
  }
}

/** Where the directory lies; undefined: the image has none that is valid. */
export function directoryPlace(
  image: Pick<Qcow2Image, 'header' | 'storedBitmaps'>,
): DirectoryPlace | undefined {
  const data = image.header.extension(QCOW2_EXT_BITMAPS);
  if (data === undefined || image.storedBitmaps.length === 0) return undefined;
  const { directoryOffset, directoryLength } = QCOW2_BITMAPS_EXTENSION.decode(data);
  return { offset: Number(directoryOffset), length: Number(directoryLength) };
}

/** Reads a bitmap's table. @throws BlockError DF_INVALID for one that can't be */
export async function readTable(image: Qcow2Image, bitmap: StoredBitmap): Promise<BitmapCluster[]> {
  const { file, geometry } = image;
  const { name, tableOffset, tableEntries } = bitmap;
  const about = `Could not read bitmap_table table from image for bitmap '${name}'`;
  const length = tableEntries * 8;
  if (tableOffset + length > file.size) throw invalid(`${about}: it lies outside the file`);
  const bytes = Buffer.alloc(length);
  await file.read(tableOffset, bytes);
  try {
    return decodeBitmapTable(bytes, geometry.clusterSize);
  } catch (error) {
    throw invalid(`${about}: ${toError(error).message}`);
  }
}

/**
 * Before the first change of an image: what is stored of its bitmaps will be old. Bitmaps that a program
 * without knowledge of them has made old are forgotten; marks of features that are not kept up go.
 */
export async function markBitmapsInUse(image: Qcow2Image): Promise<void> {
  const { header, file } = image;
  const rest = header.header.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW;
  const place = directoryPlace(image);
  if (place === undefined) {
    if (header.extension(QCOW2_EXT_BITMAPS) !== undefined) {
      await header.rewrite({ extensions: extensionsWith(image), fields: { autoclear: rest } });
    } else if (header.header.autoclear !== rest) await header.update({ autoclear: rest });
    return;
  }
  const marked = image.storedBitmaps.map((bitmap) => ({
    ...bitmap,
    flags: bitmap.flags | QCOW2_BITMAP_IN_USE,
  }));
  const autoclear = rest | QCOW2_AUTOCLEAR_BITMAPS;
  if (image.storedBitmaps.some(({ flags }) => (flags & QCOW2_BITMAP_IN_USE) === 0)) {
    // A directory that is half written must not count.
    await header.update({ autoclear: rest });
    await file.write(place.offset, Buffer.from(encodeBitmapDirectory(marked)));
    await file.flush();
    image.storedBitmaps = marked;
  }
  if (header.header.autoclear !== autoclear) await header.update({ autoclear });
}

/** The extensions of the header with another place of the directory; without: no bitmaps. */
export function extensionsWith(
  image: Qcow2Image,
  directory?: DirectoryPlace & { readonly count: number },
): { readonly type: number; readonly data: Uint8Array }[] {
  const others = image.header.content.extensions.filter(({ type }) => type !== QCOW2_EXT_BITMAPS);
  if (directory === undefined) return others;
  const data = new Uint8Array(QCOW2_BITMAPS_EXTENSION.size);
  QCOW2_BITMAPS_EXTENSION.encode(
    {
      count: directory.count,
      reserved: 0,
      directoryLength: BigInt(directory.length),
      directoryOffset: BigInt(directory.offset),
    },
    data,
  );
  return [...others, { type: QCOW2_EXT_BITMAPS, data }];
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
