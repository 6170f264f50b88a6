// SPDX-License-Identifier: MIT
/** The whole graph with all edges and permissions. @see qapi XDbgBlockGraph */
import { BlockBackend } from '../../block/backend.js';
import type { EdgeParent } from '../../block/edge.js';
import type { BlockGraph } from '../../block/graph.js';
import { type PermissionName, permissionNames } from '../../block/permissions.js';
import type { Job } from '../../job/job.js';

interface GraphNode {
  readonly id: number;
  readonly type: 'block-backend' | 'block-job' | 'block-driver';
  readonly name: string;
}

interface GraphEdge {
  readonly parent: number;
  readonly child: number;
  readonly name: string;
  readonly perm: PermissionName[];
  readonly 'shared-perm': PermissionName[];
}

/** @param jobOf the job that a backend belongs to, when it is one's */
export function describeGraph(
  graph: BlockGraph,
  jobOf: (parent: EdgeParent) => Job | undefined,
): { nodes: GraphNode[]; edges: GraphEdge[] } {
  const ids = new Map<unknown, number>();
  const nodes: GraphNode[] = [];
  const idOf = (key: unknown, type: GraphNode['type'], name: string): number => {
    const known = ids.get(key);
    if (known !== undefined) return known;
    const id = ids.size + 1;
    ids.set(key, id);
    nodes.push({ id, type, name });
    return id;
  };
  const edges: GraphEdge[] = [];
  for (const node of graph.nodes) idOf(node, 'block-driver', node.name);
  for (const node of graph.nodes) {
    for (const edge of node.parents) {
      const job = jobOf(edge.parent);
      const parent =
        job !== undefined
          ? idOf(job, 'block-job', job.id)
          : idOf(edge.parent, parentType(edge.parent), '');
      edges.push({
        parent,
        child: idOf(node, 'block-driver', node.name),
        name: edge.name,
        perm: permissionNames(edge.taken),
        'shared-perm': permissionNames(edge.shared),
      });
    }
  }
  return { nodes, edges };
}

/** Nodes are known by now; what else uses one is a backend. */
function parentType(parent: EdgeParent): GraphNode['type'] {
  return parent instanceof BlockBackend ? 'block-backend' : 'block-driver';
}
