// SPDX-License-Identifier: MIT
/** Where an NBD server is, and how errors and queries write that. */
import { formatNbdFilename, type NbdTargetAddress } from '../../../protocol/nbd/uri.js';

/** `fd`: a connected stream socket that this process has open; the client closes it. */
export type NbdAddress = NbdTargetAddress | { readonly type: 'fd'; readonly fd: number };

/** For error texts: "nbd://host:10809/name". */
export function describeNbdExport(address: NbdAddress, exportName: string): string {
  const name = formatNbdFilename(address, exportName);
  if (name !== undefined) return name;
  return `export '${exportName}' on ${describeAddress(address)}`;
}

/** For error texts: where the server is, "host:10809" or a path. */
export function describeAddress(address: NbdAddress): string {
  switch (address.type) {
    case 'inet':
      return `${address.host}:${address.port}`;
    case 'unix':
      return address.path;
    case 'websocket':
      return address.url;
    case 'fd':
      return `descriptor ${address.fd}`;
  }
}

/** True where a second connection can be made, or a lost one again. */
export function canConnectAgain(address: NbdAddress): boolean {
  return address.type !== 'fd';
}

/** The `filename` of queries, as QEMU writes it; '' where it has no form for the address. */
export function nbdFilename(address: NbdAddress, exportName: string): string {
  return formatNbdFilename(address, exportName) ?? '';
}
