// SPDX-License-Identifier: MIT
/** What is copied: one image, or several one after the other, with or without what can't be read. */

import { errorText } from '../../base/error-text.js';
import { toError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { BlockBackend } from '../../block/backend.js';
import { STATUS_ALLOCATED, STATUS_DATA } from '../../block/block-driver.js';
import type { ChainExtent } from '../../block/block-status.js';
import type { RangeUse } from '../../block/file-range.js';

/** Offsets and lengths in bytes. */
export interface CopySource {
  readonly size: number;
  read(offset: number, buffer: Buffer): MaybePromise<void>;
  /** @see BlockNode.readRange. Absent: everything has to be read. */
  readRange?(offset: number, length: number, use: RangeUse): MaybePromise<number>;
  blockStatus(offset: number, length: number): MaybePromise<ChainExtent>;
}

/** Unit in which what can't be read is given up, bytes. */
const SECTOR = 512;

/** Images one after the other, read as one. */
export function concatenated(images: readonly BlockBackend[]): CopySource {
  const starts: number[] = [];
  let size = 0;
  for (const image of images) {
    starts.push(size);
    size += image.size;
  }
  const [only] = images;
  if (only !== undefined && images.length === 1) return only;
  const at = (offset: number): { image: BlockBackend; inside: number; left: number } => {
    const index = starts.findLastIndex((start) => start <= offset);
    const image = images[index];
    const inside = offset - (starts[index] ?? 0);
    if (image === undefined) throw new RangeError(`no image has offset ${offset}`);
    return { image, inside, left: image.size - inside };
  };
  return {
    size,
    async read(offset, buffer) {
      for (let done = 0; done < buffer.byteLength; ) {
        const { image, inside, left } = at(offset + done);
        const part = buffer.subarray(done, done + left);
        await image.read(inside, part);
        done += part.byteLength;
      }
    },
    readRange(offset, length, use) {
      const { image, inside, left } = at(offset);
      return image.readRange(inside, Math.min(length, left), use);
    },
    blockStatus(offset, length) {
      const { image, inside, left } = at(offset);
      return image.blockStatus(inside, Math.min(length, left));
    },
  };
}

/**
 * What can't be read becomes zeroes, sector by sector.
 * @param warn hears of each place
 */
export function salvaged(source: CopySource, warn: (text: string) => void): CopySource {
  const zeroed = (offset: number, error: unknown): void => {
    warn(`error while reading offset ${offset}: ${errorText(toError(error))}`);
  };
  return {
    size: source.size,
    async read(offset, buffer) {
      try {
        await source.read(offset, buffer);
        return;
      } catch {
        // Sector by sector, then, to lose no more than has to be.
      }
      for (let at = 0; at < buffer.byteLength; at += SECTOR) {
        const part = buffer.subarray(at, at + SECTOR);
        try {
          await source.read(offset + at, part);
        } catch (error) {
          part.fill(0);
          zeroed(offset + at, error);
        }
      }
    },
    async blockStatus(offset, length) {
      try {
        return await source.blockStatus(offset, length);
      } catch {
        const flags = STATUS_DATA | STATUS_ALLOCATED;
        return { length: Math.min(length, SECTOR - (offset % SECTOR)), flags, depth: 1 };
      }
    },
  };
}
