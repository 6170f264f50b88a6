// SPDX-License-Identifier: MIT
/**
 * How people write where an export is: NBD URIs, QEMU's older `nbd:` file names, WebSocket URLs.
 *
 * @see https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
 */
import { NBD_DEFAULT_PORT } from './constants.js';

export type NbdTargetAddress =
  | {
      readonly type: 'inet';
      readonly host: string;
      readonly port: number;
      /** Only this version of IP. */
      readonly family?: 4 | 6;
    }
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'websocket'; readonly url: string };

export interface NbdTarget {
  readonly address: NbdTargetAddress;
  /** '' is the server's default export. */
  readonly exportName: string;
  /** The transport has to be encrypted: `nbds:` or `wss:`. */
  readonly tls: boolean;
}

/** The text names no export in any of the known ways. */
export class NbdUriError extends Error {
  override readonly name = 'NbdUriError';
}

const URI_SHAPE = /^([A-Za-z][A-Za-z0-9+.-]*):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?$/;
const EXPORT_NAME_MARK = ':exportname=';

/**
 * Takes `nbd://`, `nbds://`, `nbd+unix://`, `nbds+unix://`, `ws://`, `wss://`, and QEMU's
 * `nbd:HOST:PORT[:exportname=NAME]` and `nbd:unix:PATH[:exportname=NAME]`.
 *
 * @throws NbdUriError that names what is wrong with the text
 */
export function parseNbdTarget(text: string): NbdTarget {
  if (text.includes('\0')) throw new NbdUriError('an NBD address has no NUL characters');
  const match = URI_SHAPE.exec(text);
  if (match === null) return parseQemuName(text);
  const [, scheme = '', authority = '', path = '', query = '', fragment] = match;
  if (fragment !== undefined) throw new NbdUriError(`an NBD URI has no fragment: '${text}'`);
  const uri: UriParts = { text, authority, path, query: parseQuery(text, query) };
  switch (scheme.toLowerCase()) {
    case 'nbd':
    case 'nbd+tcp':
      return inetTarget(uri, { tls: false });
    case 'nbds':
    case 'nbds+tcp':
      return inetTarget(uri, { tls: true });
    case 'nbd+unix':
      return unixTarget(uri, { tls: false });
    case 'nbds+unix':
      return unixTarget(uri, { tls: true });
    case 'ws':
      return webSocketTarget(uri, { tls: false });
    case 'wss':
      return webSocketTarget(uri, { tls: true });
    default:
      throw new NbdUriError(`'${scheme}' is no scheme of NBD addresses: '${text}'`);
  }
}

/**
 * The address as QEMU shows it in `filename`.
 * @returns undefined where QEMU has no such form either (descriptors)
 */
export function formatNbdFilename(
  address: NbdTargetAddress | { readonly type: 'fd' },
  exportName: string,
): string | undefined {
  switch (address.type) {
    case 'inet': {
      if (address.family !== undefined) return undefined;
      const authority = `${address.host}:${address.port}`;
      return exportName === '' ? `nbd://${authority}` : `nbd://${authority}/${exportName}`;
    }
    case 'unix':
      return exportName === ''
        ? `nbd+unix://?socket=${address.path}`
        : `nbd+unix:///${exportName}?socket=${address.path}`;
    case 'websocket':
      return webSocketName(address.url, exportName);
    case 'fd':
      return undefined;
  }
}

interface UriParts {
  readonly text: string;
  readonly authority: string;
  readonly path: string;
  readonly query: ReadonlyMap<string, string>;
}

function inetTarget(uri: UriParts, options: { tls: boolean }): NbdTarget {
  refuseQuery(uri, []);
  const { host, port } = parseHostPort(uri.text, uri.authority.replace(/^[^@]*@/, ''));
  return { address: { type: 'inet', host, port }, exportName: exportOfPath(uri), ...options };
}

function unixTarget(uri: UriParts, options: { tls: boolean }): NbdTarget {
  refuseQuery(uri, ['socket']);
  if (uri.authority !== '') {
    throw new NbdUriError(`a UNIX socket has no host, '${uri.authority}' given: '${uri.text}'`);
  }
  const path = uri.query.get('socket');
  if (path === undefined || path === '') {
    throw new NbdUriError(`the parameter 'socket' is missing: '${uri.text}'`);
  }
  return { address: { type: 'unix', path }, exportName: exportOfPath(uri), ...options };
}

