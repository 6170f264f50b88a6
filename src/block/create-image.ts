// SPDX-License-Identifier: MIT
/** Making an image by its driver, into nodes that exist or are opened for that time. */
import { BlockError } from '../base/errors.js';
import { BlockBackend } from './backend.js';
import type { CreateContext, DriverOptions, ImageCreation, RemoveImage } from './block-driver.js';
import type { BlockGraph } from './graph.js';
import type { BlockNode } from './node.js';
import { openNode } from './open-node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE } from './permissions.js';

/** A format writes what it will read again, and nobody else writes there meanwhile. */
const PERMISSIONS = {
  taken: PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
  shared: PERM_ALL & ~(PERM_WRITE | PERM_RESIZE),
};

/** @throws BlockError DF_INVALID for an unknown driver, DF_NOT_SUPPORTED for one that makes no images */
export function imageCreation(graph: BlockGraph, driver: string): ImageCreation {
  const { create } = graph.drivers.get(driver);
  if (create !== undefined) return create;
  throw new BlockError('DF_NOT_SUPPORTED', 'Driver does not support blockdev-create');
}

/**
 * Makes an image. Nodes that the options define in place are closed again, those that they name stay.
 * Fulfilled when the image is on stable storage.
 *
 * @param options validated BlockdevCreateOptions
 * @param signal gives up: requests that wait for a lost peer fail
 * @returns where a file was made that was not there before: what takes it away again
 * @throws BlockError from opening the nodes, from other users of theirs, or from the driver
 */
export async function createImage(
  graph: BlockGraph,
  options: DriverOptions,
  signal: AbortSignal,
): Promise<RemoveImage | undefined> {
  const creation = imageCreation(graph, String(options.driver));
  const backends = new Map<string, BlockBackend>();
  let remove: RemoveImage | undefined;
  const madeFile = (undo: RemoveImage): void => {
    remove = undo;
  };
  const giveUp = (): void => {
    for (const backend of backends.values()) backend.root.node.cancelInFlight();
  };
  signal.addEventListener('abort', giveUp);
  try {
    for (const { key, required } of creation.nodes ?? []) {
      const backend = await attachNode(graph, { key, required, value: options[key], signal });
      if (backend !== undefined) backends.set(key, backend);
    }
    signal.throwIfAborted();
    await creation.create(
      ownOptions(options, backends),
      createContext(backends, { signal, madeFile }),
    );
    for (const backend of backends.values()) await backend.flush();
    return remove;
  } catch (error) {
    await remove?.();
    throw error;
  } finally {
    signal.removeEventListener('abort', giveUp);
    for (const backend of backends.values()) await graph.detach(backend);
  }
}

interface NodeOption {
  readonly key: string;
  readonly required: boolean;
  readonly value: unknown;
  readonly signal: AbortSignal;
}

async function attachNode(
  graph: BlockGraph,
  { key, required, value, signal }: NodeOption,
): Promise<BlockBackend | undefined> {
  if (value === undefined || value === null) {
    if (!required) return undefined;
    throw new BlockError('DF_INVALID', `A block device must be specified for "${key}"`);
  }
  const node =
    typeof value === 'object'
      ? await openNode(graph, value as DriverOptions, { signal })
      : graph.get(String(value));
  const backend = new BlockBackend('blockdev-create');
  try {
    checkWritable(node);
    await graph.attach(backend, node, PERMISSIONS);
  } catch (error) {
    await graph.exclusive(() => graph.closeUnused(node));
    throw error;
  }
  return backend;
}

function checkWritable(node: BlockNode): void {
  if (!node.options.readOnly) return;
  throw new BlockError('DF_READ_ONLY', `Block node '${node.name}' is read-only`, {
    node: node.name,
  });
}

function ownOptions(options: DriverOptions, nodes: ReadonlyMap<string, unknown>): DriverOptions {
  return Object.fromEntries(Object.entries(options).filter(([key]) => !nodes.has(key)));
}

function createContext(
  backends: ReadonlyMap<string, BlockBackend>,
  { signal, madeFile }: Pick<CreateContext, 'signal' | 'madeFile'>,
): CreateContext {
  return {
    node(key) {
      const backend = backends.get(key);
      if (backend === undefined) throw new Error(`there is no node '${key}'`);
      return backend;
    },
    findNode: (key) => backends.get(key),
    signal,
    madeFile,
  };
}
