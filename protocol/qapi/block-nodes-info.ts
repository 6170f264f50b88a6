// SPDX-License-Identifier: MIT
/** What queries tell of nodes and their statistics. @see QEMU's qapi/block-core.json */
import { BlockDirtyInfo } from './bitmaps.js';
import { BlockPermission } from './blkdebug.js';
import {
  BlockdevDetectZeroesOptions,
  BlockdevDriver,
  BlockdevQcow2EncryptionFormat,
} from './block-core-options.js';
import { QCryptoBlockInfoLUKS } from './crypto.js';
import {
  array,
  bool,
  enumeration,
  int,
  lazy,
  number,
  optional,
  required,
  str,
  struct,
  uint32,
  uint64,
  union,
} from './define.js';
import type { AnyType } from './types.js';

export const Qcow2CompressionType = enumeration('Qcow2CompressionType', {
  doc: 'How compressed clusters are compressed.',
  values: { zlib: 'by zlib', zstd: 'by zstd' },
});

export const Qcow2BitmapInfoFlags = enumeration('Qcow2BitmapInfoFlags', {
  doc: 'What the image notes of a bitmap.',
  values: {
    'in-use': 'it was not stored when the image was last used: it is old',
    auto: 'it records writes',
  },
});

export const Qcow2BitmapInfo = struct('Qcow2BitmapInfo', {
  doc: 'A bitmap in an image.',
  members: {
    name: required(str, 'its name'),
    granularity: required(uint32, 'bytes that one bit stands for'),
    flags: required(array(Qcow2BitmapInfoFlags), 'what the image notes of it'),
  },
});

export const ImageInfoSpecificQCow2Encryption = union('ImageInfoSpecificQCow2Encryption', {
  doc: 'How an image is encrypted.',
  members: { format: required(BlockdevQcow2EncryptionFormat, 'the kind of encryption') },
  discriminator: 'format',
  branches: { luks: QCryptoBlockInfoLUKS },
});

export const ImageInfoSpecificQCow2 = struct('ImageInfoSpecificQCow2', {
  doc: 'What only qcow2 images have.',
  members: {
    compat: required(str, 'version of the format: "0.10" for 2, "1.1" for 3'),
    'data-file': optional(str, 'where the data of the guest is, if in another file'),
    'data-file-raw': optional(bool, 'that file is a raw image of its own'),
    'extended-l2': optional(bool, 'parts of clusters can be allocated'),
    'lazy-refcounts': optional(bool, 'counts of clusters may be put off'),
    corrupt: optional(bool, 'the image is marked as corrupt'),
    'refcount-bits': required(int, 'width of the counts of clusters, bits'),
    encrypt: optional(ImageInfoSpecificQCow2Encryption, 'how it is encrypted; absent: not at all'),
    bitmaps: optional(array(Qcow2BitmapInfo), 'its bitmaps, as they are stored'),
    'compression-type': required(Qcow2CompressionType, 'how compressed clusters are compressed'),
  },
});

export const ImageInfoSpecificQCow2Wrapper = struct('ImageInfoSpecificQCow2Wrapper', {
  doc: 'What only qcow2 images have.',
  members: { data: required(ImageInfoSpecificQCow2, 'the same') },
});

export const ImageInfoSpecificKind = enumeration('ImageInfoSpecificKind', {
  doc: 'Formats that tell more than others.',
  values: { qcow2: 'a qcow2 image', luks: 'an encrypted disk' },
});

export const ImageInfoSpecificLUKSWrapper = struct('ImageInfoSpecificLUKSWrapper', {
  doc: 'Of an encrypted disk.',
  members: { data: required(QCryptoBlockInfoLUKS, 'how it is encrypted') },
});

export const ImageInfoSpecific = union('ImageInfoSpecific', {
  doc: 'What only some formats have.',
  members: { type: required(ImageInfoSpecificKind, 'the format') },
  discriminator: 'type',
  branches: { qcow2: ImageInfoSpecificQCow2Wrapper, luks: ImageInfoSpecificLUKSWrapper },
});

export interface ImageInfoBox {
  readonly type: typeof ImageInfo;
}

export const SnapshotInfo = struct('SnapshotInfo', {
  doc: 'A snapshot inside an image.',
  members: {
    id: required(str, 'unique in the image'),
    name: required(str, 'what people call it'),
    'vm-state-size': required(int, 'bytes of the state of a machine'),
    'date-sec': required(int, 'when it was made, seconds since 1970 (UTC)'),
    'date-nsec': required(int, 'the fraction of that second, nanoseconds'),
    'vm-clock-sec': required(int, 'how long the machine had run, seconds'),
    'vm-clock-nsec': required(int, 'the fraction of that second, nanoseconds'),
    icount: optional(int, 'instructions that the machine had executed'),
  },
});

