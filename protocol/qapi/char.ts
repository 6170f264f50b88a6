// SPDX-License-Identifier: MIT
/** Character devices: what monitors talk through. @see QEMU's qapi/char.json */
import {
  array,
  bool,
  defineCommand,
  enumeration,
  int,
  optional,
  required,
  str,
  struct,
  union,
} from './define.js';
import { SocketAddressLegacy } from './sockets.js';

export const ChardevInfo = struct('ChardevInfo', {
  doc: 'A character device.',
  members: {
    label: required(str, 'its id'),
    filename: required(str, 'where it leads'),
    'frontend-open': required(bool, 'whether something uses it'),
  },
});

export const ChardevBackendInfo = struct('ChardevBackendInfo', {
  doc: 'A kind of character device.',
  members: { name: required(str, 'its name') },
});

export const ChardevCommon = struct('ChardevCommon', {
  doc: 'What all character devices have.',
  members: {
    logfile: optional(str, 'file to which a copy of all output goes'),
    logappend: optional(bool, 'add to the log file instead of emptying it', { default: 'false' }),
  },
});

export const ChardevFile = struct('ChardevFile', {
  doc: 'Output into a file.',
  base: ChardevCommon,
  members: {
    in: optional(str, 'file to read input from'),
    out: required(str, 'file to write output to'),
    append: optional(bool, 'add to the file instead of emptying it', { default: 'false' }),
  },
});

export const ChardevHostdev = struct('ChardevHostdev', {
  doc: 'A pair of named pipes.',
  base: ChardevCommon,
  members: {
    device: required(
      str,
      'path of the pipes, to which .in and .out are added; or of one pipe for both directions',
    ),
  },
});

export const ChardevSocket = struct('ChardevSocket', {
  doc: 'A stream socket.',
  base: ChardevCommon,
  members: {
    addr: required(SocketAddressLegacy, 'address to listen on, or to connect to'),
    server: optional(bool, 'listen instead of connecting', { default: 'true' }),
    wait: optional(bool, 'do not go on before a client has connected (server)', {
      default: 'false',
    }),
    nodelay: optional(bool, 'send small packets at once (TCP)', { default: 'false' }),
    websocket: optional(bool, 'speak the WebSocket protocol (server)', { default: 'false' }),
    reconnect: optional(int, 'seconds after which a lost connection is tried again (client)', {
      default: '0: never',
    }),
  },
});

export const ChardevStdio = struct('ChardevStdio', {
  doc: 'Standard input and output.',
  base: ChardevCommon,
});

const ChardevFileWrapper = struct('ChardevFileWrapper', {
  doc: 'A file.',
  members: { data: required(ChardevFile, 'options') },
});
const ChardevHostdevWrapper = struct('ChardevHostdevWrapper', {
  doc: 'A pair of named pipes.',
  members: { data: required(ChardevHostdev, 'options') },
});
const ChardevSocketWrapper = struct('ChardevSocketWrapper', {
  doc: 'A socket.',
  members: { data: required(ChardevSocket, 'options') },
});
const ChardevCommonWrapper = struct('ChardevCommonWrapper', {
  doc: 'A device without options of its own.',
  members: { data: required(ChardevCommon, 'options') },
});
const ChardevStdioWrapper = struct('ChardevStdioWrapper', {
  doc: 'Standard input and output.',
  members: { data: required(ChardevStdio, 'options') },
});

export const ChardevBackendKind = enumeration('ChardevBackendKind', {
  doc: 'Kinds of character devices.',
  values: {
    file: 'a file',
    pipe: 'named pipes',
    socket: 'a stream socket',
    null: 'nothing comes in, what goes out is dropped',
    stdio: 'standard input and output',
  },
});

export const ChardevBackend = union('ChardevBackend', {
  doc: 'Where a character device leads.',
  members: { type: required(ChardevBackendKind, 'kind of device') },
  discriminator: 'type',
  branches: {
    file: ChardevFileWrapper,
    pipe: ChardevHostdevWrapper,
    socket: ChardevSocketWrapper,
    null: ChardevCommonWrapper,
    stdio: ChardevStdioWrapper,
  },
});

export const ChardevReturn = struct('ChardevReturn', { doc: 'What a new character device tells.' });

export const QUERY_CHARDEV = defineCommand({
  name: 'query-chardev',
  doc: 'Lists the character devices.',
  result: array(ChardevInfo),
});

export const QUERY_CHARDEV_BACKENDS = defineCommand({
  name: 'query-chardev-backends',
  doc: 'Lists the kinds of character devices.',
  result: array(ChardevBackendInfo),
});

export const CHARDEV_ADD = defineCommand({
  name: 'chardev-add',
  doc: 'Adds a character device.',
  arguments: {
    id: required(str, 'its id; must be new'),
    backend: required(ChardevBackend, 'where it leads'),
  },
  result: ChardevReturn,
});

export const CHARDEV_CHANGE = defineCommand({
  name: 'chardev-change',
  doc: 'Gives a character device that nothing uses another backend.',
  arguments: {
    id: required(str, 'its id'),
    backend: required(ChardevBackend, 'where it shall lead'),
  },
  result: ChardevReturn,
});

export const CHARDEV_REMOVE = defineCommand({
  name: 'chardev-remove',
  doc: 'Removes a character device that nothing uses.',
  arguments: { id: required(str, 'its id') },
});

export const CHAR_COMMANDS = [
  QUERY_CHARDEV,
  QUERY_CHARDEV_BACKENDS,
  CHARDEV_ADD,
  CHARDEV_CHANGE,
  CHARDEV_REMOVE,
] as const;
