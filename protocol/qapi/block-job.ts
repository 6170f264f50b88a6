// SPDX-License-Identifier: MIT
/** Jobs on nodes. @see QEMU's qapi/block-core.json */
import { BitmapSyncMode } from './bitmaps.js';
import { BlockErrorAction } from './block-core.js';
import { BlockDeviceIoStatus } from './block-nodes-info.js';
import { IoOperationType } from './common.js';
import {
  array,
  bool,
  defineCommand,
  defineEvent,
  enumeration,
  int,
  int64,
  optional,
  required,
  str,
  struct,
  uint32,
  union,
} from './define.js';
import { JobStatus, JobType } from './job.js';

export const BlockdevOnError = enumeration('BlockdevOnError', {
  doc: 'What a job does about a request that fails.',
  values: {
    report: 'it fails',
    ignore: 'it goes on, and tries again later where it can',
    enospc: 'it is held where space is wanting, and fails otherwise',
    stop: 'it is held until it is told to go on',
    auto: 'as enospc where nothing better is known',
  },
});

/** Of jobs that copy from one node to another. */
export const copyErrorMembers = {
  'on-source-error': optional(BlockdevOnError, 'what is done about failing reads', {
    default: 'report',
  }),
  'on-target-error': optional(BlockdevOnError, 'what is done about failing writes', {
    default: 'report',
  }),
} as const;
/** Of jobs that work on one chain. */
export const onErrorMember = {
  'on-error': optional(BlockdevOnError, 'what is done about failing requests', {
    default: 'report',
  }),
} as const;
export const maskProtocolMember = {
  'backing-mask-protocol': optional(
    bool,
    'where the base has no format, raw is noted as its format instead of the protocol',
    { default: 'false' },
  ),
} as const;
/** Of all jobs on nodes. */
export const jobEndMembers = {
  'auto-finalize': optional(bool, 'do not wait for job-finalize', { default: 'true' }),
  'auto-dismiss': optional(bool, 'do not wait for job-dismiss', { default: 'true' }),
} as const;

export const MirrorSyncMode = enumeration('MirrorSyncMode', {
  doc: 'What is copied at the start.',
  values: {
    top: 'what the source itself has, without its backing chain',
    full: 'all that the source shows',
    none: 'nothing: only what is written from now on',
    incremental: 'what is marked in the bitmap, as bitmap with the mode on-success',
    bitmap: 'what is marked in the bitmap: the target has the rest already',
  },
});

export const MirrorCopyMode = enumeration('MirrorCopyMode', {
  doc: 'When a write to the source reaches the target.',
  values: {
    background: 'some time after it has completed',
    'write-blocking': 'before it completes',
    auto: 'as background, until writers keep up with the copy; from then on as write-blocking',
  },
});

const speedDoc = 'limit of its speed, bytes a second; 0: none';

export const NewImageMode = enumeration('NewImageMode', {
  doc: 'Where an image that a command names by file comes from.',
  values: {
    existing: 'it is there',
    'absolute-paths': 'it is made, or made anew, of the size of the source',
  },
});

// The members of both mirror commands, in pieces because their order on the wire's schema is QEMU's.
const mirrorSource = {
  'job-id': optional(str, 'id of the job', { default: 'device' }),
  device: required(str, 'name of the source node'),
} as const;
const mirrorWhat = {
  replaces: optional(str, 'name of the node that the target replaces on completion', {
    default: 'the source',
  }),
  sync: required(MirrorSyncMode, 'what is copied at the start'),
  bitmap: optional(str, 'name of a bitmap of the source, for the modes that need one'),
  'bitmap-mode': optional(BitmapSyncMode, 'what becomes of the marks; needed with a bitmap', {
    default: 'on-success where sync is incremental',
  }),
} as const;
const mirrorHow = {
  speed: optional(int64, speedDoc, { default: '0' }),
  granularity: optional(uint32, 'bytes that are tracked together, a power of two', {
    default: "the target's cluster size, from 4 KiB to 64 KiB; otherwise 64 KiB",
  }),
  'buf-size': optional(int, 'bytes in flight at most; 0: as the default', {
    default: '4 MiB, and up to 64 MiB when the target is far away',
  }),
  ...copyErrorMembers,
} as const;
const mirrorLife = {
  'copy-mode': optional(MirrorCopyMode, 'when writes reach the target', {
    default: 'background',
  }),
  ...jobEndMembers,
} as const;

/** What both have: a member that is added to one of the pieces is in both, and in this. */
export const MirrorCommon = struct('MirrorCommon', {
  doc: 'A mirror, but for where it goes.',
  members: { ...mirrorSource, ...mirrorWhat, ...mirrorHow, ...mirrorLife },
});

