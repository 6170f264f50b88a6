// SPDX-License-Identifier: MIT
/** `blockdev-replace`, by itself and in a transaction. */
import * as qapi from '../../../protocol/qapi/replace.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import type { ChildEdge } from '../../block/edge.js';
import type { BlockGraph } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import { replacingChild } from '../../block/replace-child.js';
import { applyChanges, type Change } from '../../block/transaction.js';
import { checkUnclaimed } from '../../job/node-claims.js';
import type { ExportedNodes } from '../../nbd/server/exported-nodes.js';
import type { CommandRegistry } from '../registry.js';

export interface ReplaceServices {
  readonly graph: BlockGraph;
  readonly exported: Pick<ExportedNodes, 'edgeOf' | 'checkMove'>;
}

type Arguments = Infer<typeof qapi.BlockdevReplace>;

export function registerReplace(registry: CommandRegistry, services: ReplaceServices): void {
  registry.register(qapi.BLOCKDEV_REPLACE, (args) =>
    applyChanges([blockdevReplace(services, args)]),
  );
}

/** The change that the arguments of `blockdev-replace` describe. */
export function blockdevReplace(services: ReplaceServices, args: Arguments): Change {
  const { graph } = services;
  return replacingChild(graph, () => {
    const name = args['new-child'];
    const next = graph.find(name);
    if (next === undefined) throw new BlockError('DF_NOT_FOUND', `Node '${name}' not found`);
    return { edge: edgeOf(services, args, next), next };
  });
}

/** The nodes whose users have to hold still for it, as far as they can be found. */
export function nodesOfReplace({ graph, exported }: ReplaceServices, args: Arguments): BlockNode[] {
  const edge =
    args['parent-type'] === 'export'
      ? exported.edgeOf(args['export-id'])
      : graph.find(args['node-name'])?.children.get(args.child);
  return [edge?.node, graph.find(args['new-child'])].flatMap((node) => node ?? []);
}

/** @throws BlockError when there is no such user, or it may not have `next` */
function edgeOf({ graph, exported }: ReplaceServices, args: Arguments, next: BlockNode): ChildEdge {
  if (args['parent-type'] === 'driver') return childEdge(graph, args);
  const id = args['export-id'];
  const edge = exported.edgeOf(id);
  if (edge === undefined) throw new BlockError('DF_NOT_FOUND', `Export '${id}' is not found`);
  exported.checkMove(id, next);
  return edge;
}

function childEdge(
  graph: BlockGraph,
  { 'node-name': name, child }: Infer<typeof qapi.BdrvChildRefDriver>,
): ChildEdge {
  const parent = graph.find(name);
  if (parent === undefined) {
    throw new BlockError('DF_NOT_FOUND', `Failed to find node with node-name='${name}'`);
  }
  checkUnclaimed(parent);
  const edge = parent.children.get(child);
  if (edge !== undefined) return edge;
  throw new BlockError('DF_NOT_FOUND', `Node '${name}' does not have child '${child}'`);
}
