// SPDX-License-Identifier: MIT
/** Socket addresses of the schema in Node's terms. */
import { lookup } from 'node:dns/promises';
import type { SocketAddress, SocketAddressLegacy } from '../../../protocol/qapi/sockets.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import { BlockError, fromSystemError } from '../../base/errors.js';
import { UNIX_PATH_MAX } from '../../base/limits.js';

export type Address = Infer<typeof SocketAddress>;

const PORT_MAX = 65535;

/** The older form with `data`, as the newer one. */
export function fromLegacy(address: Infer<typeof SocketAddressLegacy>): Address {
  switch (address.type) {
    case 'inet':
      return { type: 'inet', ...address.data };
    case 'unix':
      return { type: 'unix', ...address.data };
    default:
      return { type: 'fd', ...address.data };
  }
}

function invalid(text: string): BlockError {
  return new BlockError('DF_INVALID', text);
}

/** @throws {BlockError} `DF_INVALID`: too long for the system */
export function checkUnixPath(path: string): string {
  if (Buffer.byteLength(path) > UNIX_PATH_MAX) {
    throw invalid(`UNIX socket path '${path}' is too long`);
  }
  if (path === '' || path.includes('\0')) throw invalid(`'${path}' is not a path of a UNIX socket`);
  return path;
}

/** @throws {BlockError} `DF_INVALID`: no decimal number from 0 to 65535 */
export function parsePort(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN;
  if (!(port <= PORT_MAX)) throw invalid(`port '${text}' must be a number from 0 to ${PORT_MAX}`);
  return port;
}

/** @throws {BlockError} `DF_INVALID`: no number, or one of the standard descriptors' */
export function parseFd(text: string): number {
  const fd = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (!(fd > 2)) throw invalid(`'${text}' is not the number of an inherited descriptor`);
  return fd;
}

type Families = { readonly ipv4?: boolean; readonly ipv6?: boolean };

/** The one family that is allowed, or 0 for both. Naming one excludes the other, as in QEMU. */
function familyOf({ ipv4, ipv6 }: Families): 0 | 4 | 6 {
  if (ipv4 === false && ipv6 === false) throw invalid('Cannot disable IPv4 and IPv6 at same time');
  if (ipv4 === true && ipv6 === true) return 0;
  if (ipv4 === true || ipv6 === false) return 4;
  if (ipv6 === true || ipv4 === false) return 6;
  return 0;
}

/** Where to listen for TCP, with the name resolved. */
export async function resolveListen(
  address: Extract<Address, { type: 'inet' }>,
): Promise<{ host?: string; port: number; ipv6Only: boolean }> {
  const port = parsePort(address.port);
  const family = familyOf(address);
  if (address.host === '') {
    if (family === 0) return { port, ipv6Only: false };
    return { host: family === 4 ? '0.0.0.0' : '::', port, ipv6Only: family === 6 };
  }
  try {
    const found = await lookup(address.host, { family });
    return { host: found.address, port, ipv6Only: false };
  } catch (error) {
    throw unresolved(address, error);
  }
}

function unresolved(address: { host: string; port: string }, error: unknown): BlockError {
  const text = `address resolution failed for ${address.host}:${address.port}`;
  return fromSystemError(error, text);
}

/** Options for `net.connect`. */
export function connectOptions(address: Exclude<Address, { type: 'fd' }>) {
  if (address.type === 'unix') return { path: checkUnixPath(address.path) };
  const { host } = address;
  const keepAlive = address['keep-alive'] === true;
  return {
    host: host === '' ? 'localhost' : host,
    port: parsePort(address.port),
    family: familyOf(address),
    autoSelectFamily: true,
    keepAlive,
  };
}

/** An address for a person, as QEMU writes it: 'unix:/a', 'tcp:[::1]:5000'. */
export function addressText(address: Address, tcp = 'tcp'): string {
  if (address.type === 'unix') return `unix:${address.path}`;
  if (address.type === 'fd') return `fd:${address.str}`;
  return `${tcp}:${hostText(address.host)}:${address.port}`;
}

/** A host in front of a port: IPv6 in brackets. */
export function hostText(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}