export const ImageInfo = struct('ImageInfo', {
  doc: 'An image.',
  members: {
    filename: required(str, 'where it is'),
    format: required(str, 'its format'),
    'dirty-flag': optional(bool, 'it was not closed cleanly'),
    'actual-size': optional(int, 'bytes that it takes of its medium'),
    'virtual-size': required(int, 'bytes that it shows'),
    'cluster-size': optional(int, 'bytes that are allocated together'),
    encrypted: optional(bool, 'its data is encrypted', { default: 'false' }),
    'backing-filename': optional(str, 'its backing file, as noted in it'),
    'full-backing-filename': optional(str, 'its backing file, with its whole path'),
    'backing-filename-format': optional(str, 'the format of its backing file'),
    snapshots: optional(array(SnapshotInfo), 'the snapshots inside it; absent: none'),
    'backing-image': optional(
      lazy<ImageInfoBox>((): AnyType => ImageInfo),
      'its backing image',
    ),
    'format-specific': optional(ImageInfoSpecific, 'what only its format has'),
  },
});

export const BlockdevCacheInfo = struct('BlockdevCacheInfo', {
  doc: 'How a node is cached.',
  members: {
    writeback: required(bool, 'writes may be held back until a flush'),
    direct: required(bool, "the host's page cache is not used"),
    'no-flush': required(bool, 'flushes are ignored'),
  },
});

export const BlockDeviceInfo = struct('BlockDeviceInfo', {
  doc: 'A node.',
  members: {
    file: required(str, 'where its image is'),
    'node-name': optional(str, 'its name'),
    ro: required(bool, 'it refuses writes'),
    drv: required(str, 'its driver'),
    backing_file: optional(str, 'where its backing image is'),
    backing_file_depth: required(int, 'number of images below it in its backing chain'),
    active: optional(bool, 'it may be written to and its image is ours; false: handed over', {
      default: 'true',
    }),
    encrypted: required(bool, 'it is encrypted'),
    detect_zeroes: required(BlockdevDetectZeroesOptions, 'what happens to writes of zeroes'),
    bps: required(int, 'limit of bytes a second; 0: none here (limits belong to throttle nodes)'),
    bps_rd: required(int, 'limit of bytes read a second; 0: none'),
    bps_wr: required(int, 'limit of bytes written a second; 0: none'),
    iops: required(int, 'limit of requests a second; 0: none'),
    iops_rd: required(int, 'limit of reads a second; 0: none'),
    iops_wr: required(int, 'limit of writes a second; 0: none'),
    image: required(ImageInfo, 'its image'),
    cache: required(BlockdevCacheInfo, 'how it is cached'),
    write_threshold: required(int, 'offset past which a write raises an event, bytes; 0: none'),
    'dirty-bitmaps': optional(array(BlockDirtyInfo), 'its bitmaps, where it has any'),
  },
});

export const BlockDeviceIoStatus = enumeration('BlockDeviceIoStatus', {
  doc: 'How requests fare.',
  values: { ok: 'well', failed: 'one has failed', nospace: 'one has failed for want of space' },
});

export const BlockInfo = struct('BlockInfo', {
  doc: 'A device.',
  members: {
    device: required(str, 'its name'),
    qdev: optional(str, 'its id or path'),
    type: required(str, 'its kind; always "unknown"'),
    removable: required(bool, 'its medium can be taken out'),
    locked: required(bool, 'its medium is locked in'),
    inserted: optional(BlockDeviceInfo, 'the node in it'),
    tray_open: optional(bool, 'its tray is open'),
    'io-status': optional(BlockDeviceIoStatus, 'how requests fare'),
  },
});

export const BlockLatencyHistogramInfo = struct('BlockLatencyHistogramInfo', {
  doc: 'Requests counted by the time that they took.',
  members: {
    boundaries: required(array(uint64), 'where the bins meet, nanoseconds, ascending'),
    bins: required(array(uint64), 'number of requests in each bin, one bin more than boundaries'),
  },
});

export const BlockDeviceTimedStats = struct('BlockDeviceTimedStats', {
  doc: 'Statistics of the last interval.',
  members: {
    interval_length: required(int, 'its length, seconds'),
    min_rd_latency_ns: required(int, 'shortest read, nanoseconds'),
    max_rd_latency_ns: required(int, 'longest read, nanoseconds'),
    avg_rd_latency_ns: required(int, 'mean of the reads, nanoseconds'),
    min_wr_latency_ns: required(int, 'shortest write, nanoseconds'),
    max_wr_latency_ns: required(int, 'longest write, nanoseconds'),
    avg_wr_latency_ns: required(int, 'mean of the writes, nanoseconds'),
    min_flush_latency_ns: required(int, 'shortest flush, nanoseconds'),
    max_flush_latency_ns: required(int, 'longest flush, nanoseconds'),
    avg_flush_latency_ns: required(int, 'mean of the flushes, nanoseconds'),
    avg_rd_queue_depth: required(number, 'mean number of reads at a time'),
    avg_wr_queue_depth: required(number, 'mean number of writes at a time'),
  },
});