/**
 * The URL's path is asked of the web server. The export is the parameter `export` (which is taken
 * off the URL), or else the path, as in nbd://.
 */
function webSocketTarget(uri: UriParts, options: { tls: boolean }): NbdTarget {
  parseHostPort(uri.text, uri.authority);
  const named = uri.query.get('export');
  const kept = [...uri.query].filter(([key]) => key !== 'export');
  const query = kept.map(
    ([key, value]) => `${encodeURIComponent(key)}=${encodeURIComponent(value)}`,
  );
  const scheme = options.tls ? 'wss' : 'ws';
  const path = uri.path === '' ? '/' : uri.path;
  const url = `${scheme}://${uri.authority}${path}${query.length > 0 ? '?' : ''}${query.join('&')}`;
  const exportName = named ?? exportOfPath(uri);
  return { address: { type: 'websocket', url }, exportName, ...options };
}

/** The URL, with the export's name where its path does not say it. */
function webSocketName(url: string, exportName: string): string {
  const [, path = '', query = ''] = /^wss?:\/\/[^/?]*([^?]*)(\?.*)?$/i.exec(url) ?? [];
  if (path.replace(/^\//, '') === encodeURI(exportName)) return url;
  return `${url}${query === '' ? '?' : '&'}export=${encodeURIComponent(exportName)}`;
}

/** One slash belongs to the URI, further ones to the name. */
function exportOfPath(uri: UriParts): string {
  return decode(uri.text, uri.path.replace(/^\//, ''));
}

function parseQemuName(text: string): NbdTarget {
  if (!text.startsWith('nbd:')) {
    throw new NbdUriError(`an NBD address starts with 'nbd:' or 'nbd://': '${text}'`);
  }
  const mark = text.indexOf(EXPORT_NAME_MARK);
  const where = text.slice('nbd:'.length, mark < 0 ? undefined : mark);
  const exportName = mark < 0 ? '' : text.slice(mark + EXPORT_NAME_MARK.length);
  if (where.startsWith('unix:')) {
    const path = where.slice('unix:'.length);
    if (path === '') throw new NbdUriError(`the socket's path is missing: '${text}'`);
    return { address: { type: 'unix', path }, exportName, tls: false };
  }
  if (!/:[^:\]]+$/.test(where)) throw new NbdUriError(`the port is missing: '${text}'`);
  const { host, port } = parseHostPort(text, where);
  return { address: { type: 'inet', host, port }, exportName, tls: false };
}

function parseHostPort(text: string, authority: string): { host: string; port: number } {
  const match = /^(?:\[([0-9A-Fa-f:.%]+)\]|([^:[\]]+))(?::(\d{1,5})?)?$/.exec(authority);
  const host = match?.[1] ?? match?.[2];
  if (host === undefined) throw new NbdUriError(`'${authority}' is no host and port: '${text}'`);
  const port = match?.[3] === undefined ? NBD_DEFAULT_PORT : Number(match[3]);
  if (port < 1 || port > 65_535) throw new NbdUriError(`port ${port} is not 1 to 65535: '${text}'`);
  return { host: decode(text, host), port };
}

function parseQuery(text: string, query: string): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const part of query.split(/[&;]/)) {
    if (part === '') continue;
    const equals = part.indexOf('=');
    const key = decode(text, equals < 0 ? part : part.slice(0, equals));
    if (parameters.has(key)) throw new NbdUriError(`parameter '${key}' is there twice: '${text}'`);
    parameters.set(key, equals < 0 ? '' : decode(text, part.slice(equals + 1)));
  }
  return parameters;
}

function refuseQuery(uri: UriParts, known: readonly string[]): void {
  for (const key of uri.query.keys()) {
    if (!known.includes(key)) {
      throw new NbdUriError(`unknown parameter '${key}': '${uri.text}'`);
    }
  }
}

function decode(text: string, part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw new NbdUriError(`'${part}' is not percent-encoded UTF-8: '${text}'`);
  }
}
