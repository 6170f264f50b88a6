// SPDX-License-Identifier: MIT
/**
 * `block-commit` of the active layer: its users write on. A mirror into the base, which is equal to the
 * top when it is READY; the pivot moves the users there.
 */
import type { BlockGraph } from '../block/graph.js';
import type { BlockNode } from '../block/node.js';
import type { BlockJobOptions } from './block-job.js';
import { CommitChain } from './commit-chain.js';
import { COPY_WINDOW_MAX } from './copy-window.js';
import { MIRROR_WINDOW_DEFAULT, MirrorJob } from './mirror.js';
import type { MirrorObserver } from './mirror-options.js';

/** Bytes tracked together. */
const GRANULARITY = 65536;

export interface ActiveCommitOptions extends BlockJobOptions {
  readonly top: BlockNode;
  readonly base: BlockNode;
  readonly filterNodeName?: string;
  /** Also taken: the node that the user named. */
  readonly device: BlockNode;
}

/** @throws BlockError when chain or base can't be had; nothing has changed then */
export async function createActiveCommit(
  graph: BlockGraph,
  options: ActiveCommitOptions,
  observer: MirrorObserver,
): Promise<MirrorJob> {
  const { top: source, base: target, device } = options;
  const commit = await CommitChain.take(graph, { top: source, base: target, also: [device] });
  try {
    return await MirrorJob.create(
      graph,
      {
        ...options,
        source,
        target,
        commit,
        sync: 'full',
        granularity: GRANULARITY,
        windowLength: MIRROR_WINDOW_DEFAULT,
        windowLengthMax: COPY_WINDOW_MAX,
        unmap: true,
      },
      observer,
    );
  } catch (error) {
    await commit.end({ keepWritable: false });
    throw error;
  }
}
