// SPDX-License-Identifier: MIT
/** A graph with all filters of this folder, over memory that can grow and have a backing node. */
import { BlockBackend } from '../../../../src/block/backend.js';
import {
  type DriverDefinition,
  type Extent,
  STATUS_ALLOCATED,
  STATUS_DATA,
} from '../../../../src/block/block-driver.js';
import type { ChildEdge } from '../../../../src/block/edge.js';
import { blkdebugDefinition } from '../../../../src/block/filter/blkdebug/driver.js';
import { blklogwritesDefinition } from '../../../../src/block/filter/blklogwrites.js';
import { blkverifyDefinition } from '../../../../src/block/filter/blkverify.js';
import { createCopyBeforeWriteDriver } from '../../../../src/block/filter/copy-before-write.js';
import { createCopyOnReadDriver } from '../../../../src/block/filter/copy-on-read.js';
import { preallocateDefinition } from '../../../../src/block/filter/preallocate.js';
import { quorumDefinition } from '../../../../src/block/filter/quorum/driver.js';
import { createThrottleDriver } from '../../../../src/block/filter/throttle.js';
import type { BlockGraph } from '../../../../src/block/graph.js';
import type { BlockNode } from '../../../../src/block/node.js';
import { openNode } from '../../../../src/block/open-node.js';
import { PERM_ALL } from '../../../../src/block/permissions.js';
import type { ThrottleGroup } from '../../../../src/block/throttle/throttle-group.js';
import { MemoryDriver, memoryGraph } from '../../../support/memory-driver.js';

const BLOCK = 4096;

/** A file: writes past its end make it longer. */
export class GrowingDriver extends MemoryDriver {
  override write(offset: number, buffer: Buffer) {
    this.#reach(offset + buffer.byteLength);
    return super.write(offset, buffer);
  }

  override writeZeroes(offset: number, length: number) {
    if (this.fail.write === undefined) this.#reach(offset + length);
    return super.writeZeroes(offset, length);
  }

  #reach(end: number): void {
    if (end <= this.size) return;
    const data = Buffer.alloc(end);
    this.data.copy(data);
    this.data = data;
  }
}

/** An image with a backing node: blocks of 4 KiB that were never written are read from there. */
export class OverlayDriver extends MemoryDriver {
  readonly allocated = new Set<number>();

  constructor(
    size: number,
    readonly backing: ChildEdge | undefined,
  ) {
    super(size);
  }

  override async read(offset: number, buffer: Buffer) {
    for (let at = 0; at < buffer.byteLength; ) {
      const extent = this.blockStatus(offset + at, buffer.byteLength - at);
      const piece = buffer.subarray(at, at + extent.length);
      if (extent.flags !== 0) await super.read(offset + at, piece);
      else if (this.backing === undefined) piece.fill(0);
      else await this.backing.read(offset + at, piece);
      at += extent.length;
    }
  }

  override async write(offset: number, buffer: Buffer) {
    const first = Math.floor(offset / BLOCK);
    const last = Math.floor((offset + buffer.byteLength - 1) / BLOCK);
    for (let block = first; block <= last; block++) {
      if (this.allocated.has(block)) continue;
      await this.backing?.read(
        block * BLOCK,
        this.data.subarray(block * BLOCK, (block + 1) * BLOCK),
      );
      this.allocated.add(block);
    }
    await super.write(offset, buffer);
  }

  override writeZeroes(offset: number, length: number) {
    return this.write(offset, Buffer.alloc(length));
  }

  override blockStatus(offset: number, length: number): Extent {
    const block = Math.floor(offset / BLOCK);
    const flags = this.allocated.has(block) ? STATUS_ALLOCATED | STATUS_DATA : 0;
    return { length: Math.min(length, (block + 1) * BLOCK - offset), flags };
  }
}

export interface FilterGraph {
  readonly graph: BlockGraph;
  readonly groups: Map<string, ThrottleGroup>;
  add(options: Record<string, unknown>): Promise<BlockNode>;
  /** A parent that may do everything, and lets others do everything. */
  use(node: BlockNode, taken?: number): Promise<BlockBackend>;
}

export function filterGraph(): FilterGraph {
  const { graph } = memoryGraph();
  const groups = new Map<string, ThrottleGroup>();
  const growing: DriverDefinition = {
    name: 'growing',
    kind: 'protocol',
    children: [],
    open: ({ size }) => new GrowingDriver(Number(size)),
  };
  const overlay: DriverDefinition = {
    name: 'overlay',
    kind: 'format',
    children: [{ key: 'backing', role: 'backing', required: false }],
    open: ({ size }, { children }) => new OverlayDriver(Number(size), children.backing),
  };
  const filters = [
    createThrottleDriver((name) => groups.get(name)),
    createCopyBeforeWriteDriver((name) => graph.find(name)),
    createCopyOnReadDriver((name) => graph.find(name)),
    preallocateDefinition,
    blkdebugDefinition,
    blkverifyDefinition,
    blklogwritesDefinition,
    quorumDefinition,
  ];
  for (const definition of [growing, overlay, ...filters]) graph.drivers.register(definition);
  return {
    graph,
    groups,
    add: (options) => openNode(graph, options, { monitorOwned: true }),
    async use(node, taken = PERM_ALL) {
      const backend = new BlockBackend("export 'e'");
      await graph.attach(backend, node, { taken, shared: PERM_ALL });
      return backend;
    },
  };
}

/** The memory behind a node. */
export function memoryOf(node: BlockNode): MemoryDriver {
  if (node.driver instanceof MemoryDriver) return node.driver;
  throw new Error(`${node.name} is no memory node`);
}

/** The bytes of a node. */
export async function contentOf(node: BlockNode, offset = 0, length = node.size - offset) {
  const buffer = Buffer.alloc(length);
  await node.read(offset, buffer);
  return buffer;
}