export const BLOCKDEV_MIRROR = defineCommand({
  name: 'blockdev-mirror',
  doc: 'Starts a job that makes a node equal to another, which stays in use, and keeps it so.',
  arguments: {
    ...mirrorSource,
    target: required(str, 'name of the target node'),
    ...mirrorWhat,
    'target-is-zero': optional(bool, 'the target reads as zeroes: none are written at the start', {
      default: 'false',
    }),
    ...mirrorHow,
    'filter-node-name': optional(str, 'name of the node that the job puts above the source', {
      default: 'made up',
    }),
    ...mirrorLife,
  },
});

const targetName = required(
  str,
  'file name of the image: a path, nbd://…, nbd+unix://…, nbd:HOST:PORT, or for one that is there ' +
    'also json: and the options of its node',
);
const targetFormat = optional(str, 'its driver; needed where the image is there', {
  default: "the source's",
});
const targetMode = optional(NewImageMode, 'whether it is made', { default: 'absolute-paths' });

/** What names an image by file, for `drive-backup` too. */
export const targetImageMembers = {
  target: targetName,
  format: targetFormat,
  mode: targetMode,
} as const;

export const DriveMirror = struct('DriveMirror', {
  doc: 'A mirror into an image that is named by file.',
  members: {
    ...mirrorSource,
    target: targetName,
    format: targetFormat,
    'node-name': optional(str, 'name of the node for the image; needed with replaces', {
      default: 'made up',
    }),
    ...mirrorWhat,
    mode: targetMode,
    ...mirrorHow,
    unmap: optional(bool, 'zeroes may become holes', { default: 'true' }),
    ...mirrorLife,
  },
});

export const DRIVE_MIRROR = defineCommand({
  name: 'drive-mirror',
  doc:
    'Starts a job as blockdev-mirror, into an image that it makes or opens. Its node is closed when ' +
    'the job is over, unless the users of the source have moved to it.',
  arguments: DriveMirror,
});

export const BLOCK_COMMIT = defineCommand({
  name: 'block-commit',
  doc:
    'Starts a job that copies layers of a chain into one below them, and takes them out of the chain. ' +
    'Where the top one is the active layer it becomes ready, and its users move to the base when it ' +
    'is completed.',
  arguments: {
    'job-id': optional(str, 'id of the job', { default: 'device' }),
    device: required(str, 'name of the topmost node of the chain'),
    'base-node': optional(str, 'name of the node that gets the data', { default: 'the deepest' }),
    base: optional(str, 'the same by its file name', { features: ['deprecated'] }),
    'top-node': optional(str, 'name of the topmost node that goes', { default: 'device' }),
    top: optional(str, 'the same by its file name', { features: ['deprecated'] }),
    'backing-file': optional(str, 'what the image above top notes as its backing file', {
      default: 'the file name of the base',
    }),
    ...maskProtocolMember,
    speed: optional(int64, speedDoc, { default: '0' }),
    ...onErrorMember,
    'filter-node-name': optional(str, 'name of the node that the job puts above the top', {
      default: 'made up',
    }),
    ...jobEndMembers,
  },
});

export const BlockJobInfo = struct('BlockJobInfo', {
  doc: 'A job on nodes.',
  members: {
    type: required(JobType, 'its kind'),
    device: required(str, 'its id'),
    len: required(int, 'what there is to do, as known now, bytes'),
    offset: required(int, 'what has been done, bytes'),
    busy: required(bool, 'requests of it are in flight'),
    paused: required(bool, 'it is held on request'),
    speed: required(int64, speedDoc),
    'io-status': required(BlockDeviceIoStatus, 'how its requests fare'),
    ready: required(bool, 'block-job-complete may be asked for'),
    status: required(JobStatus, 'its state'),
    'auto-finalize': required(bool, 'it does not wait for block-job-finalize'),
    'auto-dismiss': required(bool, 'it does not wait for block-job-dismiss'),
    remaining: required(int, 'what is left to do, as known now, bytes'),
    rate: required(int, 'bytes a second over the last seconds'),
    'time-left': optional(int, 'seconds that the rest takes at this rate; absent: nothing moves'),
    'copy-mode': optional(MirrorCopyMode, 'mirror: when writes reach the target, as asked for'),
    'actively-synced': optional(
      bool,
      'mirror: target and source are equal, and writes complete when both have them',
    ),
    error: optional(str, 'why it failed'),
  },
});

export const QUERY_BLOCK_JOBS = defineCommand({
  name: 'query-block-jobs',
  doc: 'Lists the jobs on nodes.',
  result: array(BlockJobInfo),
});

const deviceMember = required(str, 'id of the job');

export const BLOCK_JOB_SET_SPEED = defineCommand({
  name: 'block-job-set-speed',
  doc: 'Limits the speed of a job.',
  arguments: { device: deviceMember, speed: required(int64, speedDoc) },
});

export const BlockJobChangeOptionsMirror = struct('BlockJobChangeOptionsMirror', {
  doc: 'What can be changed of a mirror.',
  members: { 'copy-mode': required(MirrorCopyMode, 'when writes reach the target from now on') },
});

