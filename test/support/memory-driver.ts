// SPDX-License-Identifier: MIT
/** A driver over a buffer, which completes at once or later as told, and can be made to fail. */
import { BlockError } from '../../src/base/errors.js';
import type { MaybePromise } from '../../src/base/maybe-promise.js';
import {
  type BlockDriver,
  type BlockLimits,
  DEFAULT_LIMITS,
  type DriverDefinition,
  type DriverFeatures,
  type Extent,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from '../../src/block/block-driver.js';
import { BlockGraph } from '../../src/block/graph.js';
import type { BlockNode } from '../../src/block/node.js';
import { openNode } from '../../src/block/open-node.js';

export class MemoryDriver implements BlockDriver {
  readonly name = 'memory';
  readonly filename = '';
  readonly features: DriverFeatures = {
    fua: false,
    writeZeroes: true,
    discard: true,
    backing: false,
    multiConn: true,
  };
  limits: BlockLimits = DEFAULT_LIMITS;
  data: Buffer;
  /** Each request waits for this first; undefined: completes at once. */
  delay: (() => Promise<void>) | undefined;
  /** What is told of a status is found out before this; undefined: told at once. */
  statusDelay: (() => Promise<void>) | undefined;
  /** Thrown by the next requests of the kind. */
  fail: Partial<Record<'read' | 'write' | 'flush', Error>> = {};
  readonly calls: string[] = [];
  flushes = 0;
  closed = false;

  constructor(size: number) {
    this.data = Buffer.alloc(size);
  }

  get size(): number {
    return this.data.byteLength;
  }

  read(offset: number, buffer: Buffer): MaybePromise<void> {
    return this.#run('read', offset, buffer.byteLength, () => {
      buffer.fill(0);
      this.data.copy(buffer, 0, offset, offset + buffer.byteLength);
    });
  }

  write(offset: number, buffer: Buffer): MaybePromise<void> {
    return this.#run('write', offset, buffer.byteLength, () => {
      buffer.copy(this.data, offset);
    });
  }

  writeZeroes(offset: number, length: number): MaybePromise<void> {
    return this.#run('write', offset, length, () => {
      this.data.fill(0, offset, offset + length);
    });
  }

  discard(offset: number, length: number): MaybePromise<void> {
    return this.#run('write', offset, length, () => {
      this.data.fill(0, offset, offset + length);
    });
  }

  flush(): MaybePromise<void> {
    return this.#run('flush', 0, 0, () => {
      this.flushes++;
    });
  }

  blockStatus(offset: number, length: number): MaybePromise<Extent> {
    const zeroAt = (at: number): boolean => this.data[at] === 0;
    const zero = zeroAt(offset);
    let run = 1;
    while (run < length && zeroAt(offset + run) === zero) run++;
    const flags = STATUS_ALLOCATED | (zero ? STATUS_ZERO : STATUS_DATA);
    const extent = { length: run, flags };
    return this.statusDelay === undefined ? extent : this.statusDelay().then(() => extent);
  }

  async truncate(size: number): Promise<void> {
    const data = Buffer.alloc(size);
    this.data.copy(data);
    this.data = data;
  }

  close(): void {
    this.closed = true;
  }

  #run(
    kind: 'read' | 'write' | 'flush',
    offset: number,
    length: number,
    act: () => void,
  ): MaybePromise<void> {
    this.calls.push(`${kind} ${offset} ${length}`);
    const error = this.fail[kind];
    if (this.delay === undefined) {
      if (error !== undefined) throw error;
      act();
      return;
    }
    return this.delay().then(() => {
      if (error !== undefined) throw error;
      act();
    });
  }
}

/** Registers 'memory' with option `size`, and returns how to get at the drivers it makes. */
export function memoryGraph(): {
  graph: BlockGraph;
  driverOf: (node: BlockNode) => MemoryDriver;
  add: (name: string, size: number, options?: Record<string, unknown>) => Promise<BlockNode>;
} {
  const graph = new BlockGraph();
  const definition: DriverDefinition = {
    name: 'memory',
    kind: 'protocol',
    children: [],
    open: (options) => {
      if (options.broken === true) throw new BlockError('DF_IO', 'the memory is broken');
      return new MemoryDriver(Number(options.size));
    },
  };
  graph.drivers.register(definition);
  graph.drivers.register(passDefinition('pass', 'filter'));
  graph.drivers.register(passDefinition('format', 'format'));
  return {
    graph,
    driverOf: (node) => {
      if (node.driver instanceof MemoryDriver) return node.driver;
      throw new Error(`${node.name} is no memory node`);
    },
    add: (name, size, options = {}) =>
      openNode(
        graph,
        { driver: 'memory', 'node-name': name, size, ...options },
        { monitorOwned: true },
      ),
  };
}

/** A driver that hands everything to its 'file' child. */
function passDefinition(name: string, kind: 'filter' | 'format'): DriverDefinition {
  return {
    name,
    kind,
    children: [{ key: 'file', role: kind === 'filter' ? 'filtered' : 'file', required: true }],
    open: (_options, context) => {
      const child = context.child('file');
      return {
        name,
        filename: '',
        features: { fua: true, writeZeroes: true, discard: true, backing: false, multiConn: true },
        get limits() {
          return child.limits;
        },
        get size() {
          return child.size;
        },
        read: (offset, buffer, flags) => child.read(offset, buffer, flags),
        write: (offset, buffer, flags) => child.write(offset, buffer, flags),
        writeZeroes: (offset, length, flags) => child.writeZeroes(offset, length, flags),
        discard: (offset, length) => child.discard(offset, length),
        blockStatus: (offset, length) => ({
          length,
          flags: 0,
          delegate: child,
          hostOffset: offset,
        }),
        close: () => undefined,
      };
    },
  };
}
