// SPDX-License-Identifier: MIT
/** Rules of the driver blkdebug. @see QEMU's qapi/block-core.json, BlockdevOptionsBlkdebug */
import { bool, enumeration, int, optional, required, struct } from './define.js';

export const BlockPermission = enumeration('BlockPermission', {
  doc: 'What a user of a node does with it, or lets others do.',
  values: {
    'consistent-read': 'read data that makes sense',
    write: 'change data',
    'write-unchanged': 'write data that is already there',
    resize: 'change the size',
  },
});

export const BlkdebugEvent = enumeration('BlkdebugEvent', {
  doc: 'Points in the life of requests at which a rule can act.',
  values: {
    read_aio: 'a read arrives',
    write_aio: 'a write arrives',
    flush_to_os: 'a flush arrives',
    flush_to_disk: 'a flush goes on to the node below',
    pwritev: 'data goes down to the node below',
    pwritev_zero: 'zeroes go down to the node below',
    pwritev_done: 'a write has been completed',
    none: 'the node has been opened',
  },
});

export const BlkdebugIOType = enumeration('BlkdebugIOType', {
  doc: 'Kinds of requests.',
  values: {
    read: 'reads',
    write: 'writes of data',
    'write-zeroes': 'writes of zeroes',
    discard: 'discards',
    flush: 'flushes',
    'block-status': 'questions for the status of ranges',
  },
});

export const BlkdebugInjectErrorOptions = struct('BlkdebugInjectErrorOptions', {
  doc: 'A rule that makes requests fail.',
  members: {
    event: required(BlkdebugEvent, 'what switches the rule on'),
    state: optional(int, 'only in this state', { default: '0: in any' }),
    iotype: optional(BlkdebugIOType, 'the kind of requests that fail', {
      default: 'all but block-status',
    }),
    errno: optional(int, "the error, as Linux's number", { default: '5: EIO' }),
    sector: optional(int, 'only requests that touch this sector of 512 bytes', {
      default: '-1: each',
    }),
    once: optional(bool, 'the rule is used up by one failure', { default: 'false' }),
    immediately: optional(bool, 'fail before the request goes further', { default: 'false' }),
  },
});

export const BlkdebugSetStateOptions = struct('BlkdebugSetStateOptions', {
  doc: 'A rule that changes the state.',
  members: {
    event: required(BlkdebugEvent, 'what makes the rule act'),
    state: optional(int, 'only in this state', { default: '0: in any' }),
    new_state: required(int, 'the state from then on'),
  },
});
