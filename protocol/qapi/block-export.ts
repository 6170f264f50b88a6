// SPDX-License-Identifier: MIT
/** The NBD server and what it exports. @see QEMU's qapi/block-export.json */
import { BlockDirtyBitmapOrStr } from './bitmaps.js';
import {
  array,
  bool,
  defineCommand,
  defineEvent,
  enumeration,
  int,
  optional,
  required,
  str,
  struct,
  uint32,
  union,
} from './define.js';
import { SocketAddress, SocketAddressLegacy } from './sockets.js';

/** What there is beside the address, which QMP and the command line write differently. */
const nbdServerMembers = {
  'max-connections': optional(uint32, 'clients at a time; 0: no limit', { default: '100' }),
  'handshake-max-seconds': optional(
    uint32,
    'time for a client to finish negotiating, seconds; 0: no limit',
    { default: '10' },
  ),
  websocket: optional(bool, 'clients speak NBD in binary frames of WebSocket (ours, not in QEMU)', {
    default: 'false',
  }),
} as const;

/** The argument of `--nbd-server`; no command takes it. */
export const NbdServerOptions = struct('NbdServerOptions', {
  doc: 'The NBD server, as on the command line.',
  members: { addr: required(SocketAddress, 'address to listen on'), ...nbdServerMembers },
});

export const NBD_SERVER_START = defineCommand({
  name: 'nbd-server-start',
  doc: 'Starts the NBD server.',
  arguments: {
    addr: required(SocketAddressLegacy, 'address to listen on'),
    ...nbdServerMembers,
  },
});

export const NBD_SERVER_STOP = defineCommand({
  name: 'nbd-server-stop',
  doc: 'Stops the NBD server: its clients are disconnected and its exports removed.',
});

const BlockExportOptionsNbdBase = struct('BlockExportOptionsNbdBase', {
  doc: 'What clients are shown of an export.',
  members: {
    name: optional(str, 'its name, at most 4096 bytes', { default: "the node's name" }),
    description: optional(str, 'a text for people, at most 4096 bytes'),
  },
});

export const BlockExportOptionsNbd = struct('BlockExportOptionsNbd', {
  doc: 'An NBD export.',
  base: BlockExportOptionsNbdBase,
  members: {
    bitmaps: optional(
      array(BlockDirtyBitmapOrStr),
      'bitmaps that clients can ask for, as contexts qemu:dirty-bitmap:NAME',
    ),
    'allocation-depth': optional(bool, 'clients can ask for the context qemu:allocation-depth', {
      default: 'false',
    }),
  },
});

export const NBD_SERVER_ADD = defineCommand({
  name: 'nbd-server-add',
  doc: 'Exports a node over NBD; block-export-add does the same, and more.',
  arguments: struct('NbdServerAddOptions', {
    doc: 'An NBD export.',
    base: BlockExportOptionsNbdBase,
    members: {
      device: required(str, 'name of the node'),
      writable: optional(bool, 'clients may write', { default: 'false' }),
      bitmap: optional(str, 'a bitmap that clients can ask for'),
    },
  }),
  features: ['deprecated'],
});

export const BlockExportRemoveMode = enumeration('BlockExportRemoveMode', {
  doc: 'What happens to the clients of an export that is removed.',
  values: {
    safe: 'the export is only removed when it has none',
    hard: 'they are disconnected',
    hide: 'they stay, new ones are refused, and the export goes with the last (ours, not in QEMU)',
  },
});

export const NBD_SERVER_REMOVE = defineCommand({
  name: 'nbd-server-remove',
  doc: 'Removes an NBD export; block-export-del does the same.',
  arguments: {
    name: required(str, 'name of the export'),
    mode: optional(BlockExportRemoveMode, 'what happens to its clients', { default: 'safe' }),
  },
  features: ['deprecated'],
});

export const BlockExportType = enumeration('BlockExportType', {
  doc: 'Kinds of exports.',
  values: { nbd: 'over NBD' },
});

export const BlockExportOptions = union('BlockExportOptions', {
  doc: 'An export.',
  members: {
    type: required(BlockExportType, 'its kind'),
    id: required(str, 'its id'),
    'node-name': required(str, 'name of the node'),
    writable: optional(bool, 'clients may write', { default: 'false' }),
    writethrough: optional(bool, 'every write is on stable storage before its reply', {
      default: 'false',
    }),
    'allow-inactive': optional(bool, 'export an inactive node too; requests fail while it is so', {
      default: 'false',
    }),
  },
  discriminator: 'type',
  branches: { nbd: BlockExportOptionsNbd },
});

export const BLOCK_EXPORT_ADD = defineCommand({
  name: 'block-export-add',
  doc: 'Exports a node.',
  arguments: BlockExportOptions,
});

export const BLOCK_EXPORT_DEL = defineCommand({
  name: 'block-export-del',
  doc: 'Removes an export. It is gone when BLOCK_EXPORT_DELETED says so.',
  arguments: {
    id: required(str, 'its id'),
    mode: optional(BlockExportRemoveMode, 'what happens to its clients', { default: 'safe' }),
  },
});

export const BlockExportInfo = struct('BlockExportInfo', {
  doc: 'An export.',
  members: {
    id: required(str, 'its id'),
    type: required(BlockExportType, 'its kind'),
    'node-name': required(str, 'name of the node'),
    'shutting-down': required(
      bool,
      'it is being removed, or hidden: new clients do not get it, and it goes with its last client',
    ),
  },
});

export const QUERY_BLOCK_EXPORTS = defineCommand({
  name: 'query-block-exports',
  doc: 'Lists the exports.',
  result: array(BlockExportInfo),
});

export const NbdConnectionInfo = struct('NbdConnectionInfo', {
  doc: 'A client of the NBD server (ours, not in QEMU).',
  members: {
    id: required(int, 'a number of its own'),
    peer: required(str, 'its address'),
    export: optional(str, 'id of the export that it uses; absent: it has not chosen yet'),
    'connected-since': required(int, 'when it came, milliseconds since 1970'),
    requests: required(int, 'requests that were answered'),
    'requests-in-flight': required(int, 'requests that are being worked on'),
    'read-bytes': required(int, 'bytes that it has read'),
    'written-bytes': required(int, 'bytes that it has written'),
  },
});

export const NbdServerInfo = struct('NbdServerInfo', {
  doc: 'The NBD server (ours, not in QEMU).',
  members: {
    running: required(bool, 'it runs'),
    addresses: required(array(SocketAddress), 'where it listens, with the ports that were chosen'),
    connections: required(array(NbdConnectionInfo), 'its clients'),
  },
});

export const QUERY_NBD_SERVER = defineCommand({
  name: 'query-nbd-server',
  doc: 'Tells where the NBD server listens and who its clients are (ours, not in QEMU).',
  result: NbdServerInfo,
});

export const BLOCK_EXPORT_DELETED = defineEvent({
  name: 'BLOCK_EXPORT_DELETED',
  doc: 'An export is gone, and its id may be used again.',
  data: { id: required(str, 'its id') },
});

export const BLOCK_EXPORT_COMMANDS = [
  NBD_SERVER_START,
  NBD_SERVER_ADD,
  NBD_SERVER_REMOVE,
  NBD_SERVER_STOP,
  BLOCK_EXPORT_ADD,
  BLOCK_EXPORT_DEL,
  QUERY_BLOCK_EXPORTS,
  QUERY_NBD_SERVER,
] as const;

export const BLOCK_EXPORT_EVENTS = [BLOCK_EXPORT_DELETED] as const;
