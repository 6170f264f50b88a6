// SPDX-License-Identifier: MIT
/**
 * Options of nodes, driver by driver. Only drivers and options that exist are here.
 * @see QEMU's qapi/block-core.json, BlockdevOptions
 */

import { BlockDirtyBitmap } from './bitmaps.js';
import {
  BlkdebugInjectErrorOptions,
  BlkdebugSetStateOptions,
  BlockPermission,
} from './blkdebug.js';
import { OnOffAuto } from './common.js';
import { QCryptoBlockOptionsLUKS, QCryptoBlockOptionsQCow } from './crypto.js';
import {
  alternate,
  array,
  bool,
  enumeration,
  int,
  int32,
  lazy,
  nullType,
  optional,
  required,
  size,
  str,
  struct,
  uint32,
  uint64,
  union,
} from './define.js';
import { NbdServerAddress } from './sockets.js';
import type { AnyType } from './types.js';

export const BlockdevDiscardOptions = enumeration('BlockdevDiscardOptions', {
  doc: 'What happens to discarded ranges.',
  values: { ignore: 'nothing', unmap: 'their storage may be given back' },
});

export const BlockdevDetectZeroesOptions = enumeration('BlockdevDetectZeroesOptions', {
  doc: 'What happens to writes of nothing but zeroes.',
  values: {
    off: 'they are written as they are',
    on: 'they are turned into zero requests',
    unmap: 'they are turned into zero requests that may give storage back; needs discard=unmap',
  },
});

export const BlockdevAioOptions = enumeration('BlockdevAioOptions', {
  doc: 'How requests reach the operating system.',
  values: { threads: 'at once where that does not wait, otherwise through a pool of threads' },
});

export const BlockdevCacheOptions = struct('BlockdevCacheOptions', {
  doc: "Use of the host's page cache.",
  members: {
    direct: optional(bool, 'go past the page cache', { default: 'false' }),
    'no-flush': optional(bool, 'ignore flushes: a crash of the host may lose data', {
      default: 'false',
    }),
  },
});

export const BlockdevDriver = enumeration('BlockdevDriver', {
  doc: 'Drivers.',
  values: {
    blkdebug: 'filter that makes requests fail on purpose',
    blklogwrites: 'filter that logs all writes to another node',
    blkverify: 'filter that compares two nodes at every read',
    compress: 'filter that has all that is written compressed',
    'copy-before-write': 'filter that saves what is about to be overwritten',
    'copy-on-read': 'filter that copies what is read from a backing node into its overlay',
    file: 'a regular file',
    host_device: 'a block device of the host',
    luks: 'an encrypted disk, LUKS version 1',
    nbd: 'an export of an NBD server',
    'null-aio': 'stores nothing, answers later',
    'null-co': 'stores nothing, answers at once',
    preallocate: 'filter that lets a file grow in large steps',
    qcow2: 'an image in the qcow2 format',
    quorum: 'several copies of one disk',
    raw: 'a window of another node, or all of it',
    'snapshot-access': 'the point in time that a copy-before-write filter keeps, to be read',
    throttle: 'filter that limits speed',
  },
});

/** Nodes contain references, and references may contain nodes; this is where the circle closes. */
export interface BlockdevOptionsBox {
  readonly type: typeof BlockdevOptions;
}

export const BlockdevRef = alternate('BlockdevRef', {
  doc: 'A node: defined in place, or by the name of one that exists.',
  branches: {
    definition: lazy<BlockdevOptionsBox>((): AnyType => BlockdevOptions),
    reference: str,
  },
});

export const BlockdevOptionsFile = struct('BlockdevOptionsFile', {
  doc: 'A file or a block device of the host.',
  members: {
    filename: required(str, 'its path'),
    locking: optional(OnOffAuto, 'lock it as QEMU does, so that no two programs damage it', {
      default: 'auto: where the file system has locks',
    }),
    aio: optional(BlockdevAioOptions, 'how requests reach the operating system', {
      default: 'threads',
    }),
  },
  features: ['dynamic-auto-read-only'],
});

export const BlockdevOptionsNull = struct('BlockdevOptionsNull', {
  doc: 'A node that stores nothing.',
  members: {
    size: optional(size, 'its size, bytes', { default: '1 GiB' }),
    'latency-ns': optional(uint64, 'time that every request takes, nanoseconds', { default: '0' }),
    'read-zeroes': optional(bool, 'promise that reads give zeroes', { default: 'false' }),
  },
});

