// SPDX-License-Identifier: MIT
/** Public entry `diskferry/nbd`. */
export { type NbdTarget, NbdUriError, parseNbdTarget } from '../protocol/nbd/uri.js';
export { BlockError, type ErrorCode } from './base/errors.js';
export type { NbdAddress } from './nbd/client/address.js';
export {
  type NbdCapabilities,
  NbdClient,
  type NbdClientOptions,
  type NbdListOptions,
} from './nbd/client/client.js';
export type { NbdBlockSizes, NbdListedExport } from './nbd/client/negotiate.js';
export type { NbdClientEvent } from './nbd/client/pool.js';
export type { NbdExtent } from './nbd/client/request.js';
