// SPDX-License-Identifier: MIT
/** Filter that fails requests on purpose and narrows limits, for tests. @see qapi BlockdevOptionsBlkdebug */
import { BlockError } from '../../../base/errors.js';
import type { MaybePromise } from '../../../base/maybe-promise.js';
import type {
  BlockLimits,
  ChildRole,
  DriverDefinition,
  DriverOptions,
  Extent,
  RequestFlags,
} from '../../block-driver.js';
import type { ChildEdge } from '../../edge.js';
import type { NodeOptions } from '../../node-options.js';
import { filterPermissions, PERMISSION_NAMES, type Permissions } from '../../permissions.js';
import { jsonFilename, lengthInside, PassThroughDriver, readPadded } from '../pass-through.js';
import {
  BLKDEBUG_EVENTS,
  BlkdebugRules,
  type CheckedRequest,
  type InjectErrorOptions,
  type SetStateOptions,
} from './rules.js';

const LIMIT_MAX = 2 ** 31 - 1;
/** What the base of all nodes takes; the rest is blkdebug's own. */
const OWN_OPTIONS = [
  'align',
  'max-transfer',
  'opt-write-zero',
  'max-write-zero',
  'opt-discard',
  'max-discard',
  'inject-error',
  'set-state',
  'take-child-perms',
  'unshare-child-perms',
] as const;

export const blkdebugDefinition: DriverDefinition = {
  name: 'blkdebug',
  kind: 'filter',
  children: [{ key: 'image', role: 'filtered', required: true }],
  open: (options, context) => new BlkdebugDriver(context.child('image'), options),
};

class BlkdebugDriver extends PassThroughDriver {
  readonly #options: DriverOptions;
  readonly #rules: BlkdebugRules;
  readonly #overrides: Partial<BlockLimits>;
  readonly #take: number;
  readonly #unshare: number;

  constructor(child: ChildEdge, options: DriverOptions) {
    super('blkdebug', child);
    this.#options = options;
    this.#overrides = parseLimits(options, child.limits.requestAlignment);
    this.#take = parsePermissions(options['take-child-perms']);
    this.#unshare = parsePermissions(options['unshare-child-perms']);
    this.#rules = parseRules(options);
  }

  override get limits(): BlockLimits {
    return { ...this.child.limits, ...this.#overrides };
  }

  override get filename(): string {
    const own = OWN_OPTIONS.filter((key) => this.#options[key] !== undefined);
    const below = this.child.node.driver.filename;
    if (own.length === 0 && below !== '' && !below.startsWith('json:')) return `blkdebug::${below}`;
    const options = Object.fromEntries(own.map((key) => [key, this.#options[key]]));
    return jsonFilename('blkdebug', { image: this.child }, options);
  }

  childPermissions(_role: ChildRole, parents: Permissions): Permissions {
    const { taken, shared } = filterPermissions(parents);
    return { taken: taken | this.#take, shared: shared & ~this.#unshare };
  }

  /** Options stay as they are: new ones would lose the rules' state. @throws BlockError DF_INVALID */
  prepareReopen({ given }: NodeOptions): void {
    for (const key of OWN_OPTIONS) {
      if (JSON.stringify(given[key]) === JSON.stringify(this.#options[key])) continue;
      throw new BlockError('DF_INVALID', `Cannot change the option '${key}'`);
    }
  }

  override read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    this.#rules.raise('read_aio');
    const request: CheckedRequest = { type: 'read', offset, length: buffer.byteLength };
    return this.#unlessInjected(request, () => readPadded(this.child, offset, buffer, flags));
  }

  override write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    this.#rules.raise('pwritev');
    this.#rules.raise('write_aio');
    const length = lengthInside(this.child, offset, buffer.byteLength);
    const request: CheckedRequest = { type: 'write', offset, length: buffer.byteLength };
    const pending = this.#unlessInjected(request, () =>
      this.child.write(offset, buffer.subarray(0, length), flags),
    );
    return this.#written(pending);
  }

  override writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const { requestAlignment = 1, writeZeroesAlignment = 1 } = this.#overrides;
    if (length < Math.max(requestAlignment, writeZeroesAlignment)) {
      throw new BlockError('DF_NOT_SUPPORTED', `blkdebug: ${length} bytes are too few to zero`);
    }
    this.#rules.raise('pwritev_zero');
    const inside = lengthInside(this.child, offset, length);
    const pending = this.#unlessInjected({ type: 'write-zeroes', offset, length }, () =>
      this.child.writeZeroes(offset, inside, flags),
    );
    return this.#written(pending);
  }

  override discard(offset: number, length: number): MaybePromise<void> {
    const inside = lengthInside(this.child, offset, length);
    return this.#unlessInjected({ type: 'discard', offset, length }, () =>
      this.child.discard(offset, inside),
    );
  }

  flush(): MaybePromise<void> {
    this.#rules.raise('flush_to_os');
    this.#rules.raise('flush_to_disk');
    return this.#unlessInjected({ type: 'flush', offset: 0, length: 0 }, () => undefined);
  }

  override blockStatus(offset: number, length: number): MaybePromise<Extent> {
    return this.#unlessInjected({ type: 'block-status', offset, length }, () =>
      super.blockStatus(offset, length),
    );
  }

  #unlessInjected<T>(request: CheckedRequest, pass: () => MaybePromise<T>): MaybePromise<T> {
    const injected = this.#rules.check(request);
    if (injected === undefined) return pass();
    if (injected.immediately) throw injected.error;
    return new Promise((_resolve, reject) => setImmediate(() => reject(injected.error)));
  }

