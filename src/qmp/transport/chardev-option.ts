// SPDX-License-Identifier: MIT
/**
 * The argument of `--chardev`: `socket,id=mon,path=/run/a.sock,server=on,wait=off`. This option is older
 * than QMP's syntax: flat names, flags without a value, and other defaults (a socket connects
 * unless `server`, and then waits unless `wait=off`).
 */
import { ChardevBackend } from '../../../protocol/qapi/char.js';
import type { JsonObject, JsonValue } from '../../../protocol/qapi/types.js';
import { validate } from '../../../protocol/qapi/validate.js';
import { BlockError } from '../../base/errors.js';
import type { BackendOptions } from './chardev-set.js';

function invalid(text: string): BlockError {
  return new BlockError('DF_INVALID', text);
}

/** Options that stand for their value `on` when they have none, and their negations. */
const FLAGS: readonly string[] = [
  'server',
  'wait',
  'nodelay',
  'delay',
  'websocket',
  'ipv4',
  'ipv6',
  'append',
  'logappend',
];

/** Splits at commas, where two commas stand for one in a value. */
function splitOptions(text: string): string[] {
  const parts: string[] = [];
  let part = '';
  for (let at = 0; at <= text.length; at++) {
    const isComma = text[at] === ',';
    if (at < text.length && (!isComma || text[at + 1] === ',')) {
      part += text[at];
      if (isComma) at++;
    } else {
      if (part !== '') parts.push(part);
      part = '';
    }
  }
  return parts;
}

function parsePairs(text: string): Map<string, string> {
  const pairs = new Map<string, string>();
  const put = (name: string, value: string): void => {
    if (pairs.has(name)) throw invalid(`Parameter '${name}' is given twice`);
    pairs.set(name, value);
  };
  for (const [index, part] of splitOptions(text).entries()) {
    const equals = part.indexOf('=');
    if (equals >= 0) put(part.slice(0, equals), part.slice(equals + 1));
    else if (index === 0) put('backend', part);
    else if (FLAGS.includes(part)) put(part, 'on');
    else if (part.startsWith('no') && FLAGS.includes(part.slice(2))) {
      put(part.slice(2), 'off');
    } else throw invalid(`Invalid parameter '${part}'`);
  }
  return pairs;
}

/** The options of one device; those that were taken are gone, so that the rest can be refused. */
class Options {
  constructor(
    readonly id: string,
    readonly pairs: Map<string, string>,
  ) {}

  take(name: string): string | undefined {
    const value = this.pairs.get(name);
    this.pairs.delete(name);
    return value;
  }

  need(name: string, text: string): string {
    const value = this.take(name);
    if (value === undefined) throw invalid(text);
    return value;
  }

  takeFlag(name: string): boolean | undefined {
    const value = this.take(name);
    if (value === undefined) return undefined;
    if (['on', 'yes', 'true', 'y'].includes(value)) return true;
    if (['off', 'no', 'false', 'n'].includes(value)) return false;
    throw invalid(`Parameter '${name}' expects 'on' or 'off'`);
  }
}

/** Leaves out what is undefined, so that only what was given is checked. */
function given(members: Record<string, JsonValue | undefined>): JsonObject {
  const present = Object.entries(members).filter(([, value]) => value !== undefined);
  return Object.fromEntries(present) as JsonObject;
}

function socketAddress(options: Options): JsonObject {
  const path = options.take('path');
  const fd = options.take('fd');
  const host = options.take('host');
  if ([path, fd, host].filter((value) => value !== undefined).length > 1) {
    throw invalid("None or one of 'path', 'fd' or 'host' option required.");
  }
  if (path !== undefined) return { type: 'unix', data: { path } };
  if (fd !== undefined) return { type: 'fd', data: { str: fd } };
  const port = options.need('port', 'chardev: socket: no port given');
  const ipv4 = options.takeFlag('ipv4');
  const ipv6 = options.takeFlag('ipv6');
  return { type: 'inet', data: given({ host: host ?? '', port, ipv4, ipv6 }) };
}

function socketData(options: Options): JsonObject {
  const addr = socketAddress(options);
  const server = options.takeFlag('server') ?? false;
  const wait = options.takeFlag('wait');
  const reconnect = options.take('reconnect');
  const nodelay = options.takeFlag('nodelay');
  const delay = options.takeFlag('delay');
  if (nodelay !== undefined && delay !== undefined) {
    throw invalid("'delay' and 'nodelay' are mutually exclusive");
  }
  if (reconnect !== undefined && !/^\d{1,9}$/.test(reconnect)) {
    throw invalid("Parameter 'reconnect' expects a number");
  }
  return given({
    addr,
    server,
    wait: server ? (wait ?? true) : wait,
    nodelay: nodelay ?? (delay !== undefined ? !delay : undefined),
    websocket: options.takeFlag('websocket'),
    reconnect: reconnect === undefined ? undefined : Number(reconnect),
  });
}

function backendData(type: string, options: Options): JsonObject {
  switch (type) {
    case 'socket':
      return socketData(options);
    case 'file':
      return given({
        out: options.need('path', 'chardev: file: no filename given'),
        in: options.take('input-path'),
        append: options.takeFlag('append'),
      });
    case 'pipe':
      return { device: options.need('path', 'chardev: pipe: no device path given') };
    case 'stdio':
    case 'null':
      return {};
    default:
      throw invalid(`'${type}' is not a valid char driver name`);
  }
}

/**
 * Parses the argument of `--chardev`.
 *
 * @throws {BlockError} `DF_INVALID`: an option is missing, unknown or wrong; the text names it
 */
export function parseChardevOption(text: string): { id: string; backend: BackendOptions } {
  const pairs = parsePairs(text);
  const id = pairs.get('id');
  if (id === undefined) throw invalid('chardev: no id specified');
  const options = new Options(id, pairs);
  options.take('id');
  const type = options.need('backend', `chardev: "${id}" missing backend`);
  const data = {
    ...backendData(type, options),
    ...given({ logfile: options.take('logfile'), logappend: options.takeFlag('logappend') }),
  };
  for (const name of pairs.keys()) throw invalid(`Invalid parameter '${name}'`);
  return { id, backend: validate(ChardevBackend, { type, data }) };
}
