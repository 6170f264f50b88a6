// SPDX-License-Identifier: MIT
/** Dirty bitmaps: how they are named and shown. @see QEMU's qapi/block-core.json */
import { alternate, bool, int, optional, required, str, struct, uint32 } from './define.js';

export const BlockDirtyBitmap = struct('BlockDirtyBitmap', {
  doc: 'Names a bitmap of a node.',
  members: {
    node: required(str, 'name of the node'),
    name: required(str, 'name of the bitmap'),
  },
});

export const BlockDirtyBitmapOrStr = alternate('BlockDirtyBitmapOrStr', {
  doc: 'Names a bitmap: by its name alone on the node in question, or together with its node.',
  branches: { local: str, external: BlockDirtyBitmap },
});

export const BlockDirtyInfo = struct('BlockDirtyInfo', {
  doc: 'The state of a bitmap.',
  members: {
    name: optional(str, 'its name; absent for one that a job keeps for itself'),
    count: required(int, 'bytes marked as dirty'),
    granularity: required(uint32, 'bytes that one bit stands for'),
    recording: required(bool, 'writes are being marked'),
    busy: required(bool, 'a job or an export uses it; it can be neither changed nor removed'),
    persistent: required(bool, 'it is stored in the image and outlives the daemon'),
    inconsistent: optional(bool, 'it was not stored properly and can only be removed', {
      default: 'false',
    }),
  },
});
