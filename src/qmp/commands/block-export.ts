// SPDX-License-Identifier: MIT
/** The NBD server and exports, under QMP control. */
import * as qapi from '../../../protocol/qapi/block-export.js';
import type { ArgumentsOf, Output } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import { isIdentifier } from '../../base/identifier.js';
import type { BlockGraph } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import type { NbdExport } from '../../nbd/server/export.js';
import type { NbdService } from '../../nbd/server/service.js';
import type { EventHub } from '../events.js';
import type { CommandRegistry } from '../registry.js';
import { fromLegacy } from '../transport/socket-address.js';
import { type NamedSocket, nbdListenAddress } from './nbd-address.js';

export interface ExportServices {
  readonly graph: BlockGraph;
  readonly nbd: NbdService;
  readonly events: EventHub;
  /** Sockets that a service manager passed. */
  readonly namedSockets: () => readonly NamedSocket[];
}

export function registerBlockExports(registry: CommandRegistry, services: ExportServices): void {
  const { nbd, events } = services;
  nbd.exported.onDeleted = (id) => events.emit(qapi.BLOCK_EXPORT_DELETED, { id });
  registerServer(registry, services);
  registry.register(qapi.BLOCK_EXPORT_ADD, (args) => addExport(services, args));
  registry.register(qapi.BLOCK_EXPORT_DEL, ({ id, mode = 'safe' }) => nbd.remove(id, mode));
  // The newest first, as in QEMU.
  registry.register(qapi.QUERY_BLOCK_EXPORTS, () =>
    nbd.exports.all().reverse().map(describeExport),
  );
}

function describeExport(entry: NbdExport) {
  return {
    id: entry.id,
    type: 'nbd' as const,
    'node-name': entry.nodeName,
    'shutting-down': entry.shuttingDown,
  };
}

/** @see qapi NbdServerInfo */
function describeServer({ server }: NbdService): Output<typeof qapi.NbdServerInfo> {
  return {
    running: server !== undefined,
    addresses: (server?.addresses ?? []).map((address) =>
      address.type === 'unix'
        ? address
        : { type: 'inet' as const, host: address.host, port: String(address.port) },
    ),
    connections: (server?.connections() ?? []).map((connection) => ({
      id: connection.id,
      peer: connection.peer,
      ...(connection.exportId !== undefined ? { export: connection.exportId } : {}),
      'connected-since': connection.connectedSince,
      requests: connection.counters.requests,
      'requests-in-flight': connection.requestsInFlight,
      'read-bytes': connection.counters.readBytes,
      'written-bytes': connection.counters.writtenBytes,
    })),
  };
}

function registerServer(registry: CommandRegistry, services: ExportServices): void {
  const { nbd, graph } = services;
  registry.register(qapi.NBD_SERVER_START, async (args) => {
    nbd.checkStopped();
    await nbd.start({
      address: nbdListenAddress(fromLegacy(args.addr), {
        webSocket: args.websocket ?? false,
        namedSockets: services.namedSockets(),
      }),
      maxConnections: args['max-connections'],
      handshakeSeconds: args['handshake-max-seconds'],
    });
  });
  registry.register(qapi.QUERY_NBD_SERVER, () => describeServer(nbd));
  registry.register(qapi.NBD_SERVER_STOP, () => nbd.stop());
  registry.register(qapi.NBD_SERVER_ADD, async (args) => {
    nbd.checkRunning();
    const name = args.name ?? args.device;
    await nbd.exported.add({
      id: name,
      node: nodeForExport(graph, { device: args.device, name: args.device }),
      name,
      description: args.description,
      // As QEMU: what can't be written is exported read-only instead of refused.
      writable: args.writable === true && !graph.get(args.device).readOnly,
      writethrough: false,
      allocationDepth: false,
      allowInactive: false,
      bitmaps: args.bitmap !== undefined ? [args.bitmap] : [],
    });
  });
  registry.register(qapi.NBD_SERVER_REMOVE, ({ name, mode = 'safe' }) => {
    const found = nbd.exports.findToRemove(name);
    if (found === undefined) {
      throw new BlockError('DF_NOT_FOUND', `Export '${name}' is not found`);
    }
    return nbd.remove(found.id, mode);
  });
}

/** What `block-export-add` and `--export` do. */
export async function addExport(
  { graph, nbd }: Pick<ExportServices, 'graph' | 'nbd'>,
  args: ArgumentsOf<typeof qapi.BLOCK_EXPORT_ADD>,
): Promise<void> {
  if (!isIdentifier(args.id)) {
    throw new BlockError('DF_INVALID', `Invalid block export id`);
  }
  nbd.checkRunning();
  await nbd.exported.add({
    id: args.id,
    node: nodeForExport(graph, { device: '', name: args['node-name'] }),
    name: args.name,
    description: args.description,
    writable: args.writable ?? false,
    writethrough: args.writethrough ?? false,
    allocationDepth: args['allocation-depth'] ?? false,
    allowInactive: args['allow-inactive'] ?? false,
    bitmaps: args.bitmaps ?? [],
  });
}

function nodeForExport(
  graph: BlockGraph,
  { device, name }: { readonly device: string; readonly name: string },
): BlockNode {
  const node = graph.find(name);
  if (node !== undefined) return node;
  throw new BlockError('DF_NOT_FOUND', `Cannot find device='${device}' nor node-name='${name}'`);
}
