// SPDX-License-Identifier: MIT
/** `block-commit`: which nodes are meant, and which of the two kinds of commit it is. */
import type * as qapi from '../../../protocol/qapi/block-job.js';
import type { ArgumentsOf } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import { chainDown, chainDownTo, findBackingByFilename, skipFilters } from '../../block/chain.js';
import type { BlockGraph } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import { PERM_WRITE } from '../../block/permissions.js';
import type { BlockJobOptions } from '../../job/block-job.js';
import { CommitJob } from '../../job/commit.js';
import { createActiveCommit } from '../../job/commit-active.js';
import { checkOverlays, overlaysOf } from '../../job/commit-overlays.js';
import type { JobRegistry } from '../../job/job-registry.js';
import { checkUnclaimed } from '../../job/node-claims.js';

type Arguments = ArgumentsOf<typeof qapi.BLOCK_COMMIT>;

export async function blockCommit(
  graph: BlockGraph,
  jobs: JobRegistry,
  args: Arguments,
): Promise<void> {
  const device = findDevice(graph, args.device);
  const top = await findTop(graph, device, args);
  const base = await findBase(graph, top, args);
  for (const node of chainDownTo(top, base) ?? []) checkUnclaimed(node);
  if (top === base) throw new BlockError('DF_INVALID', 'cannot commit an image into itself');
  const filterNodeName = args['filter-node-name'];
  const options = {
    ...jobOptions(args),
    top,
    base,
    device,
    ...(filterNodeName === undefined ? {} : { filterNodeName }),
  };
  const isActive = skipFilters(top) === skipFilters(device);
  if (isActive || (top.taken & PERM_WRITE) !== 0) {
    checkNoBackingFile(args, isActive ? 'is the active layer' : 'has a writer on it');
    await jobs.run(options.id, () => createActiveCommit(graph, options, jobs));
    return;
  }
  if (skipFilters(top) === skipFilters(base)) {
    throw new BlockError('DF_INVALID', 'Invalid files for merge: top and base are the same');
  }
  const backing = {
    base,
    filename: args['backing-file'],
    maskProtocol: args['backing-mask-protocol'] ?? false,
  };
  await checkOverlays(overlaysOf(top), backing);
  await jobs.run(options.id, () => CommitJob.create(graph, { ...options, backing }, jobs));
}

function jobOptions(args: Arguments): BlockJobOptions {
  const speed = args.speed ?? 0;
  if (speed < 0) {
    throw new BlockError('DF_INVALID', "Parameter 'speed' expects a non-negative value");
  }
  const policy = args['on-error'] ?? 'report';
  return {
    id: args['job-id'] ?? args.device,
    speed,
    onSourceError: policy,
    onTargetError: policy,
    autoFinalize: args['auto-finalize'] ?? true,
    autoDismiss: args['auto-dismiss'] ?? true,
  };
}

function checkNoBackingFile(args: Arguments, why: string): void {
  for (const key of ['backing-file', 'backing-mask-protocol'] as const) {
    if (args[key] === undefined) continue;
    throw new BlockError('DF_INVALID', `'${key}' specified, but 'top' ${why}`);
  }
}

/** Managers tell by this error, before any other, whether the command is there. */
function findDevice(graph: BlockGraph, name: string): BlockNode {
  const node = graph.find(name);
  if (node === undefined) {
    throw new BlockError('DF_NODE_NOT_FOUND', `Device '${name}' not found`, { node: name });
  }
  // A job's filter above it is no reason that would help anybody.
  checkUnclaimed(node);
  if ([...node.parents].some(({ role }) => role !== 'root')) {
    throw new BlockError('DF_INVALID', 'Need a root block node', { node: name });
  }
  return node;
}

async function findTop(graph: BlockGraph, device: BlockNode, args: Arguments): Promise<BlockNode> {
  const { top, 'top-node': topNode } = args;
  if (top !== undefined && topNode !== undefined) {
    throw new BlockError('DF_INVALID', "'top-node' and 'top' are mutually exclusive");
  }
  if (topNode !== undefined) return inChain(graph, device, topNode);
  if (top === undefined || top === device.driver.filename) return device;
  const found = await findBackingByFilename(device, top);
  if (found === undefined) {
    throw new BlockError('DF_INVALID', `Top image file ${top} not found`);
  }
  return found;
}

async function findBase(graph: BlockGraph, top: BlockNode, args: Arguments): Promise<BlockNode> {
  const { base, 'base-node': baseNode } = args;
  if (base !== undefined && baseNode !== undefined) {
    throw new BlockError('DF_INVALID', "'base-node' and 'base' are mutually exclusive");
  }
  if (baseNode !== undefined) return inChain(graph, top, baseNode);
  if (base !== undefined) {
    const found = await findBackingByFilename(top, base);
    if (found !== undefined) return found;
    throw new BlockError('DF_INVALID', `Can't find '${base}' in the backing chain`);
  }
  const layers = chainDown(skipFilters(top)).map(skipFilters);
  return layers.at(-1) ?? top;
}

function inChain(graph: BlockGraph, from: BlockNode, name: string): BlockNode {
  const node = graph.find(name);
  if (node === undefined) {
    throw new BlockError('DF_NOT_FOUND', `Cannot find device='' nor node-name='${name}'`);
  }
  if (chainDownTo(from, node) === undefined) {
    throw new BlockError('DF_INVALID', `'${name}' is not in this backing file chain`);
  }
  return node;
}
