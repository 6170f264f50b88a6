// SPDX-License-Identifier: MIT
/** Filters that come and go above a node in use. Named as in QEMU's proposal of `blockdev-replace`. */
import { defineCommand, enumeration, required, str, struct, union } from './define.js';

export const BlockParentType = enumeration('BlockParentType', {
  doc: 'What uses a node.',
  values: { driver: 'another node, which it is a child of', export: 'an export' },
});

export const BdrvChildRefDriver = struct('BdrvChildRefDriver', {
  doc: 'A child of a node.',
  members: {
    'node-name': required(str, 'name of the node whose child it is'),
    child: required(str, 'name of the child: "file", for one'),
  },
});

export const BdrvChildRefExport = struct('BdrvChildRefExport', {
  doc: 'The node of an export.',
  members: { 'export-id': required(str, 'id of the export') },
});

export const BlockdevReplace = union('BlockdevReplace', {
  doc: 'A user of a node, and the node that it gets instead.',
  members: {
    'parent-type': required(BlockParentType, 'what the user is'),
    'new-child': required(str, 'name of the node that it gets'),
  },
  discriminator: 'parent-type',
  branches: { driver: BdrvChildRefDriver, export: BdrvChildRefExport },
});

export const BLOCKDEV_REPLACE = defineCommand({
  name: 'blockdev-replace',
  doc:
    'Gives one user of a node another node of the same size, while it is in use: requests under way end ' +
    'first, later ones go to the other node. So a filter comes above a node whose clients are connected, ' +
    'and is taken away again. An export may get any node; a node only one that shows the same data.',
  arguments: BlockdevReplace,
  features: ['unstable'],
});

export const REPLACE_COMMANDS = [BLOCKDEV_REPLACE] as const;