export const BlockdevOptionsGenericFormat = struct('BlockdevOptionsGenericFormat', {
  doc: 'A node above one other.',
  members: { file: required(BlockdevRef, 'the node below') },
});

export const BlockdevOptionsLUKS = struct('BlockdevOptionsLUKS', {
  doc: 'An encrypted disk.',
  base: BlockdevOptionsGenericFormat,
  members: {
    'key-secret': optional(str, 'id of the secret object that has the passphrase; needed'),
  },
});

export const BlockdevOptionsPreallocate = struct('BlockdevOptionsPreallocate', {
  doc: 'Lets the file below grow in large steps.',
  base: BlockdevOptionsGenericFormat,
  members: {
    'prealloc-align': optional(size, 'the file ends at multiples of this, bytes', {
      default: '1 MiB',
    }),
    'prealloc-size': optional(size, 'how far the file grows ahead, bytes', { default: '128 MiB' }),
  },
});

export const BlockdevOptionsBlkdebug = struct('BlockdevOptionsBlkdebug', {
  doc: 'Makes requests fail on purpose.',
  members: {
    image: required(BlockdevRef, 'the node below'),
    align: optional(size, 'request alignment that it pretends to need, bytes, a power of two'),
    'max-transfer': optional(int32, 'longest request that it pretends to take, bytes'),
    'opt-write-zero': optional(int32, 'alignment at which it pretends to zero well, bytes'),
    'max-write-zero': optional(int32, 'longest write of zeroes that it pretends to take, bytes'),
    'opt-discard': optional(int32, 'alignment at which it pretends to discard well, bytes'),
    'max-discard': optional(int32, 'longest discard that it pretends to take, bytes'),
    'inject-error': optional(array(BlkdebugInjectErrorOptions), 'rules that make requests fail'),
    'set-state': optional(array(BlkdebugSetStateOptions), 'rules that change the state'),
    'take-child-perms': optional(array(BlockPermission), 'permissions to take in addition'),
    'unshare-child-perms': optional(array(BlockPermission), 'permissions to deny to others'),
  },
});

export const BlockdevOptionsBlklogwrites = struct('BlockdevOptionsBlklogwrites', {
  doc: 'Logs all writes in the format of the Linux dm-log-writes target.',
  members: {
    file: required(BlockdevRef, 'the node below'),
    log: required(BlockdevRef, 'the node that takes the log'),
    'log-sector-size': optional(uint32, 'sector size of the log, bytes', { default: '512' }),
    'log-append': optional(bool, 'add to a log that exists', { default: 'false' }),
    'log-super-update-interval': optional(
      uint64,
      'write requests after which the header of the log is updated',
      { default: '4096' },
    ),
  },
});

export const BlockdevOptionsBlkverify = struct('BlockdevOptionsBlkverify', {
  doc: 'Compares two nodes that ought to be equal.',
  members: {
    test: required(BlockdevRef, 'the node to be tested'),
    raw: required(BlockdevRef, 'the node that is known to be right'),
  },
});

export const BlockdevOptionsNbd = struct('BlockdevOptionsNbd', {
  doc: 'An export of an NBD server.',
  members: {
    server: required(NbdServerAddress, 'address of the server'),
    export: optional(str, 'name of the export', { default: 'the empty name' }),
    'tls-hostname': optional(
      str,
      "name that the server's certificate has to be for; without TLS only the empty one is taken",
      { default: 'the empty name' },
    ),
    'x-dirty-bitmap': optional(
      str,
      'meta context whose marks block status reports instead of base:allocation',
      { features: ['unstable'] },
    ),
    'reconnect-delay': optional(
      uint32,
      'how long requests wait for a lost server to come back, seconds; 0: they fail at once',
      { default: '0' },
    ),
    'open-timeout': optional(
      uint32,
      'how long to try to connect at the start, seconds; 0: once only',
      { default: '0' },
    ),
    connections: optional(
      uint32,
      'connections at most, to a server that says they are coherent (ours, not in QEMU)',
      { default: 'as many as pay off' },
    ),
  },
});

export const BlockdevOptionsRaw = struct('BlockdevOptionsRaw', {
  doc: 'A window of another node, or all of it.',
  base: BlockdevOptionsGenericFormat,
  members: {
    offset: optional(size, 'where the window starts, bytes', { default: '0' }),
    size: optional(size, 'its size, bytes', { default: 'up to the end' }),
  },
});

export const BlockdevRefOrNull = alternate('BlockdevRefOrNull', {
  doc: 'A node, or expressly none.',
  branches: {
    definition: lazy<BlockdevOptionsBox>((): AnyType => BlockdevOptions),
    reference: str,
    null: nullType,
  },
});

