// SPDX-License-Identifier: MIT
/** Images that a job is told by file name to write to: made where that is asked for, and opened. */
import * as path from 'node:path';
import { BlockError, toError } from '../base/errors.js';
import { BlockBackend } from './backend.js';
import type { DriverOptions, ImageCreation } from './block-driver.js';
import { createImage } from './create-image.js';
import type { BlockGraph } from './graph.js';
import { filenameOptions } from './image-filename.js';
import { backingFileOf } from './image-name.js';
import type { BlockNode } from './node.js';
import { openNode } from './open-node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE } from './permissions.js';

export interface TargetImageRequest {
  /** A file name, not `json:`. */
  readonly filename: string;
  /** Driver of the image. */
  readonly format: string;
  readonly nodeName?: string | undefined;
  /** Make it, of this many bytes; absent: it is there. */
  readonly createSize?: number | undefined;
  /** The node that will be copied: an image of its own is not made anew. */
  readonly source: BlockNode;
  /** What the new image has below it; what was made then reads as this node does. */
  readonly backing?: BlockNode | undefined;
  /** The node gets no backing node, whatever the image notes: somebody will put one there. */
  readonly withoutBacking?: true;
  /** Base options of the node: discard, cache … */
  readonly options?: DriverOptions;
}

export interface TargetImage {
  /** Nobody's yet: closed with its last user, or by `closeUnused`. */
  readonly node: BlockNode;
  /** It was made now, of a file, and so reads as zeroes (or as its backing node). */
  readonly fresh: boolean;
}

/**
 * Makes the image where that is asked for, and opens it. A file that was made stays when something
 * fails later, as in QEMU; one in which no image could be made goes again, unless it was there before.
 *
 * @throws BlockError of what could not be made or opened; no node is left then
 */
export async function openTargetImage(
  graph: BlockGraph,
  request: TargetImageRequest,
): Promise<TargetImage> {
  const { filename, createSize } = request;
  checkTargetImage(graph, request);
  const protocol = await filenameOptions(graph.drivers, filename);
  checkProtocol(graph, request, protocol);
  const options = nodeOptions(graph, request, protocol);
  if (createSize === undefined) return { node: await openNode(graph, options), fresh: false };
  // An idle node holds no locks on its image, and making the image anew would empty it.
  const guard = new BlockBackend('the making of an image');
  await graph.attach(guard, request.source, {
    taken: PERM_CONSISTENT_READ,
    shared: PERM_ALL & ~PERM_RESIZE,
  });
  try {
    await create(graph, request, protocol);
  } finally {
    await graph.detach(guard);
  }
  const node = await openMade(graph, protocol, options);
  // A new LUKS image reads as anything but zeroes.
  return { node, fresh: isFile(graph, protocol) && node.driver.newIsArbitrary !== true };
}

/** A protocol that makes images starts with an empty one; others have what they have. */
function isFile(graph: BlockGraph, protocol: DriverOptions): boolean {
  return graph.drivers.get(String(protocol.driver)).create !== undefined;
}

/** What can be said before anything is touched. @throws as `openTargetImage` */
export function checkTargetImage(
  graph: BlockGraph,
  { filename, format, backing, createSize }: TargetImageRequest,
): void {
  // Of an image that is there the driver tells when it is opened.
  if (createSize === undefined) return;
  if (backing !== undefined && path.resolve(backing.driver.filename) === path.resolve(filename)) {
    const message = 'Error: Trying to create an image with the same filename as the backing file';
    throw new BlockError('DF_INVALID', message, { node: backing.name });
  }
  if (!graph.drivers.names.includes(format)) {
    throw new BlockError('DF_INVALID', `Unknown file format '${format}'`);
  }
  const creation = creationOf(graph, format);
  if (creation === undefined) {
    throw new BlockError(
      'DF_NOT_SUPPORTED',
      `Format driver '${format}' does not support image creation`,
    );
  }
  if (backing !== undefined && creation.backing !== true) {
    throw new BlockError(
      'DF_NOT_SUPPORTED',
      `Backing file not supported for file format '${format}'`,
    );
  }
}

/** `raw` has nothing of its own to make: the file is the image. */
const RAW_CREATION: ImageCreation = { create() {} };

function creationOf(graph: BlockGraph, format: string): ImageCreation | undefined {
  return format === 'raw' ? RAW_CREATION : graph.drivers.get(format).create;
}

/** A format that is a protocol itself has to be the one of the name. */
function checkProtocol(
  graph: BlockGraph,
  { format, filename }: TargetImageRequest,
  protocol: DriverOptions,
): void {
  if (graph.drivers.get(format).kind !== 'protocol' || format === protocol.driver) return;
  throw new BlockError('DF_INVALID', `'${filename}' is not a name of the driver '${format}'`);
}

function nodeOptions(
  graph: BlockGraph,
  { format, nodeName, backing, options, createSize, withoutBacking }: TargetImageRequest,
  protocol: DriverOptions,
): DriverOptions {
  const base = { ...options, ...(nodeName !== undefined ? { 'node-name': nodeName } : {}) };
  const { kind, children } = graph.drivers.get(format);
  if (kind === 'protocol') return { ...protocol, ...base };
  const known = createSize !== undefined || withoutBacking === true;
  const below = children.some(({ key }) => key === 'backing') && known;
  return {
    driver: format,
    ...base,
    file: protocol,
    ...(below ? { backing: (withoutBacking !== true && backing?.name) || null } : {}),
  };
}

async function create(
  graph: BlockGraph,
  { filename, format, createSize = 0, backing }: TargetImageRequest,
  protocol: DriverOptions,
): Promise<void> {
  const { signal } = new AbortController();
  const own = graph.drivers.get(format).create?.nodes !== undefined;
  const noted = !own || backing === undefined ? undefined : await backingFileOf(filename, backing);
  const below =
    noted === undefined ? {} : { 'backing-file': noted.filename, 'backing-fmt': noted.format };
  const { driver, filename: file } = protocol;
  const remove = isFile(graph, protocol)
    ? await createImage(graph, { driver, filename: file, size: own ? 0 : createSize }, signal)
    : undefined;
  if (!own) return;
  const image = { driver: format, file: protocol, size: createSize, ...below };
  try {
    await createImage(graph, image, signal);
  } catch (error) {
    await remove?.();
    throw error;
  }
}

/** A server has the image already, or has not. */
async function openMade(
  graph: BlockGraph,
  { driver }: DriverOptions,
  options: DriverOptions,
): Promise<BlockNode> {
  try {
    return await openNode(graph, options);
  } catch (cause) {
    if (graph.drivers.get(String(driver)).create !== undefined) throw cause;
    throw new BlockError(
      'DF_NOT_SUPPORTED',
      `Protocol driver '${String(driver)}' does not support image creation, ` +
        'and opening the image failed',
      {},
      { cause: toError(cause) },
    );
  }
}
