// SPDX-License-Identifier: MIT
/** Commands that happen together or not at all. @see QEMU's qapi/transaction.json */
import { BlockdevBackup, DriveBackup } from './backup.js';
import { BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge } from './bitmaps.js';
import { BlockdevSnapshot, BlockdevSnapshotInternal, BlockdevSnapshotSync } from './chain.js';
import { array, defineCommand, enumeration, optional, required, struct, union } from './define.js';
import { BlockdevReplace } from './replace.js';

export const Abort = struct('Abort', { doc: 'Nothing.' });

export const ActionCompletionMode = enumeration('ActionCompletionMode', {
  doc: 'How the jobs of a transaction end.',
  values: {
    individual: 'each by itself, whatever becomes of the others',
    grouped: 'together: when one fails, the others are cancelled',
  },
});

export const TransactionActionKind = enumeration('TransactionActionKind', {
  doc: 'What can be part of a transaction.',
  values: {
    abort: 'fails, for tests',
    'block-dirty-bitmap-add': 'as the command',
    'block-dirty-bitmap-remove': 'as the command',
    'block-dirty-bitmap-clear': 'as the command',
    'block-dirty-bitmap-enable': 'as the command',
    'block-dirty-bitmap-disable': 'as the command',
    'block-dirty-bitmap-merge': 'as the command',
    'blockdev-backup': 'as the command',
    'blockdev-replace': 'as the command',
    'blockdev-snapshot': 'as the command',
    'blockdev-snapshot-internal-sync': 'as the command; undone by deleting the snapshot',
    'blockdev-snapshot-sync':
      'as the command; images are made and opened before anything else is done',
    'drive-backup': 'as the command; images are made and opened before anything else is done',
  },
  valueFeatures: { 'drive-backup': ['deprecated'] },
});

const dataDoc = 'what the command takes';

export const AbortWrapper = struct('AbortWrapper', {
  doc: 'A failure.',
  members: { data: required(Abort, 'nothing') },
});

export const BlockDirtyBitmapAddWrapper = struct('BlockDirtyBitmapAddWrapper', {
  doc: 'A bitmap that is to be.',
  members: { data: required(BlockDirtyBitmapAdd, dataDoc) },
});

export const BlockDirtyBitmapWrapper = struct('BlockDirtyBitmapWrapper', {
  doc: 'A bitmap.',
  members: { data: required(BlockDirtyBitmap, dataDoc) },
});

export const BlockDirtyBitmapMergeWrapper = struct('BlockDirtyBitmapMergeWrapper', {
  doc: 'Bitmaps, and the one that takes over what is marked in them.',
  members: { data: required(BlockDirtyBitmapMerge, dataDoc) },
});

export const BlockdevBackupWrapper = struct('BlockdevBackupWrapper', {
  doc: 'A backup into a node.',
  members: { data: required(BlockdevBackup, dataDoc) },
});

export const BlockdevReplaceWrapper = struct('BlockdevReplaceWrapper', {
  doc: 'A user of a node that gets another.',
  members: { data: required(BlockdevReplace, dataDoc) },
});

export const BlockdevSnapshotWrapper = struct('BlockdevSnapshotWrapper', {
  doc: 'A snapshot with an overlay that is open.',
  members: { data: required(BlockdevSnapshot, dataDoc) },
});

export const BlockdevSnapshotInternalWrapper = struct('BlockdevSnapshotInternalWrapper', {
  doc: 'A snapshot inside an image.',
  members: { data: required(BlockdevSnapshotInternal, dataDoc) },
});

export const BlockdevSnapshotSyncWrapper = struct('BlockdevSnapshotSyncWrapper', {
  doc: 'A snapshot with an overlay that is named by file.',
  members: { data: required(BlockdevSnapshotSync, dataDoc) },
});

export const DriveBackupWrapper = struct('DriveBackupWrapper', {
  doc: 'A backup into an image that is named by file.',
  members: { data: required(DriveBackup, dataDoc) },
});

export const TransactionAction = union('TransactionAction', {
  doc: 'One part of a transaction.',
  members: { type: required(TransactionActionKind, 'what it does') },
  discriminator: 'type',
  branches: {
    abort: AbortWrapper,
    'block-dirty-bitmap-add': BlockDirtyBitmapAddWrapper,
    'block-dirty-bitmap-remove': BlockDirtyBitmapWrapper,
    'block-dirty-bitmap-clear': BlockDirtyBitmapWrapper,
    'block-dirty-bitmap-enable': BlockDirtyBitmapWrapper,
    'block-dirty-bitmap-disable': BlockDirtyBitmapWrapper,
    'block-dirty-bitmap-merge': BlockDirtyBitmapMergeWrapper,
    'blockdev-backup': BlockdevBackupWrapper,
    'blockdev-replace': BlockdevReplaceWrapper,
    'blockdev-snapshot': BlockdevSnapshotWrapper,
    'blockdev-snapshot-internal-sync': BlockdevSnapshotInternalWrapper,
    'blockdev-snapshot-sync': BlockdevSnapshotSyncWrapper,
    'drive-backup': DriveBackupWrapper,
  },
});

export const TransactionProperties = struct('TransactionProperties', {
  doc: 'Of the transaction as a whole.',
  members: {
    'completion-mode': optional(ActionCompletionMode, 'how its jobs end', {
      default: 'individual',
    }),
  },
});

export const TRANSACTION = defineCommand({
  name: 'transaction',
  doc: 'Does several things at one moment. When one can not be done, none is.',
  arguments: {
    actions: required(array(TransactionAction), 'what is done, in this order'),
    properties: optional(TransactionProperties, 'of the transaction as a whole'),
  },
});

export const TRANSACTION_COMMANDS = [TRANSACTION] as const;
