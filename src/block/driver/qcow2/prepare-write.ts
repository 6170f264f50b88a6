// SPDX-License-Identifier: MIT
/** What has to be done once, before the first change of an image. */
import { QCOW2_INCOMPAT_DIRTY } from '../../../../protocol/qcow2/header.js';
import { BlockError } from '../../../base/errors.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import { markBitmapsInUse } from './bitmap-directory.js';
import type { Qcow2Image } from './image.js';
import { OverlapGuard } from './overlap.js';
import { repairRefcounts } from './repair.js';

const preparing = new WeakMap<Qcow2Image, Promise<void>>();

/**
 * Gets the image ready for changes: counts are put right after a crash, marks of what we don't keep up are
 * taken away, the image's own structures are noted so that nothing is written over them.
 * @throws BlockError DF_CORRUPT_IMAGE
 */
export function prepareWrite(image: Qcow2Image): MaybePromise<void> {
  image.checkUsable();
  if (image.guard !== undefined) return;
  const running = preparing.get(image);
  if (running !== undefined) return running;
  const started = prepare(image).finally(() => preparing.delete(image));
  preparing.set(image, started);
  return started;
}

async function prepare(image: Qcow2Image): Promise<void> {
  const { header } = image;
  if (image.corruptBit) {
    throw new BlockError(
      'DF_CORRUPT_IMAGE',
      'qcow2: Image is corrupt; cannot be opened read/write',
    );
  }
  await markBitmapsInUse(image);
  if ((header.header.incompatible & QCOW2_INCOMPAT_DIRTY) !== 0n) await repairRefcounts(image);
  image.guard = await OverlapGuard.create(image);
}
