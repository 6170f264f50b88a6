// SPDX-License-Identifier: MIT
/** From a BlockdevOptions object to an open node with its children: `blockdev-add`. */
import { BlockError } from '../base/errors.js';
import { GRAPH_DEPTH_MAX } from '../base/limits.js';
import { BlockBackend } from './backend.js';
import type {
  ChildDefinition,
  DriverDefinition,
  DriverOptions,
  OpenContext,
} from './block-driver.js';
import type { ChildEdge } from './edge.js';
import { type BlockGraph, OPENING_PERMISSIONS } from './graph.js';
import { filenameOptions } from './image-filename.js';
import { BlockNode } from './node.js';
import {
  type InheritedOptions,
  inheritedByChild,
  type NodeOptions,
  parseNodeOptions,
  ROOT_DEFAULTS,
} from './node-options.js';
import { PERM_ALL, PERM_CONSISTENT_READ } from './permissions.js';
import { PROBE_LENGTH, probeFormat } from './probe-format.js';

export interface OpenOptions {
  /** Gives up opening (a server that says nothing). Default: never. */
  readonly signal?: AbortSignal;
  readonly inherited?: InheritedOptions;
  /** The monitor owns the node: it stays without parents. */
  readonly monitorOwned?: boolean;
  /** Only what the images say of themselves is wanted: they open without their keys, and can't be read. */
  readonly metadataOnly?: boolean;
  /** Nodes above that are being opened for this one's sake. */
  readonly depth?: number;
  /** What images above have named as their backing files, so that a loop is found. */
  readonly backings?: readonly string[];
}

/**
 * Opens a node and the children that its options define. All or nothing: on failure everything
 * opened on the way is closed again.
 *
 * @param given validated against the schema; wire spelling
 * @throws BlockError naming what was wrong
 */
export async function openNode(
  graph: BlockGraph,
  given: DriverOptions,
  options: OpenOptions = {},
): Promise<BlockNode> {
  const definition = graph.drivers.get(String(given.driver));
  const nodeOptions = parseNodeOptions(given, options.inherited ?? ROOT_DEFAULTS);
  definition.checkOptions?.(given);
  const name = graph.reserveName(given['node-name'] as string | undefined);
  const node = new BlockNode(name, definition.kind, nodeOptions);
  try {
    await openChildren(graph, node, definition, options);
    await openDriver(graph, node, definition, options);
  } catch (error) {
    graph.releaseName(name);
    await graph.exclusive(() => graph.dropChildren(node));
    throw error;
  }
  return node;
}

async function openChildren(
  graph: BlockGraph,
  node: BlockNode,
  definition: DriverDefinition,
  options: OpenOptions,
): Promise<void> {
  const { given } = node.options;
  if ((options.depth ?? 0) >= GRAPH_DEPTH_MAX) {
    throw new BlockError('DF_INVALID', `The block graph is deeper than ${GRAPH_DEPTH_MAX} nodes`);
  }
  for (const child of definition.children) {
    const value = given[child.key];
    if (value === undefined || value === null) {
      if (!child.required) continue;
      throw new BlockError('DF_INVALID', `A block device must be specified for "${child.key}"`);
    }
    const several = child.list === true ? (value as readonly unknown[]) : undefined;
    const named = several?.map((entry, index) => [`${child.key}.${index}`, entry] as const);
    for (const [name, entry] of named ?? [[child.key, value] as const]) {
      await openChild(graph, node, { definition, child, name, value: entry }, options);
    }
  }
  if (definition.impliedChildren === undefined) return;
  const context = contextFor(node, options);
  const implied = await definition.impliedChildren(given, context, (filename) =>
    filenameOptions(graph.drivers, filename),
  );
  for (const child of definition.children) {
    const value = implied[child.key];
    if (value === undefined || given[child.key] !== undefined) continue;
    await openImplied(graph, node, { definition, child, name: child.key, value }, options);
  }
}

/** A child that the medium names: who reads the error has never heard of it. */
async function openImplied(
  graph: BlockGraph,
  node: BlockNode,
  wanted: Parameters<typeof openChild>[2],
  options: OpenOptions,
): Promise<void> {
  try {
    const named = wanted.value as DriverOptions;
    const backings = wanted.child.role === 'backing' ? withBacking(options, named) : undefined;
    const value = await withDriver(graph, node, named, options);
    const below = backings === undefined ? options : { ...options, backings };
    await openChild(graph, node, { ...wanted, value }, below);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const what = wanted.child.role === 'backing' ? 'backing file' : wanted.child.key;
    throw new BlockError(error.code, `Could not open ${what}: ${error.message}`, error.context, {
      cause: error,
    });
  }
}

/** @throws BlockError when an image above has the same backing file */
function withBacking({ backings = [] }: OpenOptions, value: DriverOptions): readonly string[] {
  const backing = JSON.stringify(value);
  if (!backings.includes(backing)) return [...backings, backing];
  const { filename } = (value.file ?? value) as DriverOptions;
  const name = typeof filename === 'string' ? filename : backing;
  throw new BlockError('DF_INVALID', `Backing file '${name}' creates an infinite loop.`);
}

