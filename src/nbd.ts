// SPDX-License-Identifier: MIT
/** Public entry `diskferry/nbd`. */
export { type NbdTarget, NbdUriError, parseNbdTarget } from '../protocol/nbd/uri.js';
export { BlockError, type ErrorCode } from './base/errors.js';
export type { ChainExtent } from './block/block-status.js';
export type { NbdAddress } from './nbd/client/address.js';
export type { NbdCapabilities } from './nbd/client/capabilities.js';
export { NbdClient, type NbdClientOptions, type NbdListOptions } from './nbd/client/client.js';
export type { NbdListedExport } from './nbd/client/list.js';
export type { NbdBlockSizes } from './nbd/client/negotiate.js';
export type { NbdClientEvent } from './nbd/client/pool.js';
export type { NbdExtent } from './nbd/client/request.js';
export type { ConnectionInfo } from './nbd/server/connection.js';
export type {
  DirtyExtents,
  ExportBackend,
  ExportOptions,
  NbdExport,
  RemoveMode,
} from './nbd/server/export.js';
export type { BoundAddress, ListenAddress } from './nbd/server/listener.js';
export { NbdServer, type NbdServerOptions } from './nbd/server/server.js';