  #written(pending: MaybePromise<void>): MaybePromise<void> {
    if (pending !== undefined) return pending.finally(() => this.#rules.raise('pwritev_done'));
    this.#rules.raise('pwritev_done');
  }
}

function parseRules(options: DriverOptions): BlkdebugRules {
  const injections = (options['inject-error'] ?? []) as readonly InjectErrorOptions[];
  const changes = (options['set-state'] ?? []) as readonly SetStateOptions[];
  const known: readonly string[] = BLKDEBUG_EVENTS;
  for (const { event } of [...injections, ...changes]) {
    if (known.includes(event)) continue;
    throw new BlockError('DF_INVALID', `Parameter 'event' does not accept value '${event}'`);
  }
  return new BlkdebugRules(injections, changes);
}

function parsePermissions(names: unknown): number {
  const wanted = (names ?? []) as readonly string[];
  return PERMISSION_NAMES.reduce(
    (mask, [bit, name]) => (wanted.includes(name) ? mask | bit : mask),
    0,
  );
}

/** The limits that were asked for. @throws BlockError DF_INVALID for one that can't be kept */
function parseLimits(options: DriverOptions, childAlignment: number): Partial<BlockLimits> {
  const align = size(options, 'align');
  if (align !== 0 && (align & (align - 1)) !== 0) throw cannotMeet('align', align);
  const unit = Math.max(align, childAlignment);
  const maxTransfer = size(options, 'max-transfer', unit);
  const zeroAlign = size(options, 'opt-write-zero', unit);
  const maxZero = size(options, 'max-write-zero', Math.max(zeroAlign, unit));
  const discardAlign = size(options, 'opt-discard', unit);
  const maxDiscard = size(options, 'max-discard', Math.max(discardAlign, unit));
  return {
    ...(align !== 0 ? { requestAlignment: align } : {}),
    ...(maxTransfer !== 0 ? { maxTransfer } : {}),
    ...(zeroAlign !== 0 ? { writeZeroesAlignment: zeroAlign } : {}),
    ...(maxZero !== 0 ? { maxWriteZeroes: maxZero } : {}),
    ...(discardAlign !== 0 ? { discardAlignment: discardAlign } : {}),
    ...(maxDiscard !== 0 ? { maxDiscard } : {}),
  };
}

/** An option in bytes that is 0 (not given) or a multiple of `unit` below 2 GiB. */
function size(options: DriverOptions, key: (typeof OWN_OPTIONS)[number], unit = 1): number {
  const value = (options[key] as number | undefined) ?? 0;
  if (value < 0 || value >= LIMIT_MAX || value % unit !== 0) throw cannotMeet(key, value);
  return value;
}

const cannotMeet = (key: string, value: number): BlockError =>
  new BlockError('DF_INVALID', `Cannot meet constraints with ${key} ${value}`);
