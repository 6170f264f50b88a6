// SPDX-License-Identifier: MIT
/** What a driver does that keeps persistent bitmaps in its image. */
import type { MaybePromise } from '../../base/maybe-promise.js';

export interface BitmapStore {
  /**
   * Whether the image can hold one more.
   * @param bitmap granularity in bytes
   * @throws BlockError in QEMU's words
   */
  checkNew(bitmap: { readonly name: string; readonly granularity: number }): void;
  /**
   * Persistent bitmaps are about to change: from now on, what the image has of them counts as old until
   * the bitmaps are stored.
   */
  prepareChange(): MaybePromise<void>;
  /** Takes a bitmap out of the image, where it is stored there; durable when done. */
  remove(name: string): Promise<void>;
}
