// SPDX-License-Identifier: MIT
/** `--chardev help`: the flat names of that option, which the schema does not have. */
import { ChardevBackendKind } from '../../protocol/qapi/char.js';
import { BlockError } from '../base/errors.js';
import { formatOptions, listKinds } from './option-help.js';

type Row = readonly [name: string, value: string, doc: string];

const SOCKET: readonly Row[] = [
  ['path', 'string', 'of a UNIX socket; or host and port, or fd'],
  ['host', 'string', 'address of a TCP socket'],
  ['port', 'string', 'its port; 0 takes a free one'],
  ['ipv4', 'on|off', 'use IPv4'],
  ['ipv6', 'on|off', 'use IPv6'],
  ['fd', 'string', 'number of an inherited descriptor'],
  ['server', 'on|off', 'listen instead of connecting (default: off)'],
  ['wait', 'on|off', 'do not go on before a client has connected (default: on, with server)'],
  ['websocket', 'on|off', 'speak the WebSocket protocol, with server (default: off)'],
  ['reconnect', 'number', 'seconds until a lost connection is tried again (default: 0, never)'],
  ['nodelay', 'on|off', 'send small packets at once (default: off)'],
  ['delay', 'on|off', 'the opposite of nodelay'],
];

const ROWS: Readonly<Record<(typeof ChardevBackendKind.values)[number], readonly Row[]>> = {
  socket: SOCKET,
  file: [
    ['path', 'string', 'file to write output to (required)'],
    ['input-path', 'string', 'file to read input from'],
    ['append', 'on|off', 'add to the file instead of emptying it (default: off)'],
  ],
  pipe: [['path', 'string', 'of the pipes, to which .in and .out are added (required)']],
  stdio: [],
  null: [],
};

const COMMON: readonly Row[] = [
  ['id', 'string', 'its id, for --monitor (required)'],
  ['logfile', 'string', 'file to which a copy of all output goes'],
  ['logappend', 'on|off', 'add to the log file instead of emptying it (default: off)'],
];

/**
 * The text that `--chardev help` or `--chardev KIND,help` asks for; undefined where there is no `help`.
 * @throws BlockError DF_INVALID for a kind that there is not
 */
export function chardevHelp(value: string): string | undefined {
  const words = value.split(',');
  if (!words.some((word) => word === 'help' || word === '?')) return undefined;
  const [first = ''] = words;
  const kind = first.replace(/^backend=/, '');
  if (kind === 'help' || kind === '?') return listKinds(ChardevBackendKind, 'chardev backend type');
  const known = ChardevBackendKind.values.find((name) => name === kind);
  if (known === undefined) {
    throw new BlockError('DF_INVALID', `'${kind}' is not a valid char driver name`);
  }
  const lines = [...ROWS[known], ...COMMON].map(([key, type, doc]) => ({ key, type, doc }));
  return formatOptions(known, lines);
}