export const BlockdevOptionsGenericCOWFormat = struct('BlockdevOptionsGenericCOWFormat', {
  doc: 'An image that may lie on another.',
  base: BlockdevOptionsGenericFormat,
  members: {
    backing: optional(BlockdevRefOrNull, 'the image that it lies on', {
      default: 'the one that the image names',
    }),
  },
});

export const Qcow2OverlapCheckMode = enumeration('Qcow2OverlapCheckMode', {
  doc: "Sets of the image's own structures that data is kept from being written over.",
  values: {
    none: 'none of them',
    constant: 'those of which there is one each',
    cached: 'all whose place is known without reading',
    all: 'all',
  },
});

const guard = (what: string) => optional(bool, `guard ${what}`, { default: 'as template says' });

export const Qcow2OverlapCheckFlags = struct('Qcow2OverlapCheckFlags', {
  doc: "The image's own structures that data is kept from being written over, one by one.",
  members: {
    template: optional(Qcow2OverlapCheckMode, 'what the others start from', { default: 'cached' }),
    'main-header': guard('the header'),
    'active-l1': guard('the L1 table'),
    'active-l2': guard('L2 tables'),
    'refcount-table': guard('the refcount table'),
    'refcount-block': guard('refcount blocks'),
    'snapshot-table': guard('the list of snapshots'),
    'inactive-l1': guard('L1 tables of snapshots'),
    'inactive-l2': guard('L2 tables of snapshots'),
    'bitmap-directory': guard('the list of bitmaps'),
  },
});

export const Qcow2OverlapChecks = alternate('Qcow2OverlapChecks', {
  doc: "The image's own structures that data is kept from being written over.",
  branches: { flags: Qcow2OverlapCheckFlags, mode: Qcow2OverlapCheckMode },
});

export const BlockdevQcow2EncryptionFormat = enumeration('BlockdevQcow2EncryptionFormat', {
  doc: 'How an image may be encrypted.',
  values: {
    aes: 'as very old images are: the passphrase itself is the key. It protects little',
    luks: 'by LUKS',
  },
});

export const BlockdevQcow2Encryption = union('BlockdevQcow2Encryption', {
  doc: 'The key of an encrypted image.',
  members: { format: required(BlockdevQcow2EncryptionFormat, 'how the image is encrypted') },
  discriminator: 'format',
  branches: { aes: QCryptoBlockOptionsQCow, luks: QCryptoBlockOptionsLUKS },
});

export const BlockdevOptionsQcow2 = struct('BlockdevOptionsQcow2', {
  doc: 'An image in the qcow2 format.',
  base: BlockdevOptionsGenericCOWFormat,
  members: {
    'lazy-refcounts': optional(bool, 'put off the counts of clusters until the image is closed', {
      default: 'as the image says',
    }),
    'pass-discard-request': optional(bool, 'discards reach the file', {
      default: 'true with discard=unmap',
    }),
    'pass-discard-snapshot': optional(
      bool,
      'clusters that come free with a snapshot are discarded in the file',
      { default: 'true' },
    ),
    'pass-discard-other': optional(
      bool,
      'clusters that come free otherwise are discarded in the file',
      { default: 'false' },
    ),
    'discard-no-unref': optional(
      bool,
      'clusters that are discarded or zeroed keep their place in the file (newer than QEMU 7.2)',
      { default: 'false' },
    ),
    'overlap-check': optional(
      Qcow2OverlapChecks,
      "the image's own structures that data is kept from being written over",
      { default: 'cached' },
    ),
    'cache-size': optional(int, 'memory for L2 tables and refcount blocks together, bytes'),
    'l2-cache-size': optional(int, 'memory for L2 tables, bytes', {
      default: '32 MiB, or less where the image has less',
    }),
    'l2-cache-entry-size': optional(int, 'pieces in which L2 tables are read, bytes', {
      default: '4 KiB, or the cluster size',
    }),
    'refcount-cache-size': optional(int, 'memory for refcount blocks, bytes', {
      default: '4 clusters',
    }),
    'cache-clean-interval': optional(
      int,
      'time after which tables that nobody used are let go, seconds; 0: never',
      { default: '600' },
    ),
    encrypt: optional(BlockdevQcow2Encryption, 'the key; needed for an encrypted image'),
    'data-file': optional(BlockdevRef, 'the node that holds the data of the guest', {
      default: 'the file that the image names',
    }),
  },
});

