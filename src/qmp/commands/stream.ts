// SPDX-License-Identifier: MIT
/** `block-stream` and `change-backing-file`: which nodes of a chain are meant. */
import * as qapi from '../../../protocol/qapi/chain.js';
import type { ArgumentsOf } from '../../../protocol/qapi/types.js';
import { errorText } from '../../base/error-text.js';
import { BlockError, toError } from '../../base/errors.js';
import {
  chainDown,
  chainNext,
  findBackingByFilename,
  isInChain,
  skipFilters,
} from '../../block/chain.js';
import { drained } from '../../block/drain.js';
import type { BlockGraph } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import { whileWritableLocked } from '../../block/reopen.js';
import type { JobRegistry } from '../../job/job-registry.js';
import { StreamJob } from '../../job/stream.js';
import type { CommandRegistry } from '../registry.js';
import { checkIdle } from './snapshot.js';

export interface StreamServices {
  readonly graph: BlockGraph;
  readonly jobs: JobRegistry;
}

type StreamArguments = ArgumentsOf<typeof qapi.BLOCK_STREAM>;

export function registerStream(registry: CommandRegistry, services: StreamServices): void {
  registry.register(qapi.BLOCK_STREAM, (args) => blockStream(services, args));
  registry.register(qapi.CHANGE_BACKING_FILE, (args) => changeBackingFile(services, args));
}

async function blockStream({ graph, jobs }: StreamServices, args: StreamArguments): Promise<void> {
  checkExclusive(args);
  const top = graph.get(args.device);
  const { base, last } = await findEnd(graph, top, args);
  const speed = args.speed ?? 0;
  const end = last === undefined ? undefined : chainNext(last);
  for (const node of chainDown(top, end)) checkIdle(jobs, node);
  if (base === undefined && args['backing-file'] !== undefined) {
    throw new BlockError('DF_INVALID', 'backing file specified, but streaming the entire chain');
  }
  if (speed < 0) {
    throw new BlockError('DF_INVALID', "Parameter 'speed' expects a non-negative value");
  }
  const lowest = last ?? lowestOf(top);
  const options = {
    id: args['job-id'] ?? args.device,
    top,
    bottom: layerAbove(top, lowest),
    last: lowest,
    backing: {
      filename: args['backing-file'],
      maskProtocol: args['backing-mask-protocol'] ?? false,
    },
    filterNodeName: args['filter-node-name'],
    speed,
    onSourceError: args['on-error'] ?? 'report',
    autoFinalize: args['auto-finalize'] ?? true,
    autoDismiss: args['auto-dismiss'] ?? true,
  };
  await jobs.run(options.id, () => StreamJob.create(graph, options, jobs));
}

function checkExclusive(args: StreamArguments): void {
  for (const [one, other] of [
    ['base', 'base-node'],
    ['base', 'bottom'],
    ['bottom', 'base-node'],
  ] as const) {
    if (args[one] === undefined || args[other] === undefined) continue;
    throw new BlockError(
      'DF_INVALID',
      `'${one}' and '${other}' cannot be specified at the same time`,
    );
  }
}

/** The base, where one is named, and the lowest node that goes. */
async function findEnd(
  graph: BlockGraph,
  top: BlockNode,
  args: StreamArguments,
): Promise<{ base?: BlockNode; last?: BlockNode }> {
  if (args.bottom !== undefined) return { last: findBottom(graph, top, args.bottom) };
  const base = await findBase(graph, top, args);
  if (base === undefined) return {};
  const last = chainDown(top, base).at(-1);
  return { base, ...(last === undefined ? {} : { last }) };
}

async function findBase(
  graph: BlockGraph,
  top: BlockNode,
  { base, 'base-node': name, device }: StreamArguments,
): Promise<BlockNode | undefined> {
  if (base !== undefined) {
    const found = await findBackingByFilename(top, base);
    if (found !== undefined) return found;
    throw new BlockError('DF_INVALID', `Can't find '${base}' in the backing chain`);
  }
  if (name === undefined) return undefined;
  const node = findNode(graph, name);
  if (node !== top && isInChain(top, node)) return node;
  throw new BlockError('DF_INVALID', `Node '${name}' is not a backing image of '${device}'`);
}

function findBottom(graph: BlockGraph, top: BlockNode, name: string): BlockNode {
  const node = findNode(graph, name);
  if (node.kind === 'filter') {
    throw new BlockError(
      'DF_INVALID',
      `Node '${name}' is a filter, use a non-filter node as 'bottom'`,
    );
  }
  if (isInChain(top, node)) return node;
  throw new BlockError(
    'DF_INVALID',
    `Node '${name}' is not in a chain starting from '${top.name}'`,
  );
}

function findNode(graph: BlockGraph, name: string): BlockNode {
  const node = graph.find(name);
  if (node !== undefined) return node;
  throw new BlockError('DF_NOT_FOUND', `Cannot find device='' nor node-name='${name}'`);
}

function lowestOf(top: BlockNode): BlockNode {
  return chainDown(top).at(-1) ?? top;
}

/** The lowest layer that goes: `last` itself, or what is above it and its filters. */
function layerAbove(top: BlockNode, last: BlockNode): BlockNode {
  const nodes = chainDown(top, chainNext(last));
  return nodes.findLast((node) => node.kind !== 'filter') ?? skipFilters(top);
}

async function changeBackingFile(
  { graph, jobs }: StreamServices,
  {
    device,
    'image-node-name': name,
    'backing-file': filename,
  }: ArgumentsOf<typeof qapi.CHANGE_BACKING_FILE>,
): Promise<void> {
  const top = rootNode(graph, device);
  const image = findNode(graph, name);
  if (chainNext(skipFilters(image)) === undefined) {
    throw new BlockError(
      'DF_INVALID',
      'not allowing backing file change on an image without a backing file',
    );
  }
  checkIdle(jobs, top);
  if (!isInChain(top, image)) {
    throw new BlockError('DF_INVALID', `'${device}' and image file are not in the same chain`);
  }
  checkIdle(jobs, image);
  await graph.exclusive(() =>
    whileWritableLocked(graph, image, () =>
      drained([image], () => noteBackingFile(image, filename)),
    ),
  );
}

async function noteBackingFile(image: BlockNode, filename: string): Promise<void> {
  const refuse = (why: string, cause?: unknown): BlockError =>
    new BlockError(
      'DF_INVALID',
      `Could not change backing file to '${filename}': ${why}`,
      { node: image.name },
      cause === undefined ? {} : { cause },
    );
  if (image.driver.changeBackingFile === undefined) throw refuse('Operation not supported');
  const format = chainNext(image);
  try {
    await image.driver.changeBackingFile({
      filename,
      format: format === undefined ? undefined : skipFilters(format).driver.name,
    });
  } catch (error) {
    throw refuse(errorText(toError(error)), error);
  }
}

/** @throws BlockError in QEMU's words */
function rootNode(graph: BlockGraph, name: string): BlockNode {
  const node = graph.find(name);
  if (node === undefined) {
    const text = `Cannot find device='${name}' nor node-name='${name}'`;
    throw new BlockError('DF_NOT_FOUND', text, { node: name });
  }
  if ([...node.parents].some(({ role }) => role !== 'root')) {
    throw new BlockError('DF_INVALID', 'Need a root block node', { node: name });
  }
  return node;
}
