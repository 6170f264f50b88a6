// SPDX-License-Identifier: MIT
/** Filter that slows requests down to the limits of a `throttle-group`. @see qapi BlockdevOptionsThrottle */
import { BlockError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { DriverDefinition, RequestFlags } from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import type { NodeOptions } from '../node-options.js';
import type { ThrottleGroup, ThrottleMember } from '../throttle/throttle-group.js';
import { jsonFilename, PassThroughDriver } from './pass-through.js';

export type ThrottleGroupLookup = (name: string) => ThrottleGroup | undefined;

/** @param lookup finds the `throttle-group` object of a name */
export function createThrottleDriver(lookup: ThrottleGroupLookup): DriverDefinition {
  return {
    name: 'throttle',
    kind: 'filter',
    children: [{ key: 'file', role: 'filtered', required: true }],
    open: (options, context) =>
      new ThrottleDriver(context.child('file'), findGroup(lookup, options), lookup),
  };
}

function findGroup(
  lookup: ThrottleGroupLookup,
  options: Readonly<Record<string, unknown>>,
): ThrottleGroup {
  const name = options['throttle-group'];
  if (typeof name !== 'string') {
    throw new BlockError('DF_INVALID', 'Please specify a throttle group');
  }
  const group = lookup(name);
  if (group === undefined) {
    throw new BlockError('DF_INVALID', `Throttle group '${name}' does not exist`);
  }
  return group;
}

class ThrottleDriver extends PassThroughDriver {
  readonly #lookup: ThrottleGroupLookup;
  #member: ThrottleMember;
  #next: ThrottleGroup | undefined;

  constructor(child: ChildEdge, group: ThrottleGroup, lookup: ThrottleGroupLookup) {
    super('throttle', child);
    this.#lookup = lookup;
    this.#member = group.join();
  }

  override get filename(): string {
    return jsonFilename(
      'throttle',
      { file: this.child },
      { 'throttle-group': this.#member.group.name },
    );
  }

  override read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    const turn = this.#member.admit('read', buffer.byteLength);
    if (turn === undefined) return this.child.read(offset, buffer, flags);
    return turn.then(() => this.child.read(offset, buffer, flags));
  }

  override write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    const turn = this.#member.admit('write', buffer.byteLength);
    if (turn === undefined) return this.child.write(offset, buffer, flags);
    return turn.then(() => this.child.write(offset, buffer, flags));
  }

  override writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const turn = this.#member.admit('write', length);
    if (turn === undefined) return this.child.writeZeroes(offset, length, flags);
    return turn.then(() => this.child.writeZeroes(offset, length, flags));
  }

  override discard(offset: number, length: number): MaybePromise<void> {
    const turn = this.#member.admit('write', length);
    if (turn === undefined) return this.child.discard(offset, length);
    return turn.then(() => this.child.discard(offset, length));
  }

  drainBegin(): void {
    this.#member.suspendLimits();
  }

  drainEnd(): void {
    this.#member.resumeLimits();
  }

  childReplaced(_key: string, edge: ChildEdge): void {
    this.child = edge;
  }

  prepareReopen(options: NodeOptions): void {
    this.#next = findGroup(this.#lookup, options.given);
  }

  /** Runs drained, so the new membership starts with its limits suspended too. */
  commitReopen(): void {
    const next = this.#next;
    this.#next = undefined;
    if (next === undefined || next === this.#member.group) return;
    const old = this.#member;
    this.#member = next.join();
    if (old.unlimited) this.#member.suspendLimits();
    old.leave();
  }

  abortReopen(): void {
    this.#next = undefined;
  }

  override close(): void {
    this.#member.leave();
  }
}