/** A medium may name a file and not say which format that has. */
async function withDriver(
  graph: BlockGraph,
  node: BlockNode,
  value: DriverOptions,
  options: OpenOptions,
): Promise<DriverOptions> {
  if (value.driver !== undefined) return value;
  const inherited = inheritedByChild(node.options, 'format', 'backing');
  const file = value.file as DriverOptions;
  return { driver: await formatOf(graph, file, { ...options, inherited }), ...value };
}

/**
 * Which format an image has, by its first bytes.
 * @param protocol options of the node that has them
 * @throws BlockError where it can't be opened or read
 */
export async function formatOf(
  graph: BlockGraph,
  protocol: DriverOptions,
  { signal, inherited }: OpenOptions = {},
): Promise<string> {
  const node = await openNode(
    graph,
    // Who may not use the image hears of that when it is opened.
    { ...protocol, 'read-only': true, 'force-share': true },
    { ...(signal === undefined ? {} : { signal }), ...(inherited ? { inherited } : {}) },
  );
  const backend = new BlockBackend('looking for its format');
  try {
    await graph.attach(backend, node, { taken: PERM_CONSISTENT_READ, shared: PERM_ALL });
    const head = Buffer.alloc(PROBE_LENGTH);
    await backend.read(0, head.subarray(0, Math.min(PROBE_LENGTH, backend.size)));
    return probeFormat(head, String(protocol.filename ?? ''));
  } finally {
    await graph.detach(backend);
    await graph.exclusive(() => graph.closeUnused(node));
  }
}

async function openChild(
  graph: BlockGraph,
  node: BlockNode,
  wanted: { definition: DriverDefinition; child: ChildDefinition; name: string; value: unknown },
  options: OpenOptions,
): Promise<void> {
  const { definition, child, name, value } = wanted;
  const inline = typeof value === 'object';
  const below = inline
    ? await openNode(graph, value as DriverOptions, {
        ...options,
        monitorOwned: false,
        depth: (options.depth ?? 0) + 1,
        inherited: inheritedByChild(node.options, definition.kind, child.role),
      })
    : undefined;
  await graph.exclusive(async () => {
    const target = below ?? graph.get(String(value));
    try {
      const edge = await graph.addEdge(node, target, {
        name,
        role: child.role,
        ...OPENING_PERMISSIONS,
      });
      node.children.set(name, edge);
    } catch (error) {
      if (below !== undefined) await graph.closeUnused(below);
      throw error;
    }
  });
}

async function openDriver(
  graph: BlockGraph,
  node: BlockNode,
  definition: DriverDefinition,
  options: OpenOptions,
): Promise<void> {
  const context = contextFor(node, options);
  const driver = await definition.open(driverOptions(definition, node.options), context);
  await graph.exclusive(async () => {
    node.start(driver);
    try {
      if (driver.readOnly === true && !node.options.readOnly && !node.options.autoReadOnly) {
        throw new BlockError('DF_READ_ONLY', `Block node '${node.name}' is read-only`);
      }
      await graph.updatePermissions([node]);
    } catch (error) {
      await node.stop().close();
      throw error;
    }
    node.monitorOwned = options.monitorOwned === true;
    graph.insert(node);
  });
}

function contextFor(node: BlockNode, options: OpenOptions): OpenContext {
  const context = openContext(node, options.signal ?? new AbortController().signal);
  return options.metadataOnly === true ? { ...context, metadataOnly: true } : context;
}

/** The driver's own options: what was given, children and base options left in place by name. */
function driverOptions(
  definition: DriverDefinition,
  { given }: Pick<NodeOptions, 'given'>,
): DriverOptions {
  const children = new Set(definition.children.map(({ key }) => key));
  return Object.fromEntries(Object.entries(given).filter(([key]) => !children.has(key)));
}

function openContext(node: BlockNode, signal: AbortSignal): OpenContext {
  const { options } = node;
  return {
    nodeName: node.name,
    readOnly: options.readOnly,
    autoReadOnly: options.autoReadOnly,
    forceShare: options.forceShare,
    cache: options.cache,
    discard: options.discard,
    get children(): Readonly<Record<string, ChildEdge>> {
      return Object.fromEntries(node.children);
    },
    child(key) {
      // Asked again after a reopen, which may have given another child.
      const edge = node.children.get(key);
      if (edge === undefined) throw new Error(`node '${node.name}' has no child '${key}'`);
      return edge;
    },
    copyReports: {
      bad: (copy, report) => node.observer?.copyBad?.(copy.node, report),
      failed: ({ offset, length }) => node.observer?.copiesFailed?.(node, offset, length),
    },
    bitmaps: node,
    bitmapsLost: (error) => node.observer?.bitmapsLost?.(node, error),
    signal,
    imageCorrupted: (corruption) => node.observer?.imageCorrupted?.(node, corruption),
  };
}
