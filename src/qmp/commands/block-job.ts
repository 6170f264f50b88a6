// SPDX-License-Identifier: MIT
/** Commands that start jobs on nodes. */
import * as qapi from '../../../protocol/qapi/block-job.js';
import type { ArgumentsOf } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import { MIB } from '../../base/limits.js';
import type { BlockGraph } from '../../block/graph.js';
import type { JobRegistry } from '../../job/job-registry.js';
import { MIRROR_WINDOW_DEFAULT, MirrorJob } from '../../job/mirror.js';
import { checkSyncBitmap } from '../../job/sync-bitmap.js';
import type { CommandRegistry } from '../registry.js';

/** QEMU's bounds of a mirror's granularity, bytes. */
const GRANULARITY_MIN = 512;
const GRANULARITY_MAX = 64 * MIB;
const GRANULARITY_DEFAULT = 65536;

export interface JobServices {
  readonly graph: BlockGraph;
  readonly jobs: JobRegistry;
}

export function registerBlockJobStarts(registry: CommandRegistry, services: JobServices): void {
  registry.register(qapi.BLOCKDEV_MIRROR, (args) => startMirror(services, args));
}

async function startMirror(
  { graph, jobs }: JobServices,
  args: ArgumentsOf<typeof qapi.BLOCKDEV_MIRROR>,
): Promise<void> {
  const source = graph.get(args.device);
  const target = graph.get(args.target);
  const replaces = args.replaces === undefined ? undefined : graph.get(args.replaces);
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
  const targetIsZero = args['target-is-zero'] ?? false;
  if (targetIsZero && sync !== 'full' && sync !== 'top') {
    throw new BlockError('DF_INVALID', `target-is-zero has no meaning with sync mode '${sync}'`);
  }
  const id = args['job-id'] ?? args.device;
  await jobs.run(id, () =>
    MirrorJob.create(
      graph,
      {
        id,
        source,
        target,
        sync: sync === 'incremental' ? 'bitmap' : sync,
        bitmap,
        bitmapMode: mode,
        targetIsZero,
        ...(replaces !== undefined ? { replaces } : {}),
        ...(args['filter-node-name'] !== undefined
          ? { filterNodeName: args['filter-node-name'] }
          : {}),
        granularity,
        windowLength: bufSize === 0 ? MIRROR_WINDOW_DEFAULT : bufSize,
        unmap: true,
        copyMode: args['copy-mode'],
        speed,
        onSourceError: args['on-source-error'] ?? 'report',
        onTargetError: args['on-target-error'] ?? 'report',
        autoFinalize: args['auto-finalize'] ?? true,
        autoDismiss: args['auto-dismiss'] ?? true,
      },
      jobs,
    ),
  );
}

function checkGranularity(granularity: number): number {
  if (granularity === 0) return GRANULARITY_DEFAULT;
  if (granularity < GRANULARITY_MIN || granularity > GRANULARITY_MAX) {
    throw new BlockError(
      'DF_INVALID',
      "Parameter 'granularity' expects a value in range [512B, 64MB]",
    );
  }
  if (!Number.isInteger(Math.log2(granularity))) {
    throw new BlockError('DF_INVALID', "Parameter 'granularity' expects a power of 2");
  }
  return granularity;
}