export const BlockJobChangeOptions = union('BlockJobChangeOptions', {
  doc: 'What is to be changed of a job.',
  members: { id: deviceMember, type: required(JobType, 'its kind') },
  discriminator: 'type',
  branches: { mirror: BlockJobChangeOptionsMirror },
});

export const BLOCK_JOB_CHANGE = defineCommand({
  name: 'block-job-change',
  doc: 'Changes the options of a job at work.',
  arguments: BlockJobChangeOptions,
});

export const BLOCK_JOB_CANCEL = defineCommand({
  name: 'block-job-cancel',
  doc: 'Ends a job. One that is ready leaves a target that is equal to the source at that moment.',
  arguments: {
    device: deviceMember,
    force: optional(bool, 'at once, whatever the target is like then', { default: 'false' }),
  },
});

export const BLOCK_JOB_PAUSE = defineCommand({
  name: 'block-job-pause',
  doc: 'Holds a job until block-job-resume.',
  arguments: { device: deviceMember },
  features: ['deprecated'],
});

export const BLOCK_JOB_RESUME = defineCommand({
  name: 'block-job-resume',
  doc: 'Lets a job that is held go on.',
  arguments: { device: deviceMember },
  features: ['deprecated'],
});

export const BLOCK_JOB_COMPLETE = defineCommand({
  name: 'block-job-complete',
  doc: 'Ends a job that is ready: users of the source move to the target.',
  arguments: { device: deviceMember },
  features: ['deprecated'],
});

export const BLOCK_JOB_DISMISS = defineCommand({
  name: 'block-job-dismiss',
  doc: 'Forgets a job that is concluded.',
  arguments: { id: deviceMember },
  features: ['deprecated'],
});

export const BLOCK_JOB_FINALIZE = defineCommand({
  name: 'block-job-finalize',
  doc: 'Makes the effect of a pending job, and of all others of its transaction.',
  arguments: { id: deviceMember },
  features: ['deprecated'],
});

/** What the events at the end of a job, and at READY, say of it. */
const jobEventMembers = {
  type: required(JobType, 'its kind'),
  device: required(str, 'its id'),
  len: required(int, 'what there was to do, bytes'),
  offset: required(int, 'what has been done, bytes; len on success'),
  speed: required(int64, speedDoc),
} as const;

export const BLOCK_JOB_COMPLETED = defineEvent({
  name: 'BLOCK_JOB_COMPLETED',
  doc: 'A job has ended, with success or with an error.',
  data: {
    ...jobEventMembers,
    error: optional(str, 'why it failed; absent: it did not'),
  },
});

export const BLOCK_JOB_CANCELLED = defineEvent({
  name: 'BLOCK_JOB_CANCELLED',
  doc: 'A job has been cancelled.',
  data: jobEventMembers,
});

export const BLOCK_JOB_ERROR = defineEvent({
  name: 'BLOCK_JOB_ERROR',
  doc: 'A request of a job failed.',
  data: {
    device: required(str, 'id of the job'),
    operation: required(IoOperationType, 'direction of the request'),
    action: required(BlockErrorAction, 'what was done about it'),
  },
});

export const BLOCK_JOB_READY = defineEvent({
  name: 'BLOCK_JOB_READY',
  doc: 'A job has done all but what comes in, and can be completed.',
  data: jobEventMembers,
});

export const BLOCK_JOB_PENDING = defineEvent({
  name: 'BLOCK_JOB_PENDING',
  doc: 'A job waits for block-job-finalize.',
  data: {
    type: required(JobType, 'its kind'),
    id: required(str, 'its id'),
  },
});

export const BLOCK_JOB_NOT_CONVERGING = defineEvent({
  name: 'BLOCK_JOB_NOT_CONVERGING',
  doc: 'Writers change the source as fast as a mirror copies it: it will not be ready like this.',
  data: {
    device: required(str, 'id of the job'),
    'dirty-rate': required(int, 'bytes a second at which writers change what had been copied'),
    'copy-rate': required(int, 'bytes a second that the job copies'),
    remaining: required(int, 'what differs now, bytes'),
    'copy-mode': required(MirrorCopyMode, 'when writes reach the target from now on'),
  },
});

export const BLOCK_JOB_COMMANDS = [
  BLOCKDEV_MIRROR,
  DRIVE_MIRROR,
  BLOCK_COMMIT,
  QUERY_BLOCK_JOBS,
  BLOCK_JOB_SET_SPEED,
  BLOCK_JOB_CHANGE,
  BLOCK_JOB_CANCEL,
  BLOCK_JOB_PAUSE,
  BLOCK_JOB_RESUME,
  BLOCK_JOB_COMPLETE,
  BLOCK_JOB_DISMISS,
  BLOCK_JOB_FINALIZE,
] as const;

export const BLOCK_JOB_EVENTS = [
  BLOCK_JOB_COMPLETED,
  BLOCK_JOB_CANCELLED,
  BLOCK_JOB_ERROR,
  BLOCK_JOB_READY,
  BLOCK_JOB_PENDING,
  BLOCK_JOB_NOT_CONVERGING,
] as const;