export const BlockDeviceStats = struct('BlockDeviceStats', {
  doc: 'What a node has done since it was opened.',
  members: {
    rd_bytes: required(int, 'bytes read'),
    wr_bytes: required(int, 'bytes written'),
    unmap_bytes: required(int, 'bytes discarded'),
    rd_operations: required(int, 'reads that succeeded'),
    wr_operations: required(int, 'writes that succeeded'),
    flush_operations: required(int, 'flushes that succeeded'),
    unmap_operations: required(int, 'discards that succeeded'),
    rd_total_time_ns: required(int, 'time of all reads, nanoseconds'),
    wr_total_time_ns: required(int, 'time of all writes, nanoseconds'),
    flush_total_time_ns: required(int, 'time of all flushes, nanoseconds'),
    unmap_total_time_ns: required(int, 'time of all discards, nanoseconds'),
    wr_highest_offset: required(int, 'end of the write that reached farthest, bytes'),
    rd_merged: required(int, 'reads joined with others; always 0'),
    wr_merged: required(int, 'writes joined with others; always 0'),
    unmap_merged: required(int, 'discards joined with others; always 0'),
    idle_time_ns: optional(int, 'time since the last request, nanoseconds; absent: there was none'),
    failed_rd_operations: required(int, 'reads that failed'),
    failed_wr_operations: required(int, 'writes that failed'),
    failed_flush_operations: required(int, 'flushes that failed'),
    failed_unmap_operations: required(int, 'discards that failed'),
    invalid_rd_operations: required(int, 'reads refused before they reached the driver'),
    invalid_wr_operations: required(int, 'writes refused before they reached the driver'),
    invalid_flush_operations: required(int, 'flushes refused before they reached the driver'),
    invalid_unmap_operations: required(int, 'discards refused before they reached the driver'),
    account_invalid: required(bool, 'refused requests count as the last access'),
    account_failed: required(bool, 'failed requests count in times and as the last access'),
    timed_stats: required(array(BlockDeviceTimedStats), 'statistics of intervals, where kept'),
    rd_latency_histogram: optional(BlockLatencyHistogramInfo, 'reads, where switched on'),
    wr_latency_histogram: optional(BlockLatencyHistogramInfo, 'writes, where switched on'),
    flush_latency_histogram: optional(BlockLatencyHistogramInfo, 'flushes, where switched on'),
  },
});

export const BlockStatsSpecificFile = struct('BlockStatsSpecificFile', {
  doc: 'What files tell of themselves.',
  members: {
    'discard-nb-ok': required(uint64, 'discards that succeeded'),
    'discard-nb-failed': required(uint64, 'discards that failed'),
    'discard-bytes-ok': required(uint64, 'bytes discarded'),
  },
});

export const BlockStatsSpecific = union('BlockStatsSpecific', {
  doc: 'Statistics that only some drivers have.',
  members: { driver: required(BlockdevDriver, 'the driver') },
  discriminator: 'driver',
  branches: { file: BlockStatsSpecificFile, host_device: BlockStatsSpecificFile },
});

export interface BlockStatsBox {
  readonly type: typeof BlockStats;
}

export const BlockStats = struct('BlockStats', {
  doc: 'Statistics of a node and those below it.',
  members: {
    device: optional(str, 'name of the device'),
    qdev: optional(str, 'id or path of the device'),
    'node-name': optional(str, 'name of the node'),
    stats: required(BlockDeviceStats, 'what it has done'),
    'driver-specific': optional(BlockStatsSpecific, 'what only its driver tells'),
    parent: optional(
      lazy<BlockStatsBox>((): AnyType => BlockStats),
      'the node that holds its data (its file)',
    ),
    backing: optional(
      lazy<BlockStatsBox>((): AnyType => BlockStats),
      'its backing node',
    ),
  },
});

export const XDbgBlockGraphNodeType = enumeration('XDbgBlockGraphNodeType', {
  doc: 'Kinds of vertices.',
  values: {
    'block-backend': 'a user of a node that is no node: an export, for one',
    'block-job': 'a job',
    'block-driver': 'a node',
  },
});

export const XDbgBlockGraphNode = struct('XDbgBlockGraphNode', {
  doc: 'A vertex of the graph.',
  members: {
    id: required(uint64, 'a number of its own in this answer'),
    type: required(XDbgBlockGraphNodeType, 'its kind'),
    name: required(str, 'its name; empty where it has none'),
  },
});

export const XDbgBlockGraphEdge = struct('XDbgBlockGraphEdge', {
  doc: 'An edge of the graph.',
  members: {
    parent: required(uint64, 'id of the user'),
    child: required(uint64, 'id of the node that is used'),
    name: required(str, 'what for'),
    perm: required(array(BlockPermission), 'permissions that the user has taken'),
    'shared-perm': required(array(BlockPermission), 'permissions that others may have'),
  },
});

export const XDbgBlockGraph = struct('XDbgBlockGraph', {
  doc: 'The graph as it is.',
  members: {
    nodes: required(array(XDbgBlockGraphNode), 'vertices'),
    edges: required(array(XDbgBlockGraphEdge), 'edges'),
  },
});
