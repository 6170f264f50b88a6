// SPDX-License-Identifier: MIT
/** Where an NBD server is, and how errors and queries write that. */
import { formatNbdFilename, type NbdTargetAddress } from '../../../protocol/nbd/uri.js';

/** `fd`: a connected stream socket that this process has open; the client closes it. */
export type NbdAddress = NbdTargetAddress | { readonly type: 'fd'; readonly fd: number };

/** For error texts: "nbd://host:10809/name". */
export function describeNbdExport(address: NbdAddress, exportName: string): string {
  const name = formatNbdFilename(address, exportName);
  if (name !== undefined) return name;
  return `export '${exportName}' on descriptor ${address.type === 'fd' ? address.fd : ''}`;
}

/** True where a second connection can be made, or a lost one again. */
export function canConnectAgain(address: NbdAddress): boolean {
  return address.type !== 'fd';
}
