// SPDX-License-Identifier: MIT
/** Commands on nodes. Each is one call into the graph. */
import * as qapi from '../../../protocol/qapi/block-core.js';
import type { ArgumentsOf } from '../../../protocol/qapi/types.js';
import { errnoText, errorText } from '../../base/error-text.js';
import { BlockError, errnoName, toError } from '../../base/errors.js';
import type { DriverOptions } from '../../block/block-driver.js';
import { addChild, removeChild } from '../../block/change-children.js';
import type { EdgeParent } from '../../block/edge.js';
import type { BlockGraph } from '../../block/graph.js';
import { LatencyHistogram } from '../../block/latency-histogram.js';
import { openNode } from '../../block/open-node.js';
import { reopenNodes } from '../../block/reopen.js';
import { resizeNode } from '../../block/resize.js';
import { setActive } from '../../block/set-active.js';
import type { Job } from '../../job/job.js';
import { checkUnclaimed } from '../../job/node-claims.js';
import type { EventHub } from '../events.js';
import type { CommandRegistry } from '../registry.js';
import { describeGraph } from './describe-graph.js';
import { describeDevices, describeNode } from './describe-node.js';
import { describeNodeStats } from './describe-stats.js';

/** Unit of the events that tell of copies, bytes. */
const SECTOR = 512;

export interface BlockServices {
  readonly graph: BlockGraph;
  readonly events: EventHub;
  /** The job that a root user of a node belongs to, when it is one's. */
  readonly jobOf: (parent: EdgeParent) => Job | undefined;
  /** Name of the node of an export. */
  readonly nodeOfExport: (id: string) => string | undefined;
  /** Whether an export was added with `allow-inactive`. */
  readonly mayIdle: (parent: unknown) => boolean;
}

export function registerBlockCore(registry: CommandRegistry, services: BlockServices): void {
  registerGraphChanges(registry, services);
  registerQueries(registry, services);
  registerNodeSettings(registry, services);
  services.graph.observer = {
    ...services.graph.observer,
    writeThresholdExceeded: (node, exceeded, threshold) =>
      services.events.emit(qapi.BLOCK_WRITE_THRESHOLD, {
        'node-name': node.name,
        'amount-exceeded': exceeded,
        'write-threshold': threshold,
      }),
    copyBad: (copy, { operation, offset, length, error }) =>
      services.events.emit(qapi.QUORUM_REPORT_BAD, {
        type: operation,
        ...(error !== undefined ? { error: shortText(error) } : {}),
        'node-name': copy.name,
        ...sectors(offset, length),
      }),
    copiesFailed: (node, offset, length) =>
      services.events.emit(qapi.QUORUM_FAILURE, {
        reference: node.name,
        ...sectors(offset, length),
      }),
    imageCorrupted: (node, { message, offset, size, fatal }) =>
      services.events.emit(qapi.BLOCK_IMAGE_CORRUPTED, {
        device: '',
        'node-name': node.name,
        msg: message,
        ...(offset !== undefined ? { offset } : {}),
        ...(size !== undefined ? { size } : {}),
        fatal,
      }),
  };
}

/** The sectors that a range touches, as QEMU counts them. */
function sectors(
  offset: number,
  length: number,
): { 'sector-num': number; 'sectors-count': number } {
  const first = Math.floor(offset / SECTOR);
  return { 'sector-num': first, 'sectors-count': Math.ceil((offset + length) / SECTOR) - first };
}

/** What the C library says of the system's error; the whole sentence of one of our own. */
function shortText(error: unknown): string {
  const errno = errnoName(error);
  return errno !== undefined ? errnoText(errno) : errorText(toError(error));
}

/** @throws BlockError DF_INVALID for a node that nobody could name, and so remove */
export function checkRootName(options: { readonly 'node-name'?: string | undefined }): void {
  if (options['node-name'] !== undefined) return;
  throw new BlockError('DF_INVALID', "'node-name' must be specified for the root node");
}

