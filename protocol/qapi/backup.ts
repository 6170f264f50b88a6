// SPDX-License-Identifier: MIT
/** Copies of a node as it is at one moment. @see QEMU's qapi/block-core.json */
import { BitmapSyncMode } from './bitmaps.js';
import { OnCbwError } from './block-core-options.js';
import { copyErrorMembers, jobEndMembers, targetImageMembers } from './block-job.js';
import {
  bool,
  defineCommand,
  enumeration,
  int,
  int64,
  optional,
  required,
  size,
  str,
  struct,
  uint32,
} from './define.js';

export const BackupSyncMode = enumeration('BackupSyncMode', {
  doc: 'What is copied.',
  values: {
    top: 'what the source itself has, without its backing chain',
    full: 'all that the source shows',
    none: 'only what is about to be overwritten, for as long as the job lasts',
    incremental: 'what is marked in the bitmap, as bitmap with the mode on-success',
    bitmap: 'what is marked in the bitmap',
  },
});

export const BackupPerf = struct('BackupPerf', {
  doc: 'How the job works; the result is the same.',
  members: {
    'max-workers': optional(int, 'requests in flight at most', { default: '256' }),
    'max-chunk': optional(
      int64,
      'longest request, bytes, not less than what is copied together; 0: as is best',
      { default: '0' },
    ),
    'min-cluster-size': optional(
      size,
      'bytes that are copied together at least, a power of two up to 16 MiB',
      { default: '64 KiB' },
    ),
  },
});

export const BackupCommon = struct('BackupCommon', {
  doc: 'A backup, but for where it goes.',
  members: {
    'job-id': optional(str, 'id of the job', { default: 'device' }),
    device: required(str, 'name of the node that is copied'),
    sync: required(BackupSyncMode, 'what is copied'),
    speed: optional(int64, 'limit of its speed, bytes a second; 0: none', { default: '0' }),
    bitmap: optional(str, 'name of a bitmap of the node, for the modes that need one'),
    'bitmap-mode': optional(BitmapSyncMode, 'what becomes of the marks; needed with a bitmap', {
      default: 'on-success where sync is incremental',
    }),
    compress: optional(bool, 'store compressed data, where the target can', { default: 'false' }),
    ...copyErrorMembers,
    'on-cbw-error': optional(OnCbwError, 'what happens when old content can not be saved', {
      default: 'break-guest-write',
    }),
    'cbw-timeout': optional(
      uint32,
      'time after which saving old content counts as failed, seconds; 0: no limit',
      { default: '0' },
    ),
    ...jobEndMembers,
    'filter-node-name': optional(str, 'name of the node that the job puts above the source', {
      default: 'made up',
    }),
    'discard-source': optional(
      bool,
      'the source is a snapshot-access node: what has reached the target leaves that snapshot, and ' +
        'the room that it took is given back',
      { default: 'false' },
    ),
    'x-perf': optional(BackupPerf, 'how the job works', { features: ['unstable'] }),
  },
});

export const BlockdevBackup = struct('BlockdevBackup', {
  doc: 'A backup into a node.',
  base: BackupCommon,
  members: { target: required(str, 'name of the target node') },
});

export const BLOCKDEV_BACKUP = defineCommand({
  name: 'blockdev-backup',
  doc: 'Starts a job that copies a node as it is now, while it goes on being used.',
  arguments: BlockdevBackup,
});

export const DriveBackup = struct('DriveBackup', {
  doc: 'A backup into an image that is named by file.',
  base: BackupCommon,
  members: targetImageMembers,
});

export const DRIVE_BACKUP = defineCommand({
  name: 'drive-backup',
  doc:
    'Starts a job as blockdev-backup, into an image that it makes or opens, and closes when the job ' +
    'is over.',
  arguments: DriveBackup,
  features: ['deprecated'],
});

export const BACKUP_COMMANDS = [BLOCKDEV_BACKUP, DRIVE_BACKUP] as const;
