// SPDX-License-Identifier: MIT
/**
 * Filter that stores in the top layer what had to be read from the layers below it.
 * @see qapi BlockdevOptionsCor
 */
import { BlockError } from '../../base/errors.js';
import { isPromise, type MaybePromise } from '../../base/maybe-promise.js';
import { RangeLock } from '../../base/range-lock.js';
import {
  type ChildRole,
  type DriverDefinition,
  REQ_PREFETCH,
  REQ_WRITE_UNCHANGED,
  type RequestFlags,
  STATUS_ZERO,
} from '../block-driver.js';
import { type ChainExtent, chainStatus } from '../block-status.js';
import type { ChildEdge } from '../edge.js';
import { UNUSED_PERMISSIONS } from '../graph.js';
import type { BlockNode } from '../node.js';
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  type Permissions,
} from '../permissions.js';
import { isZero } from '../shaped-requests.js';
import { jsonFilename, PassThroughDriver } from './pass-through.js';

/** Finds a node by name. */
export type NodeLookup = (name: string) => BlockNode | undefined;

/** @param lookup resolves the option `bottom` */
export function createCopyOnReadDriver(lookup: NodeLookup): DriverDefinition {
  return {
    name: 'copy-on-read',
    kind: 'filter',
    children: [{ key: 'file', role: 'filtered', required: true }],
    open(options, context) {
      const child = context.child('file');
      const { bottom } = options;
      if (typeof bottom !== 'string') return new CopyOnReadDriver(child);
      return new CopyOnReadDriver(child, findBottom(lookup, bottom, child));
    },
  };
}

function findBottom(lookup: NodeLookup, name: string, child: ChildEdge): BlockNode {
  const bottom = lookup(name);
  if (bottom === undefined) {
    throw new BlockError('DF_INVALID', `Bottom node '${name}' not found`);
  }
  if (bottom.kind === 'filter') {
    throw new BlockError('DF_INVALID', `Bottom node '${name}' is a filter`);
  }
  for (let node: BlockNode | undefined = child.node; node !== undefined; node = below(node)) {
    if (node === bottom) return bottom;
  }
  throw new BlockError(
    'DF_INVALID',
    `Bottom node '${name}' is not in the backing chain of '${child.node.name}'`,
  );
}

/** The next node down the backing chain, filters included. */
function below(node: BlockNode): BlockNode | undefined {
  for (const edge of node.children.values()) {
    if (edge.role === 'backing' || edge.role === 'filtered') return edge.node;
  }
  return undefined;
}

export class CopyOnReadDriver extends PassThroughDriver {
  readonly #bottom: BlockNode | undefined;
  /** Writes share it; a copy has its range for itself, so that it can't undo a newer write. */
  readonly #lock = new RangeLock();
  #leaving = false;

  constructor(child: ChildEdge, bottom?: BlockNode) {
    super('copy-on-read', child);
    this.#bottom = bottom;
  }

  override get filename(): string {
    const own = this.#bottom === undefined ? {} : { bottom: this.#bottom.name };
    return jsonFilename('copy-on-read', { file: this.child }, own);
  }

  /**
   * Copying needs `write-unchanged`. Nobody may write to the child but through this filter: such a
   * write could be undone by a copy under way. A filter that nobody uses copies nothing.
   */
  childPermissions(_role: ChildRole, parents: Permissions): Permissions {
    const unused = parents.taken === 0 && parents.shared === PERM_ALL;
    if (this.#leaving || unused) return UNUSED_PERMISSIONS;
    const passed = PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE;
    return {
      taken: (parents.taken & passed) | PERM_WRITE_UNCHANGED,
      shared: (parents.shared & passed & ~PERM_WRITE) | PERM_WRITE_UNCHANGED,
    };
  }

  /** The filter is about to be taken out, in a drained section: it asks nothing of its child any more. */
  leave(): void {
    this.#leaving = true;
  }

  override read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    if (buffer.byteLength === 0) return;
    const status = this.#status(offset, buffer.byteLength);
    if (status instanceof Promise || status.length < buffer.byteLength || isBelow(status)) {
      return this.#readInPieces(offset, buffer, flags);
    }
    if ((flags & REQ_PREFETCH) === 0) return this.child.read(offset, buffer, flags);
  }