function registerGraphChanges(registry: CommandRegistry, services: BlockServices): void {
  const { graph } = services;
  registry.register(qapi.BLOCKDEV_ADD, async (options) => {
    checkRootName(options);
    await openNode(graph, options as DriverOptions, { monitorOwned: true });
  });
  registry.register(qapi.BLOCKDEV_DEL, (args) => graph.remove(args['node-name']));
  registry.register(qapi.BLOCKDEV_REOPEN, ({ options }) =>
    reopenNodes(graph, options as DriverOptions[]),
  );
  registry.register(qapi.BLOCKDEV_SET_ACTIVE, async (args) => {
    const name = args['node-name'];
    await setActive(graph, {
      ...(name !== undefined ? { node: graph.get(name) } : {}),
      active: args.active,
      mayIdle: services.mayIdle,
    });
  });
  registry.register(qapi.X_BLOCKDEV_CHANGE, (args) => changeChildren(graph, args));
  registry.register(qapi.BLOCK_RESIZE, async ({ device, 'node-name': name, size }) => {
    if (device !== undefined && name !== undefined) {
      throw new BlockError('DF_INVALID', "Parameters 'device' and 'node-name' exclude each other");
    }
    const node = graph.find(name ?? device ?? '');
    if (node === undefined) throw notFound(device ?? '', name ?? '');
    checkUnclaimed(node);
    await resizeNode(graph, node, size);
  });
}

async function changeChildren(
  graph: BlockGraph,
  { parent: parentName, child, node: name }: ArgumentsOf<typeof qapi.X_BLOCKDEV_CHANGE>,
): Promise<void> {
  const parent = graph.get(parentName);
  if (child !== undefined) {
    if (name !== undefined) {
      throw new BlockError('DF_INVALID', 'The parameters child and node are in conflict');
    }
    return removeChild(graph, parent, child);
  }
  if (name === undefined) {
    throw new BlockError('DF_INVALID', 'Either child or node must be specified');
  }
  const node = graph.find(name);
  if (node === undefined) throw new BlockError('DF_NOT_FOUND', `Node '${name}' not found`);
  return addChild(graph, parent, node);
}

function registerQueries(registry: CommandRegistry, services: BlockServices): void {
  const { graph } = services;
  registry.register(qapi.QUERY_NAMED_BLOCK_NODES, async ({ flat = false }) => {
    const list = [];
    // The newest first, as QEMU lists them.
    for (const node of [...graph.nodes].reverse()) list.push(await describeNode(node, { flat }));
    return list;
  });
  registry.register(qapi.QUERY_BLOCK, () => describeDevices());
  registry.register(qapi.QUERY_BLOCKSTATS, ({ 'query-nodes': nodes = false }) =>
    nodes ? graph.nodes.map((node) => describeNodeStats(node)) : [],
  );
  registry.register(qapi.X_DEBUG_QUERY_BLOCK_GRAPH, () => describeGraph(graph, services.jobOf));
}

function registerNodeSettings(registry: CommandRegistry, services: BlockServices): void {
  const { graph } = services;
  registry.register(qapi.BLOCK_SET_WRITE_THRESHOLD, (args) => {
    const node = graph.find(args['node-name']);
    if (node === undefined) {
      throw new BlockError('DF_NOT_FOUND', `Device '${args['node-name']}' not found`);
    }
    node.writeThreshold = Number(args['write-threshold']);
  });
  registry.register(qapi.BLOCK_LATENCY_HISTOGRAM_SET, (args) => {
    const node = graph.find(services.nodeOfExport(args.id) ?? args.id);
    if (node === undefined) throw new BlockError('DF_NOT_FOUND', `Device '${args.id}' not found`);
    const { boundaries } = args;
    const all = args['boundaries-read'] ?? args['boundaries-write'] ?? args['boundaries-flush'];
    const clearsAll = boundaries === undefined && all === undefined;
    const wanted = [
      ['read', args['boundaries-read'] ?? boundaries],
      ['write', args['boundaries-write'] ?? boundaries],
      ['flush', args['boundaries-flush'] ?? boundaries],
    ] as const;
    const made = wanted.map(([operation, own]) => {
      return { operation, histogram: own && new LatencyHistogram(own.map(Number)) };
    });
    // All are right: none is set when one is wrong.
    for (const { operation, histogram } of made) {
      if (histogram !== undefined || clearsAll) node.stats.setHistogram(operation, histogram);
    }
  });
  registry.register(qapi.BLOCK_PASSWD, () => {
    throw new BlockError('DF_INVALID', 'Setting block passwords directly is no longer supported');
  });
}

function notFound(device: string, name: string): BlockError {
  return new BlockError('DF_NOT_FOUND', `Cannot find device='${device}' nor node-name='${name}'`);
}
