// SPDX-License-Identifier: MIT
/** Making images. @see QEMU's qapi/block-core.json, BlockdevCreateOptions */
import { BlockdevDriver, BlockdevRef } from './block-core-options.js';
import { Qcow2CompressionType } from './block-nodes-info.js';
import { QCryptoBlockCreateOptions, QCryptoBlockCreateOptionsLUKS } from './crypto.js';
import {
  bool,
  defineCommand,
  enumeration,
  int,
  optional,
  required,
  size,
  str,
  struct,
  union,
} from './define.js';

export const PreallocMode = enumeration('PreallocMode', {
  doc: 'What is done beforehand so that writes find their space.',
  values: {
    off: 'nothing',
    metadata: 'the tables of the format are made, no space is taken for data',
    falloc: 'space is taken, without writing it where the file system can do that',
    full: 'space is taken by writing zeroes',
  },
});

export const BlockdevCreateOptionsFile = struct('BlockdevCreateOptionsFile', {
  doc: 'A file. One that exists is made empty first, unless somebody uses it.',
  members: {
    filename: required(str, 'its path'),
    size: required(size, 'its size, bytes'),
    preallocation: optional(PreallocMode, 'whether its space is taken; not metadata', {
      default: 'off',
    }),
  },
});

export const BlockdevCreateOptionsLUKS = struct('BlockdevCreateOptionsLUKS', {
  doc: 'An encrypted disk. Its content is arbitrary until it is written.',
  base: QCryptoBlockCreateOptionsLUKS,
  members: {
    file: required(BlockdevRef, 'the node that takes it'),
    size: required(size, 'bytes that it shows'),
    preallocation: optional(PreallocMode, 'whether its space is taken', { default: 'off' }),
  },
});

export const BlockdevQcow2Version = enumeration('BlockdevQcow2Version', {
  doc: 'Versions of the qcow2 format.',
  values: { v2: 'that of QEMU 0.10', v3: 'that of QEMU 1.1, with what has been added since' },
});

export const BlockdevCreateOptionsQcow2 = struct('BlockdevCreateOptionsQcow2', {
  doc: 'A qcow2 image.',
  members: {
    file: required(BlockdevRef, 'the node that becomes the image'),
    'data-file': optional(BlockdevRef, 'the node that holds the data of the guest', {
      default: 'the image itself',
    }),
    'data-file-raw': optional(bool, 'the data file can be read as a raw image', {
      default: 'false',
    }),
    'extended-l2': optional(bool, 'parts of clusters can be allocated', { default: 'false' }),
    size: required(size, 'virtual size, bytes, a multiple of 512'),
    version: optional(BlockdevQcow2Version, 'version of the format', { default: 'v3' }),
    'backing-file': optional(str, 'its backing file, as it is to stand in the image'),
    'backing-fmt': optional(BlockdevDriver, 'the format of the backing file'),
    encrypt: optional(QCryptoBlockCreateOptions, 'how its data is encrypted', {
      default: 'it is not',
    }),
    'cluster-size': optional(size, 'bytes allocated together, a power of two from 512 to 2 MiB', {
      default: '64 KiB',
    }),
    preallocation: optional(PreallocMode, 'what is done beforehand', { default: 'off' }),
    'lazy-refcounts': optional(bool, 'counts of clusters may be put off', { default: 'false' }),
    'refcount-bits': optional(int, 'width of the counts, bits, a power of two up to 64', {
      default: '16',
    }),
    'compression-type': optional(Qcow2CompressionType, 'how clusters are compressed', {
      default: 'zlib',
    }),
  },
});

export const BlockdevCreateOptions = union('BlockdevCreateOptions', {
  doc: 'An image to be made.',
  members: { driver: required(BlockdevDriver, 'what makes it') },
  discriminator: 'driver',
  branches: {
    file: BlockdevCreateOptionsFile,
    luks: BlockdevCreateOptionsLUKS,
    qcow2: BlockdevCreateOptionsQcow2,
  },
});

export const BLOCKDEV_CREATE = defineCommand({
  name: 'blockdev-create',
  doc:
    'Starts a job that makes an image. It stays concluded, with its error if it has failed, until ' +
    'job-dismiss.',
  arguments: {
    'job-id': required(str, 'id of the job'),
    options: required(BlockdevCreateOptions, 'the image'),
  },
});

export const BLOCK_CREATE_COMMANDS = [BLOCKDEV_CREATE] as const;
