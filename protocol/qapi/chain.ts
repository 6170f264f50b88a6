// SPDX-License-Identifier: MIT
/** Chains of images that grow and shrink. @see QEMU's qapi/block-core.json */
import { jobEndMembers, maskProtocolMember, NewImageMode, onErrorMember } from './block-job.js';
import { SnapshotInfo } from './block-nodes-info.js';
import { defineCommand, int64, optional, required, str, struct } from './define.js';

export const BlockdevSnapshotSync = struct('BlockdevSnapshotSync', {
  doc: 'A snapshot with an overlay that is named by file.',
  members: {
    device: optional(str, 'name of the node, where node-name does not say it'),
    'node-name': optional(str, 'name of the node; the overlay has to have a name then'),
    'snapshot-file': required(str, 'file name of the overlay'),
    'snapshot-node-name': optional(str, 'name of the node of the overlay', { default: 'made up' }),
    format: optional(str, 'its driver', { default: 'qcow2' }),
    mode: optional(NewImageMode, 'whether it is made', { default: 'absolute-paths' }),
  },
});

export const BLOCKDEV_SNAPSHOT_SYNC = defineCommand({
  name: 'blockdev-snapshot-sync',
  doc:
    'Puts an image that it makes or opens above a node. The users of the node write there from then on, ' +
    'and the node is not changed any more. An overlay that was given a node name stays without users.',
  arguments: BlockdevSnapshotSync,
});

export const BlockdevSnapshot = struct('BlockdevSnapshot', {
  doc: 'A snapshot with an overlay that is open.',
  members: {
    node: required(str, 'name of the node'),
    overlay: required(str, 'name of the node that comes above; it has no backing node yet'),
  },
});

export const BLOCKDEV_SNAPSHOT = defineCommand({
  name: 'blockdev-snapshot',
  doc: 'Puts a node above another, whose users write there from then on.',
  arguments: BlockdevSnapshot,
  features: ['allow-write-only-overlay'],
});

export const BlockdevSnapshotInternal = struct('BlockdevSnapshotInternal', {
  doc: 'A snapshot inside an image.',
  members: {
    device: required(str, 'name of the node; no other node lies above it'),
    name: required(str, 'what the snapshot is called: not empty, of no other snapshot there'),
  },
});

export const BLOCKDEV_SNAPSHOT_INTERNAL_SYNC = defineCommand({
  name: 'blockdev-snapshot-internal-sync',
  doc: 'Takes a snapshot inside the image of a node, whose format has to support that.',
  arguments: BlockdevSnapshotInternal,
});

export const BLOCKDEV_SNAPSHOT_DELETE_INTERNAL_SYNC = defineCommand({
  name: 'blockdev-snapshot-delete-internal-sync',
  doc: 'Deletes a snapshot inside the image of a node, by its id, its name, or both.',
  arguments: {
    device: required(str, 'name of the node; no other node lies above it'),
    id: optional(str, 'id of the snapshot'),
    name: optional(str, 'what it is called'),
  },
  result: SnapshotInfo,
});

export const BLOCK_STREAM = defineCommand({
  name: 'block-stream',
  doc:
    'Starts a job that copies what a node shows of its backing chain into it, and takes what is not ' +
    'needed any more out of the chain.',
  arguments: {
    'job-id': optional(str, 'id of the job', { default: 'device' }),
    device: required(str, 'name of the node that gets the data'),
    base: optional(str, 'file name of the image that stays below', { default: 'none stays' }),
    'base-node': optional(str, 'the same by name of its node'),
    'backing-file': optional(str, 'what the image notes as its backing file', {
      default: 'the file name of the base',
    }),
    ...maskProtocolMember,
    bottom: optional(str, 'name of the last node that goes: what is below it stays'),
    speed: optional(int64, 'limit of its speed, bytes a second; 0: none', { default: '0' }),
    ...onErrorMember,
    'filter-node-name': optional(str, 'name of the node that the job puts above device', {
      default: 'made up',
    }),
    ...jobEndMembers,
  },
});

export const CHANGE_BACKING_FILE = defineCommand({
  name: 'change-backing-file',
  doc: 'Changes what an image notes as its backing file. The nodes stay as they are.',
  arguments: {
    device: required(str, 'name of a node that has the image in its chain'),
    'image-node-name': required(str, 'name of the node of the image'),
    'backing-file': required(str, 'what it notes; not checked'),
  },
});

export const CHAIN_COMMANDS = [
  BLOCKDEV_SNAPSHOT_SYNC,
  BLOCKDEV_SNAPSHOT,
  BLOCKDEV_SNAPSHOT_INTERNAL_SYNC,
  BLOCKDEV_SNAPSHOT_DELETE_INTERNAL_SYNC,
  BLOCK_STREAM,
  CHANGE_BACKING_FILE,
] as const;
