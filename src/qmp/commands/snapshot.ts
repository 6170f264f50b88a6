// SPDX-License-Identifier: MIT
/** `blockdev-snapshot` and `blockdev-snapshot-sync`, by themselves and in a transaction. */
import * as qapi from '../../../protocol/qapi/chain.js';
import type { Infer } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import { BlockBackend } from '../../block/backend.js';
import type { ChangesAhead } from '../../block/changes-ahead.js';
import type { EdgeParent } from '../../block/edge.js';
import { type BlockGraph, UNUSED_PERMISSIONS } from '../../block/graph.js';
import { awaitBacking } from '../../block/image-name.js';
import { BlockNode } from '../../block/node.js';
import { checkNodeName } from '../../block/node-options.js';
import {
  checkNoOverlay,
  foreseeSnapshot,
  type SnapshotNodes,
  takingSnapshot,
} from '../../block/snapshot.js';
import {
  checkTargetImage,
  openTargetImage,
  type TargetImageRequest,
} from '../../block/target-image.js';
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
  registry.register(qapi.BLOCKDEV_SNAPSHOT_SYNC, (args) =>
    applyChanges([new SnapshotSync(services, args)]),
  );
}

/** `blockdev-snapshot`. The monitor owns the overlay already. */
export function snapshotChange(
  { graph, jobs }: SnapshotServices,
  { node: nodeName, overlay }: Infer<typeof qapi.BlockdevSnapshot>,
): Change {
  const nodes = (): SnapshotNodes => {
    const node = graph.get(nodeName);
    checkIdle(jobs, node);
    return { node, overlay: graph.get(overlay) };
  };
  return {
    ...takingSnapshot(graph, nodes, { keep: false }),
    check(ahead) {
      if (ahead.isComing(nodeName)) return;
      const node = graph.get(nodeName);
      checkIdle(jobs, node);
      foreseeSnapshot(ahead, node, ahead.isComing(overlay) ? overlay : graph.get(overlay));
    },
  };
}

/** `blockdev-snapshot-sync`. */
export class SnapshotSync implements Change {
  readonly #services: SnapshotServices;
  readonly #args: Infer<typeof qapi.BlockdevSnapshotSync>;
  readonly #taking: Change;
  #overlay: BlockNode | undefined;
  #linked: (() => void) | undefined;
  /** Keeps the overlay open until it has users: it may itself be what another snapshot is of. */
  readonly #holder = new BlockBackend('the making of a snapshot');

  constructor(services: SnapshotServices, args: Infer<typeof qapi.BlockdevSnapshotSync>) {
    this.#services = services;
    this.#args = args;
    this.#taking = takingSnapshot(services.graph, () => this.#nodes(), {
      keep: args['snapshot-node-name'] !== undefined,
    });
  }

  /** The node whose snapshot it is. @throws BlockError DF_NOT_FOUND in QEMU's words */
  get node(): BlockNode {
    const { device = '', 'node-name': name = '' } = this.#args;
    const { graph } = this.#services;
    const node = graph.find(device) ?? graph.find(name);
    if (node !== undefined) return node;
    throw new BlockError('DF_NOT_FOUND', `Cannot find device='${device}' nor node-name='${name}'`);
  }

  check(ahead: ChangesAhead): void {
    const { graph } = this.#services;
    const { device = '', 'node-name': name = '', 'snapshot-node-name': overlay } = this.#args;
    this.#checkOverlayName();
    const isThere = graph.find(device) !== undefined || graph.find(name) !== undefined;
    if (isThere || !(ahead.isComing(device) || ahead.isComing(name))) {
      checkTargetImage(graph, this.#request(this.#idleNode()));
      foreseeSnapshot(ahead, this.node, overlay);
    }
    if (overlay !== undefined) ahead.noteNode(overlay);
    if (this.#args.mode !== 'existing') ahead.noteImage(this.#args['snapshot-file']);
  }

  #checkOverlayName(): void {
    const { 'node-name': name, 'snapshot-node-name': overlay } = this.#args;
    if (name !== undefined && overlay === undefined) {
      throw new BlockError('DF_INVALID', 'New overlay node-name missing');
    }
    if (overlay === undefined) return;
    if (this.#services.graph.find(overlay) !== undefined) {
      throw new BlockError('DF_EXISTS', 'New overlay node-name already in use');
    }
    checkNodeName(overlay);
  }

  /** @throws BlockError DF_NOT_FOUND, DF_IN_USE */
  #idleNode(): BlockNode {
    const { node } = this;
    checkIdle(this.#services.jobs, node);
    return node;
  }

  #request(node: BlockNode): TargetImageRequest {
    const { format = 'qcow2', mode, ...args } = this.#args;
    const { readOnly, discard, cache } = node.options;
    const made = mode === 'existing' ? {} : { createSize: node.size, backing: node };
    return {
      filename: args['snapshot-file'],
      format,
      nodeName: args['snapshot-node-name'],
      source: node,
      ...made,
      withoutBacking: true,
      options: {
        'read-only': readOnly,
        discard,
        cache: { direct: cache.direct, 'no-flush': cache.noFlush },
      },
    };
  }

  /** Makes the image where that is asked for, and opens it. @throws BlockError; no node is left then */
  async make(): Promise<void> {
    const { graph } = this.#services;
    // Much may have happened since it was checked.
    const node = this.#idleNode();
    checkNoOverlay(node);
    this.#checkOverlayName();
    const image = await openTargetImage(graph, this.#request(node));
    this.#overlay = image.node;
    this.#linked = awaitBacking(image.node, node);
    await graph.attach(this.#holder, image.node, UNUSED_PERMISSIONS);
  }

  #nodes(): SnapshotNodes {
    const overlay = this.#overlay;
    if (overlay === undefined) throw new Error('the image is not open');
    return { node: this.#idleNode(), overlay };
  }

  prepare(): MaybePromise<void> {
    return this.#taking.prepare();
  }

  commit(): MaybePromise<void> {
    return this.#taking.commit?.();
  }

  abort(): MaybePromise<void> {
    return this.#taking.abort?.();
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