  override write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return this.#exclusively({ offset, length: buffer.byteLength, shared: true }, () =>
      this.child.write(offset, buffer, flags),
    );
  }

  override writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#exclusively({ offset, length, shared: true }, () =>
      this.child.writeZeroes(offset, length, flags),
    );
  }

  override discard(offset: number, length: number): MaybePromise<void> {
    return this.#exclusively({ offset, length, shared: true }, () =>
      this.child.discard(offset, length),
    );
  }

  async #readInPieces(offset: number, buffer: Buffer, flags: RequestFlags): Promise<void> {
    for (let at = 0; at < buffer.byteLength; ) {
      const run = await this.#runAt(offset + at, buffer.byteLength - at);
      const piece = buffer.subarray(at, at + run.length);
      if (run.below) await this.#copy(offset + at, piece);
      else if ((flags & REQ_PREFETCH) === 0) await this.child.read(offset + at, piece, flags);
      at += run.length;
    }
  }

  /** Reads and stores a range; parts that were written while it waited for the lock are only read. */
  async #copy(offset: number, buffer: Buffer): Promise<void> {
    const length = buffer.byteLength;
    const held = this.#lock.acquire(offset, length, { shared: false });
    const hold = isPromise(held) ? await held : held;
    try {
      const pending = this.child.read(offset, buffer);
      if (pending !== undefined) await pending;
      // Who waited may find that others have stored some of it.
      if (!isPromise(held)) {
        await this.#store(offset, buffer);
        return;
      }
      for (let at = 0; at < length; ) {
        const run = await this.#runAt(offset + at, length - at);
        if (run.below) await this.#store(offset + at, buffer.subarray(at, at + run.length));
        at += run.length;
      }
    } finally {
      hold.release();
    }
  }

  /**
   * The longest prefix of the range that comes from below as a whole, or not, from whichever layers.
   * What is known to be zero is a run of its own, so that it stays zeroes.
   */
  async #runAt(offset: number, lengthMax: number): Promise<{ below: boolean; length: number }> {
    const first = await this.#status(offset, lengthMax);
    let { length } = first;
    while (length < lengthMax) {
      const pending = this.#status(offset + length, lengthMax - length);
      const next = isPromise(pending) ? await pending : pending;
      const alike = isBelow(next) === isBelow(first) && isKnownZero(next) === isKnownZero(first);
      if (!alike) break;
      length += next.length;
    }
    return { below: isBelow(first), length };
  }

  #store(offset: number, data: Buffer): MaybePromise<void> {
    if (isZero(data)) {
      return this.child.writeZeroes(offset, data.byteLength, REQ_WRITE_UNCHANGED);
    }
    return this.child.write(offset, data, REQ_WRITE_UNCHANGED);
  }

  /** Who decides the content: this layer, one below it down to `bottom`, or none of these. */
  #status(offset: number, length: number): MaybePromise<ChainExtent> {
    const base = this.#bottom?.children.get('backing')?.node;
    return chainStatus(this.child.node, offset, length, base);
  }

  #exclusively(
    range: { readonly offset: number; readonly length: number; readonly shared: boolean },
    work: () => MaybePromise<void>,
  ): MaybePromise<void> {
    const held = this.#lock.acquire(range.offset, range.length, { shared: range.shared });
    if (held instanceof Promise) {
      return held.then(async (hold) => {
        try {
          await work();
        } finally {
          hold.release();
        }
      });
    }
    let pending: MaybePromise<void>;
    try {
      pending = work();
    } catch (error) {
      held.release();
      throw error;
    }
    if (pending !== undefined) return pending.finally(() => held.release());
    held.release();
  }
}

/** Content comes from a layer below the top one, which is worth a copy. */
const isBelow = (status: ChainExtent): boolean => status.depth > 1;
const isKnownZero = (status: ChainExtent): boolean => (status.flags & STATUS_ZERO) !== 0;
