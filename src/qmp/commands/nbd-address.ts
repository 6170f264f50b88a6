// SPDX-License-Identifier: MIT
/** Addresses of the schema as the NBD server takes them. */
import { BlockError } from '../../base/errors.js';
import type { ListenAddress } from '../../nbd/server/listener.js';
import { type Address, checkUnixPath, parseFd, parsePort } from '../transport/socket-address.js';

/** A socket that a service manager opened, with the name that it gave it. */
export interface NamedSocket {
  readonly fd: number;
  readonly name?: string;
}

export interface NbdAddressOptions {
  /** NBD in binary frames of WebSocket. */
  readonly webSocket: boolean;
  /** What `addr.type=fd` may name instead of a number. */
  readonly namedSockets: readonly NamedSocket[];
}

/** @throws BlockError DF_INVALID naming what can't be listened on */
export function nbdListenAddress(address: Address, options: NbdAddressOptions): ListenAddress {
  if (options.webSocket) {
    if (address.type !== 'inet') {
      throw new BlockError('DF_INVALID', `websocket=on needs a TCP address, not ${address.type}`);
    }
    return { type: 'websocket', ...inetHost(address), port: parsePort(address.port) };
  }
  if (address.type === 'unix') return { type: 'unix', path: checkUnixPath(address.path) };
  if (address.type === 'fd') return { type: 'fd', fd: socketNumber(address.str, options) };
  return { type: 'inet', ...inetHost(address), port: parsePort(address.port) };
}

function socketNumber(text: string, { namedSockets }: NbdAddressOptions): number {
  const named = namedSockets.find(({ name }) => name === text);
  return named?.fd ?? parseFd(text);
}

/** '' is every address of the families that are allowed. */
function inetHost({ host, ipv4, ipv6 }: Extract<Address, { type: 'inet' }>): {
  host: string;
  ipv6Only?: boolean;
} {
  if (ipv4 === false && ipv6 === false) {
    throw new BlockError('DF_INVALID', 'Cannot disable IPv4 and IPv6 at same time');
  }
  const only6 = ipv4 === false || (ipv6 === true && ipv4 !== true);
  const only4 = ipv6 === false || (ipv4 === true && ipv6 !== true);
  if (host !== '') return only6 ? { host, ipv6Only: true } : { host };
  if (only4) return { host: '0.0.0.0' };
  return only6 ? { host: '::', ipv6Only: true } : { host: '::' };
}
