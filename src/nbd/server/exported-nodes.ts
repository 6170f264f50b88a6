// SPDX-License-Identifier: MIT
/** Nodes of the graph as exports: a backend each, bitmaps, and holding all of them back at once. */
import { BlockError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import { BlockBackend } from '../../block/backend.js';
import type { DirtyBitmap } from '../../block/bitmap/dirty-bitmap.js';
import type { ChildEdge } from '../../block/edge.js';
import type { BlockGraph } from '../../block/graph.js';
import type { BlockNode } from '../../block/node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../block/permissions.js';
import type { ExportRegistry, NbdExport } from './export.js';

/** Names a bitmap: of the exported node or one below it, or of a node named. */
export type BitmapReference = string | { readonly node: string; readonly name: string };

export interface NodeExportOptions {
  readonly id: string;
  readonly node: BlockNode;
  /** What clients ask for; the node's name when absent. */
  readonly name?: string | undefined;
  readonly description?: string | undefined;
  readonly writable: boolean;
  readonly writethrough: boolean;
  readonly allocationDepth: boolean;
  readonly allowInactive: boolean;
  readonly bitmaps: readonly BitmapReference[];
}

export interface IoFailure {
  readonly exportId: string;
  readonly nodeName: string;
  readonly operation: 'read' | 'write';
  readonly error: unknown;
}

interface Exported {
  readonly allowInactive: boolean;
  readonly bitmaps: readonly DirtyBitmap[];
}

export class ExportedNodes {
  readonly #graph: BlockGraph;
  readonly #registry: () => ExportRegistry;
  readonly #exported = new Map<BlockBackend, Exported>();
  readonly #backends = new Map<string, BlockBackend>();
  readonly #whenNone: (() => void)[] = [];
  /** Exports that are gone for clients, but whose nodes are not free yet. */
  readonly #closing = new Map<string, Promise<void>>();
  #held = false;
  /** Called when an export is gone and its node free. */
  onDeleted: (id: string) => void = () => {};

  /** Called when the node fails a client's request. */
  onIoError: (failure: IoFailure) => void = () => {};

  /** @param registry that of the running server */
  constructor(graph: BlockGraph, registry: () => ExportRegistry) {
    this.#graph = graph;
    this.#registry = registry;
  }

  /** True between `hold` and `release`. */
  get held(): boolean {
    return this.#held;
  }

  /**
   * Exports a node. All or nothing.
   * @throws BlockError: id or name taken, permissions, a read-only or inactive node, a bitmap that
   *   is not there or can't be used
   */
  async add(options: NodeExportOptions): Promise<NbdExport> {
    const { id, node } = options;
    if (this.#registry().has(id)) {
      throw new BlockError('DF_EXISTS', `Block export id '${id}' is already in use`);
    }
    if (options.writable && node.readOnly) {
      throw new BlockError('DF_READ_ONLY', 'Cannot export read-only node as writable');
    }
    if (!node.active && !options.allowInactive) {
      throw new BlockError('DF_INVALID', `Node '${node.name}' is inactive`);
    }
    const bitmaps = options.bitmaps.map((reference) => this.#findBitmap(options, reference));
    const backend = new BlockBackend(`export '${id}'`, {
      failed: (operation, error) => {
        // A client that asks for fast zeroes expects to be told that there are none.
        if (error instanceof BlockError && error.code === 'DF_NOT_SUPPORTED') return;
        const nodeName = backend.attached ? backend.root.node.name : node.name;
        this.onIoError({ exportId: id, nodeName, operation, error });
      },
    });
    await this.#graph.attach(backend, node, {
      taken: PERM_CONSISTENT_READ | (options.writable ? PERM_WRITE : 0),
      shared: PERM_ALL,
    });
    try {
      return this.#register(options, backend, bitmaps);
    } catch (error) {
      await this.#graph.detach(backend);
      throw error;
    }
  }

  /** Whether a root user of a node is an export that bears an inactive node. */
  mayIdle(parent: unknown): boolean {
    return parent instanceof BlockBackend && this.#exported.get(parent)?.allowInactive === true;
  }

  /** The edge of an export to its node; undefined when there is no such export, or no more. */
  edgeOf(id: string): ChildEdge | undefined {
    const backend = this.#backends.get(id);
    return backend?.attached === true ? backend.root : undefined;
  }

  /** @throws BlockError DF_INVALID when clients of the export would lose sight of a bitmap with `next` */
  checkMove(id: string, next: BlockNode): void {
    const backend = this.#backends.get(id);
    if (backend === undefined) return;
    for (const bitmap of this.#exported.get(backend)?.bitmaps ?? []) {
      if (!hasBitmap(backend.root.node, bitmap) || hasBitmap(next, bitmap)) continue;
      throw new BlockError(
        'DF_INVALID',
        `Export '${id}' shows bitmap '${bitmap.name}', which neither node '${next.name}' nor one ` +
          'below it has',
      );
    }
  }

  /** Holds back the requests of all clients; fulfilled when none is in flight any more. */
  async hold(): Promise<void> {
    if (!this.#held) {
      this.#held = true;
      for (const backend of this.#exported.keys()) backend.hold();
    }
    for (const backend of this.#exported.keys()) await backend.whenIdle();
  }

  /** Fulfilled when no node is exported any more. */
  async whenNone(): Promise<void> {
    if (this.#exported.size + this.#closing.size === 0) return;
    await new Promise<void>((resolve) => {
      this.#whenNone.push(resolve);
    });
  }

  /** Waits for an export that has no clients any more, until its node is free; for no other. */
  whenFree(id: string): MaybePromise<void> {
    return this.#closing.get(id);
  }

  /** Fails what is held back of an export whose clients are being dropped. */
  failHeld(id: string): void {
    const backend = this.#backends.get(id);
    backend?.failWaiting(new BlockError('DF_SHUTDOWN', `export '${id}' is removed`));
  }

  /** Lets the clients' requests go on. */
  release(): void {
    if (!this.#held) return;
    this.#held = false;
    for (const backend of this.#exported.keys()) backend.release();
  }

  #register(
    options: NodeExportOptions,
    backend: BlockBackend,
    bitmaps: readonly DirtyBitmap[],
  ): NbdExport {
    const added = this.#registry().add({
      id: options.id,
      name: options.name ?? options.node.name,
      nodeName: options.node.name,
      nodeNow: () => (backend.attached ? backend.root.node.name : undefined),
      ...(options.description !== undefined ? { description: options.description } : {}),
      backend,
      writable: options.writable,
      writethrough: options.writethrough,
      allocationDepth: options.allocationDepth,
      bitmaps: new Map(
        bitmaps.map((bitmap) => [
          bitmap.name ?? '',
          { nextExtent: (offset: number, limit: number) => bitmap.status(offset, limit) },
        ]),
      ),
      onClosed: () => this.#closed(options.id, backend),
    });
    for (const bitmap of bitmaps) bitmap.busy = true;
    if (this.#held) backend.hold();
    this.#exported.set(backend, { allowInactive: options.allowInactive, bitmaps });
    this.#backends.set(options.id, backend);
    return added;
  }

  #closed(id: string, backend: BlockBackend): void {
    const exported = this.#exported.get(backend);
    this.#exported.delete(backend);
    this.#backends.delete(id);
    for (const bitmap of exported?.bitmaps ?? []) bitmap.busy = false;
    const closing = this.#graph.detach(backend).then(() => {
      if (this.#closing.get(id) === closing) this.#closing.delete(id);
      this.onDeleted(id);
      if (this.#exported.size + this.#closing.size > 0) return;
      for (const resolve of this.#whenNone.splice(0)) resolve();
    });
    this.#closing.set(id, closing);
  }

  /** @throws BlockError DF_NOT_FOUND, and why the bitmap can't be used */
  #findBitmap(options: NodeExportOptions, reference: BitmapReference): DirtyBitmap {
    const named = typeof reference !== 'string';
    const name = named ? reference.name : reference;
    const start = named ? this.#graph.get(reference.node) : options.node;
    const bitmap = named ? start.bitmaps.get(name) : bitmapBelow(start, name);
    if (bitmap === undefined) throw new BlockError('DF_NOT_FOUND', `Bitmap '${name}' is not found`);
    bitmap.checkUse({ allowReadOnly: true });
    if (!options.writable && !options.node.readOnly && bitmap.enabled) {
      throw new BlockError(
        'DF_INVALID',
        `Enabled bitmap '${name}' incompatible with readonly export`,
      );
    }
    return bitmap;
  }
}

/** True when the bitmap belongs to the node or to one below it. */
function hasBitmap(node: BlockNode, bitmap: DirtyBitmap): boolean {
  if ([...node.bitmaps.values()].includes(bitmap)) return true;
  return [...node.children.values()].some((edge) => hasBitmap(edge.node, bitmap));
}

/** Looks through filters and the backing chain. */
function bitmapBelow(node: BlockNode, name: string): DirtyBitmap | undefined {
  const own = node.bitmaps.get(name);
  if (own !== undefined) return own;
  for (const edge of node.children.values()) {
    if (edge.role !== 'filtered' && edge.role !== 'backing') continue;
    const found = bitmapBelow(edge.node, name);
    if (found !== undefined) return found;
  }
  return undefined;
}
