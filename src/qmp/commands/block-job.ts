// SPDX-License-Identifier: MIT
/** Commands that start jobs on nodes. */
import * as qapi from '../../../protocol/qapi/block-job.js';
import type { ArgumentsOf, Infer } from '../../../protocol/qapi/types.js';
import { isPowerOfTwo } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import { MIB } from '../../base/limits.js';
import type { DriverOptions } from '../../block/block-driver.js';
import type { BlockGraph } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import { COPY_WINDOW_MAX } from '../../job/copy-window.js';
import type { JobRegistry } from '../../job/job-registry.js';
import { MIRROR_WINDOW_DEFAULT, MirrorJob } from '../../job/mirror.js';
import { checkMirrorSource, type MirrorOptions } from '../../job/mirror-options.js';
import { checkSyncBitmap } from '../../job/sync-bitmap.js';
import type { CommandRegistry } from '../registry.js';
import { blockCommit } from './block-commit.js';
import { backingOfTarget, checkTarget, openTarget } from './target-image.js';

/** QEMU's bounds of a mirror's granularity, bytes. */
const GRANULARITY_MIN = 512;
const GRANULARITY_MAX = 64 * MIB;

export interface JobServices {
  readonly graph: BlockGraph;
  readonly jobs: JobRegistry;
}

export function registerBlockJobStarts(registry: CommandRegistry, services: JobServices): void {
  registry.register(qapi.BLOCKDEV_MIRROR, (args) => blockdevMirror(services, args));
  registry.register(qapi.DRIVE_MIRROR, (args) => driveMirror(services, args));
  registry.register(qapi.BLOCK_COMMIT, (args) => blockCommit(services.graph, services.jobs, args));
}

async function blockdevMirror(
  { graph, jobs }: JobServices,
  args: ArgumentsOf<typeof qapi.BLOCKDEV_MIRROR>,
): Promise<void> {
  const source = graph.get(args.device);
  const target = graph.get(args.target);
  const settings = mirrorSettings(graph, source, args);
  const targetIsZero = args['target-is-zero'] ?? false;
  if (targetIsZero && args.sync !== 'full' && args.sync !== 'top') {
    throw new BlockError(
      'DF_INVALID',
      `target-is-zero has no meaning with sync mode '${args.sync}'`,
    );
  }
  const filterNodeName = args['filter-node-name'];
  const options: MirrorOptions = {
    ...settings,
    target,
    targetIsZero,
    ...(filterNodeName !== undefined ? { filterNodeName } : {}),
    unmap: true,
  };
  await jobs.run(options.id, () => MirrorJob.create(graph, options, jobs));
}

async function driveMirror(
  { graph, jobs }: JobServices,
  args: ArgumentsOf<typeof qapi.DRIVE_MIRROR>,
): Promise<void> {
  const source = graph.get(args.device);
  if (args.replaces !== undefined && args['node-name'] === undefined) {
    throw new BlockError(
      'DF_INVALID',
      'a node-name must be provided when replacing a named node of the graph',
    );
  }
  const settings = mirrorSettings(graph, source, args);
  const below = source.children.get('backing')?.node;
  const image = {
    ...args,
    source,
    nodeName: args['node-name'],
    backing: backingOfTarget(args.sync, { source, below }),
    options: targetOptions(source),
  };
  await jobs.run(settings.id, async () => {
    checkMirrorSource(settings);
    checkTarget(graph, image);
    const { node: target, fresh } = await openTarget(graph, image);
    try {
      const sync = settings.sync === 'top' && below === undefined ? 'full' : settings.sync;
      const targetIsZero = fresh && sync === 'full';
      const unmap = args.unmap ?? true;
      const options = { ...settings, sync, target, targetIsZero, unmap };
      return await MirrorJob.create(graph, options, jobs);
    } catch (error) {
      await graph.exclusive(() => graph.closeUnused(target));
      throw error;
    }
  });
}

/** A target is opened as its source is. */
function targetOptions({ options }: BlockNode): DriverOptions {
  const { discard, cache } = options;
  return { discard, cache: { direct: cache.direct, 'no-flush': cache.noFlush } };
}

function findReplaced(graph: BlockGraph, name: string): BlockNode {
  const node = graph.find(name);
  if (node !== undefined) return node;
  throw new BlockError('DF_NOT_FOUND', `Failed to find node with node-name='${name}'`);
}

/** What both commands have. @throws BlockError of the argument that is wrong */
function mirrorSettings(
  graph: BlockGraph,
  source: BlockNode,
  args: Infer<typeof qapi.MirrorCommon>,
): Omit<MirrorOptions, 'target' | 'unmap'> {
  const replaces = args.replaces === undefined ? undefined : findReplaced(graph, args.replaces);
  const granularity = checkGranularity(args.granularity ?? 0);
  const speed = args.speed ?? 0;
  if (speed < 0)
    throw new BlockError('DF_INVALID', "Parameter 'speed' expects a non-negative value");
  const bufSize = args['buf-size'] ?? 0;
  if (bufSize < 0) throw new BlockError('DF_INVALID', "Invalid parameter 'buf-size'");
  const { sync } = args;
  const { bitmap, mode } = checkSyncBitmap({
    source,
    sync,
    bitmap: args.bitmap,
    bitmapMode: args['bitmap-mode'],
  });
  return {
    id: args['job-id'] ?? args.device,
    source,
    sync: sync === 'incremental' ? 'bitmap' : sync,
    bitmap,
    bitmapMode: mode,
    ...(replaces !== undefined ? { replaces } : {}),
    granularity,
    ...(bufSize === 0
      ? { windowLength: MIRROR_WINDOW_DEFAULT, windowLengthMax: COPY_WINDOW_MAX }
      : { windowLength: bufSize }),
    copyMode: args['copy-mode'],
    speed,
    onSourceError: args['on-source-error'] ?? 'report',
    onTargetError: args['on-target-error'] ?? 'report',
    autoFinalize: args['auto-finalize'] ?? true,
    autoDismiss: args['auto-dismiss'] ?? true,
  };
}

/** @returns undefined: as the target needs it */
function checkGranularity(granularity: number): number | undefined {
  if (granularity === 0) return undefined;
  if (granularity < GRANULARITY_MIN || granularity > GRANULARITY_MAX) {
    throw new BlockError(
      'DF_INVALID',
      "Parameter 'granularity' expects a value in range [512B, 64MB]",
    );
  }
  if (!isPowerOfTwo(granularity)) {
    throw new BlockError('DF_INVALID', "Parameter 'granularity' expects a power of 2");
  }
  return granularity;
}