export const BlockdevOptionsThrottle = struct('BlockdevOptionsThrottle', {
  doc: 'Limits the speed of a node.',
  members: {
    'throttle-group': required(str, 'id of the throttle-group object whose limits it shares'),
    file: required(BlockdevRef, 'the node below'),
  },
});

export const BlockdevOptionsCor = struct('BlockdevOptionsCor', {
  doc: 'Copies what is read from a backing node into its overlay.',
  base: BlockdevOptionsGenericFormat,
  members: {
    bottom: optional(str, 'name of the last node of the chain from which data is copied', {
      default: 'the whole chain',
    }),
  },
});

export const OnCbwError = enumeration('OnCbwError', {
  doc: 'What happens when old content can not be saved.',
  values: {
    'break-guest-write': 'the write that would overwrite it fails',
    'break-snapshot': 'the write goes on, and the snapshot can not be used any more',
  },
});

export const BlockdevOptionsCbw = struct('BlockdevOptionsCbw', {
  doc: 'Saves what is about to be overwritten in another node.',
  base: BlockdevOptionsGenericFormat,
  members: {
    target: required(BlockdevRef, 'the node that takes the old content'),
    bitmap: optional(BlockDirtyBitmap, 'what is to be saved, as marked when the node is added', {
      default: 'all',
    }),
    'on-cbw-error': optional(OnCbwError, 'what happens when old content can not be saved', {
      default: 'break-guest-write',
    }),
    'cbw-timeout': optional(
      uint32,
      'time after which saving counts as failed, seconds; 0: no limit',
      { default: '0' },
    ),
    'min-cluster-size': optional(
      size,
      'bytes that are saved together at least, a power of two up to 16 MiB',
      { default: '64 KiB' },
    ),
  },
});

export const QuorumReadPattern = enumeration('QuorumReadPattern', {
  doc: 'How copies are read.',
  values: {
    quorum: 'all of them, and what enough of them have is returned',
    fifo: 'one after the other, until one can be read',
  },
});

export const BlockdevOptionsQuorum = struct('BlockdevOptionsQuorum', {
  doc: 'Several copies of one disk.',
  members: {
    blkverify: optional(bool, 'two copies, any difference fails the read', { default: 'false' }),
    children: required(array(BlockdevRef), 'the copies, 1 to 64, all of one size'),
    'vote-threshold': required(int, 'copies that must succeed and agree, 1 or more'),
    'rewrite-corrupted': optional(bool, 'write anew what was outvoted', { default: 'false' }),
    'read-pattern': optional(QuorumReadPattern, 'how copies are read', { default: 'quorum' }),
  },
});

export const BlockdevOptions = union('BlockdevOptions', {
  doc: 'A node of the block graph.',
  members: {
    driver: required(BlockdevDriver, 'what is behind the node'),
    'node-name': optional(str, 'its name', { default: 'made up; only for nodes inside others' }),
    discard: optional(BlockdevDiscardOptions, 'what happens to discarded ranges', {
      default: 'ignore',
    }),
    cache: optional(BlockdevCacheOptions, "use of the host's page cache"),
    'read-only': optional(bool, 'refuse writes', { default: 'false, or as its parent' }),
    'auto-read-only': optional(bool, 'become read-only where writing is not possible', {
      default: 'false',
    }),
    'force-share': optional(bool, 'allow writers elsewhere; needs read-only', { default: 'false' }),
    'detect-zeroes': optional(BlockdevDetectZeroesOptions, 'what happens to writes of zeroes', {
      default: 'off',
    }),
  },
  discriminator: 'driver',
  branches: {
    blkdebug: BlockdevOptionsBlkdebug,
    blklogwrites: BlockdevOptionsBlklogwrites,
    blkverify: BlockdevOptionsBlkverify,
    compress: BlockdevOptionsGenericFormat,
    'copy-before-write': BlockdevOptionsCbw,
    'copy-on-read': BlockdevOptionsCor,
    file: BlockdevOptionsFile,
    host_device: BlockdevOptionsFile,
    luks: BlockdevOptionsLUKS,
    nbd: BlockdevOptionsNbd,
    'null-aio': BlockdevOptionsNull,
    'null-co': BlockdevOptionsNull,
    preallocate: BlockdevOptionsPreallocate,
    qcow2: BlockdevOptionsQcow2,
    quorum: BlockdevOptionsQuorum,
    raw: BlockdevOptionsRaw,
    'snapshot-access': BlockdevOptionsGenericFormat,
    throttle: BlockdevOptionsThrottle,
  },
});
