// SPDX-License-Identifier: MIT
/** Dirty bitmaps: how they are named and shown. @see QEMU's qapi/block-core.json */
import {
  alternate,
  array,
  bool,
  defineCommand,
  enumeration,
  int,
  optional,
  required,
  str,
  struct,
  uint32,
} from './define.js';

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

export const BitmapSyncMode = enumeration('BitmapSyncMode', {
  doc: 'What becomes of the marks of what was copied.',
  values: {
    'on-success': 'they are taken out when the job succeeds',
    never: 'they stay',
    always: 'they are taken out even when the job fails later',
  },
});

export const BlockDirtyBitmapAdd = struct('BlockDirtyBitmapAdd', {
  doc: 'A bitmap that is to be.',
  members: {
    node: required(str, 'name of the node'),
    name: required(str, 'name of the bitmap, of which a node has only one'),
    granularity: optional(uint32, 'bytes that one bit stands for, a power of two from 512', {
      default: '64 KiB, or less where the node has smaller clusters',
    }),
    persistent: optional(bool, 'store it in the image', { default: 'false' }),
    disabled: optional(bool, 'mark nothing until block-dirty-bitmap-enable', { default: 'false' }),
  },
});

export const BlockDirtyBitmapMerge = struct('BlockDirtyBitmapMerge', {
  doc: 'Bitmaps, and the one that takes over what is marked in them.',
  members: {
    node: required(str, 'name of the node of the target'),
    target: required(str, 'name of the bitmap that is added to'),
    bitmaps: required(array(BlockDirtyBitmapOrStr), 'the bitmaps that are added; they stay'),
  },
});

export const BlockDirtyBitmapSha256 = struct('BlockDirtyBitmapSha256', {
  doc: 'The content of a bitmap in short.',
  members: { sha256: required(str, 'SHA-256 of its serialised form, hexadecimal') },
});

export const BLOCK_DIRTY_BITMAP_ADD = defineCommand({
  name: 'block-dirty-bitmap-add',
  doc: 'Adds a clean bitmap, which marks what is written to the node from now on.',
  arguments: BlockDirtyBitmapAdd,
});

export const BLOCK_DIRTY_BITMAP_REMOVE = defineCommand({
  name: 'block-dirty-bitmap-remove',
  doc: 'Removes a bitmap that nothing uses.',
  arguments: BlockDirtyBitmap,
});

export const BLOCK_DIRTY_BITMAP_CLEAR = defineCommand({
  name: 'block-dirty-bitmap-clear',
  doc: 'Takes all marks out of a bitmap.',
  arguments: BlockDirtyBitmap,
});

export const BLOCK_DIRTY_BITMAP_ENABLE = defineCommand({
  name: 'block-dirty-bitmap-enable',
  doc: 'Lets a bitmap mark writes from now on.',
  arguments: BlockDirtyBitmap,
});

export const BLOCK_DIRTY_BITMAP_DISABLE = defineCommand({
  name: 'block-dirty-bitmap-disable',
  doc: 'Lets a bitmap mark no more writes; it keeps its marks.',
  arguments: BlockDirtyBitmap,
});

export const BLOCK_DIRTY_BITMAP_MERGE = defineCommand({
  name: 'block-dirty-bitmap-merge',
  doc: 'Adds the marks of some bitmaps to another, or, when one can not be used, of none.',
  arguments: BlockDirtyBitmapMerge,
});

export const X_DEBUG_BLOCK_DIRTY_BITMAP_SHA256 = defineCommand({
  name: 'x-debug-block-dirty-bitmap-sha256',
  doc: 'Returns a digest of the marks of a bitmap.',
  arguments: BlockDirtyBitmap,
  result: BlockDirtyBitmapSha256,
  features: ['unstable'],
});

export const BITMAP_COMMANDS = [
  BLOCK_DIRTY_BITMAP_ADD,
  BLOCK_DIRTY_BITMAP_REMOVE,
  BLOCK_DIRTY_BITMAP_CLEAR,
  BLOCK_DIRTY_BITMAP_ENABLE,
  BLOCK_DIRTY_BITMAP_DISABLE,
  BLOCK_DIRTY_BITMAP_MERGE,
  X_DEBUG_BLOCK_DIRTY_BITMAP_SHA256,
] as const;
