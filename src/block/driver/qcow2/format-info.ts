// SPDX-License-Identifier: MIT
/** What queries tell of an image. @see qapi ImageInfo, ImageInfoSpecificQCow2 */
import {
  QCOW2_BITMAP_AUTO,
  QCOW2_BITMAP_IN_USE,
  type StoredBitmap,
} from '../../../../protocol/qcow2/bitmaps.js';
import {
  QCOW2_EXT_BACKING_FORMAT,
  QCOW2_EXT_DATA_FILE,
} from '../../../../protocol/qcow2/extensions.js';
import {
  QCOW2_COMPAT_LAZY_REFCOUNTS,
  QCOW2_COMPRESSION_ZSTD,
  QCOW2_INCOMPAT_CORRUPT,
  QCOW2_INCOMPAT_DIRTY,
  QCOW2_INCOMPAT_EXTL2,
} from '../../../../protocol/qcow2/header.js';
import type { FormatInfo } from '../../block-driver.js';
import { describeLuks } from '../../crypto/describe-luks.js';
import type { Qcow2Image } from './image.js';
import { fullBackingName } from './implied-children.js';

/** @param filename the image's own, from which a relative backing file starts */
export function formatInfo(image: Qcow2Image, filename: string): FormatInfo {
  const { backingName } = image.header.content;
  const format = image.header.extension(QCOW2_EXT_BACKING_FORMAT);
  const backing =
    backingName === undefined
      ? {}
      : {
          backingFilename: backingName,
          fullBackingFilename: fullBackingName(backingName, filename),
        };
  return {
    clusterSize: image.geometry.clusterSize,
    ...backing,
    ...(format === undefined ? {} : { backingFormat: Buffer.from(format).toString('utf8') }),
    dirty: (image.header.header.incompatible & QCOW2_INCOMPAT_DIRTY) !== 0n,
  };
}

/** ImageInfoSpecificQCow2. */
export function specificInfo(image: Qcow2Image): Record<string, unknown> {
  const { header } = image.header;
  const common = {
    'compression-type': header.compressionType === QCOW2_COMPRESSION_ZSTD ? 'zstd' : 'zlib',
    'refcount-bits': 2 ** header.refcountOrder,
  };
  if (header.version < 3) return { compat: '0.10', ...common, ...encryptInfo(image) };
  const dataFile = image.header.extension(QCOW2_EXT_DATA_FILE);
  return {
    compat: '1.1',
    ...common,
    'lazy-refcounts': (header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS) !== 0n,
    corrupt: (header.incompatible & QCOW2_INCOMPAT_CORRUPT) !== 0n,
    ...encryptInfo(image),
    ...(image.storedBitmaps.length > 0 ? { bitmaps: image.storedBitmaps.map(bitmapInfo) } : {}),
    'extended-l2': (header.incompatible & QCOW2_INCOMPAT_EXTL2) !== 0n,
    ...(image.hasDataFile
      ? {
          ...(dataFile === undefined
            ? {}
            : { 'data-file': Buffer.from(dataFile).toString('utf8') }),
          'data-file-raw': image.dataFileRaw,
        }
      : {}),
  };
}

/** @see qapi ImageInfoSpecificQCow2Encryption */
function encryptInfo({ encryption }: Qcow2Image): Record<string, unknown> {
  if (encryption === undefined) return {};
  const { format, luks } = encryption;
  return { encrypt: { format, ...(luks === undefined ? {} : describeLuks(luks)) } };
}

/** @see qapi Qcow2BitmapInfo */
function bitmapInfo({ name, granularityBits, flags }: StoredBitmap): Record<string, unknown> {
  return {
    name,
    granularity: 2 ** granularityBits,
    flags: [
      ...((flags & QCOW2_BITMAP_IN_USE) === 0 ? [] : ['in-use']),
      ...((flags & QCOW2_BITMAP_AUTO) === 0 ? [] : ['auto']),
    ],
  };
}
