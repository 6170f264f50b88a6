// SPDX-License-Identifier: MIT
/** Making images. @see QEMU's qapi/block-core.json, BlockdevCreateOptions */
import { BlockdevDriver } from './block-core-options.js';
import {
  defineCommand,
  enumeration,
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

export const BlockdevCreateOptions = union('BlockdevCreateOptions', {
  doc: 'An image to be made.',
  members: { driver: required(BlockdevDriver, 'what makes it') },
  discriminator: 'driver',
  branches: { file: BlockdevCreateOptionsFile },
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
