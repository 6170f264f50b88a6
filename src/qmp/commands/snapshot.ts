// SPDX-License-Identifier: MIT
/** `blockdev-snapshot` and `blockdev-snapshot-sync`, by themselves and in a transaction. */
import * as qapi from '../../../protocol/qapi/chain.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import { BlockBackend } from '../../block/backend.js';
import type { EdgeParent } from '../../block/edge.js';
import { type BlockGraph, UNUSED_PERMISSIONS } from '../../block/graph.js';
import { awaitBacking } from '../../block/image-name.js';
import { BlockNode } from '../../block/node.js';
import { takingSnapshot } from '../../block/snapshot.js';
import { openTargetImage } from '../../block/target-image.js';
import { applyChanges, type Change } from '../../block/transaction.js';
import type { Job } from '../../job/job.js';
import type { JobRegistry } from '../../job/job-registry.js';
import { checkUnclaimed } from '../../job/node-claims.js';
import type { CommandRegistry } from '../registry.js';

export interface SnapshotServices {
  readonly graph: BlockGraph;
  readonly jobs: JobRegistry;
}

export function registerSnapshots(registry: CommandRegistry, services: SnapshotServices): void {
  registry.register(qapi.BLOCKDEV_SNAPSHOT, (args) =>
    applyChanges([snapshotChange(services, args)]),
  );
  registry.register(qapi.BLOCKDEV_SNAPSHOT_SYNC, async (args) => {
    const snapshot = new SnapshotSync(services, args);
    try {
      await snapshot.open();
      await applyChanges([snapshot.change()]);
    } finally {
      await snapshot.release();
    }
  });
}

/** `blockdev-snapshot`. The monitor owns the overlay already. */
export function snapshotChange(
  { graph, jobs }: SnapshotServices,
  { node: nodeName, overlay }: Infer<typeof qapi.BlockdevSnapshot>,
): Change {
  const nodes = (): { node: BlockNode; overlay: BlockNode } => {
    const node = graph.get(nodeName);
    checkIdle(jobs, node);
    return { node, overlay: graph.get(overlay) };
  };
  return takingSnapshot(graph, nodes, { keep: false });
}

/** `blockdev-snapshot-sync`, in three steps, so that only the middle one holds up users. */
export class SnapshotSync {
  readonly #services: SnapshotServices;
  readonly #args: Infer<typeof qapi.BlockdevSnapshotSync>;
  #overlay: BlockNode | undefined;
  #linked: (() => void) | undefined;
  /** Keeps the overlay open until it has users: it may itself be what another snapshot is of. */
  readonly #holder = new BlockBackend('the making of a snapshot');

  constructor(services: SnapshotServices, args: Infer<typeof qapi.BlockdevSnapshotSync>) {
    this.#services = services;
    this.#args = args;
  }

  /** The node whose snapshot it is. @throws BlockError DF_NOT_FOUND in QEMU's words */
  get node(): BlockNode {
    const { device = '', 'node-name': name = '' } = this.#args;
    const { graph } = this.#services;
    const node = graph.find(device) ?? graph.find(name);
    if (node !== undefined) return node;
    throw new BlockError('DF_NOT_FOUND', `Cannot find device='${device}' nor node-name='${name}'`);
  }

  /** Makes the image where that is asked for, and opens it. @throws BlockError; no node is left then */
  async open(): Promise<void> {
    const { graph, jobs } = this.#services;
    const { format = 'qcow2', mode, ...args } = this.#args;
    const { node } = this;
    checkIdle(jobs, node);
    const nodeName = args['snapshot-node-name'];
    if (args['node-name'] !== undefined && nodeName === undefined) {
      throw new BlockError('DF_INVALID', 'New overlay node-name missing');
    }
    if (nodeName !== undefined && graph.find(nodeName) !== undefined) {
      throw new BlockError('DF_EXISTS', 'New overlay node-name already in use');
    }
    const { readOnly, discard, cache } = node.options;
    const made = mode === 'existing' ? {} : { createSize: node.size, backing: node };
    const image = await openTargetImage(graph, {
      filename: args['snapshot-file'],
      format,
      nodeName,
      source: node,
      ...made,
      withoutBacking: true,
      options: {
        'read-only': readOnly,
        discard,
        cache: { direct: cache.direct, 'no-flush': cache.noFlush },
      },
    });
    this.#overlay = image.node;
    this.#linked = awaitBacking(image.node, node);
    await graph.attach(this.#holder, image.node, UNUSED_PERMISSIONS);
  }

  /** `open` has to come before its preparation. */
  change(): Change {
    const { graph, jobs } = this.#services;
    const nodes = (): { node: BlockNode; overlay: BlockNode } => {
      const overlay = this.#overlay;
      if (overlay === undefined) throw new Error('the image is not open');
      const { node } = this;
      checkIdle(jobs, node);
      return { node, overlay };
    };
    return takingSnapshot(graph, nodes, {
      keep: this.#args['snapshot-node-name'] !== undefined,
    });
  }

  /** Lets go of the image: it is the users' now, or is closed. */
  async release(): Promise<void> {
    const overlay = this.#overlay;
    const { graph } = this.#services;
    this.#linked?.();
    await graph.detach(this.#holder);
    if (overlay !== undefined) await graph.exclusive(() => graph.closeUnused(overlay));
  }
}

/** @throws BlockError DF_IN_USE, in QEMU's words, when a job relies on who uses the node */
export function checkIdle(jobs: JobRegistry, node: BlockNode): void {
  checkUnclaimed(node);
  for (const edge of node.parents) {
    const job = jobs.jobOf(edge.parent) ?? jobOfFilter(jobs, edge.parent);
    if (job === undefined) continue;
    throw new BlockError(
      'DF_IN_USE',
      `Node '${node.name}' is busy: block device is in use by block job: ${job.type}`,
      { node: node.name },
    );
  }
}

/** The mirror whose filter is right above: its source. A backup's filter follows its edge. */
function jobOfFilter(jobs: JobRegistry, parent: EdgeParent): Job | undefined {
  if (!(parent instanceof BlockNode) || parent.kind !== 'filter') return undefined;
  const users = [...parent.parents].map((edge) => jobs.jobOf(edge.parent));
  return users.find((job) => job !== undefined && job.type !== 'backup');
}
