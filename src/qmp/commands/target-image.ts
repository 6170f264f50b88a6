// SPDX-License-Identifier: MIT
/** The image that `drive-mirror` and `drive-backup` are told by file name. */
import { BlockdevOptions } from '../../../protocol/qapi/block-core-options.js';
import type { MirrorSyncMode } from '../../../protocol/qapi/block-job.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import { validate } from '../../../protocol/qapi/validate.js';
import { BlockError } from '../../base/errors.js';
import type { DriverOptions } from '../../block/block-driver.js';
import { type BlockGraph, duplicateNode } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import { checkNodeName } from '../../block/node-options.js';
import { openNode } from '../../block/open-node.js';
import {
  checkTargetImage,
  openTargetImage,
  type TargetImage,
  type TargetImageRequest,
} from '../../block/target-image.js';
import { parseJson } from '../json-stream.js';

export interface TargetArguments {
  readonly target: string;
  readonly format?: string | undefined;
  readonly mode?: 'existing' | 'absolute-paths' | undefined;
  readonly nodeName?: string | undefined;
  readonly source: BlockNode;
  /** What an image that is made has below it. */
  readonly backing?: BlockNode | undefined;
  /** Base options of its node. */
  readonly options: DriverOptions;
}

const JSON_PREFIX = 'json:';

/** What a new target has below it. One that gets only later writes is of use above the source alone. */
export function backingOfTarget(
  sync: Infer<typeof MirrorSyncMode>,
  { source, below }: { readonly source: BlockNode; readonly below: BlockNode | undefined },
): BlockNode | undefined {
  if (sync === 'none') return source;
  return sync === 'top' ? below : undefined;
}

/** @throws BlockError; no node is left then, a file that was made is */
export async function openTarget(graph: BlockGraph, args: TargetArguments): Promise<TargetImage> {
  const { target, source, nodeName, options } = args;
  if (args.mode === 'existing') {
    if (target.startsWith(JSON_PREFIX)) return openDescribed(graph, args);
    const format = args.format ?? formatOf(target);
    return openTargetImage(graph, {
      source,
      filename: target,
      format,
      nodeName,
      options,
    });
  }
  return openTargetImage(graph, creationOf(args));
}

/** What can be said before anything is touched. @throws as `openTarget` */
export function checkTarget(graph: BlockGraph, args: TargetArguments): void {
  if (args.nodeName !== undefined) {
    checkNodeName(args.nodeName);
    if (graph.find(args.nodeName) !== undefined) throw duplicateNode(args.nodeName);
  }
  if (args.mode !== 'existing') checkTargetImage(graph, creationOf(args));
}

function creationOf({
  target,
  source,
  nodeName,
  backing,
  options,
  ...args
}: TargetArguments): TargetImageRequest {
  const format = args.format ?? source.driver.name;
  return { source, filename: target, format, nodeName, createSize: source.size, backing, options };
}

/** `json:{…}`: all options of the node, in which the command's own come first. */
async function openDescribed(graph: BlockGraph, args: TargetArguments): Promise<TargetImage> {
  const { target, format, nodeName, options } = args;
  const given = parseJson(target.slice(JSON_PREFIX.length));
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw new BlockError('DF_INVALID', 'Invalid JSON object given');
  }
  const all = {
    ...options,
    ...given,
    ...(format !== undefined ? { driver: format } : {}),
    ...(nodeName !== undefined ? { 'node-name': nodeName } : {}),
  };
  const checked = validate(BlockdevOptions, all as Parameters<typeof validate>[1]);
  return { node: await openNode(graph, checked as DriverOptions), fresh: false };
}

/**
 * An export is a disk. Of anything else the format has to be told: to look into the image would let
 * whoever writes to it choose how we read it.
 */
function formatOf(target: string): string {
  if (/^(nbd(\+[a-z]+)?|ws):/.test(target)) return 'raw';
  throw new BlockError('DF_INVALID', "Parameter 'format' is missing: mode 'existing' needs it");
}
