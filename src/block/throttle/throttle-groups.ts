// SPDX-License-Identifier: MIT
/** The `throttle-group` objects by name. @see qapi ThrottleGroupProperties */

import { type Clock, systemClock } from '../../base/clock.js';
import { BlockError } from '../../base/errors.js';
import { LIMIT_NAMES, type LimitName, type ThrottleLimits } from './throttle-config.js';
import { ThrottleGroup } from './throttle-group.js';

/** Properties of the QOM object: `limits` as a whole, and each limit with `x-` before its name. */
export type ThrottleProperties = Readonly<
  { limits?: ThrottleLimits } & Partial<Record<`x-${LimitName}`, number>>
>;

export class ThrottleGroups {
  readonly #groups = new Map<string, ThrottleGroup>();
  readonly #clock: Clock;

  constructor(clock: Clock = systemClock) {
    this.#clock = clock;
  }

  /** @throws BlockError DF_EXISTS, DF_INVALID; no group has been made then */
  add(name: string, properties: ThrottleProperties = {}): ThrottleGroup {
    if (this.#groups.has(name)) {
      throw new BlockError('DF_EXISTS', 'A group with this name already exists');
    }
    const limits: Partial<Record<LimitName, number>> = {};
    for (const limit of LIMIT_NAMES) {
      const value = properties[`x-${limit}`];
      if (value === undefined) continue;
      if (value < 0) throw new BlockError('DF_INVALID', 'Property values cannot be negative');
      limits[limit] = value;
    }
    const group = new ThrottleGroup(name, { ...limits, ...properties.limits }, this.#clock);
    this.#groups.set(name, group);
    return group;
  }

  find(name: string): ThrottleGroup | undefined {
    return this.#groups.get(name);
  }

  get all(): ThrottleGroup[] {
    return [...this.#groups.values()];
  }

  /** @throws BlockError DF_NOT_FOUND; DF_IN_USE while nodes belong to it */
  remove(name: string): void {
    const group = this.#groups.get(name);
    if (group === undefined) throw new BlockError('DF_NOT_FOUND', `object '${name}' not found`);
    if (group.memberCount > 0) {
      throw new BlockError('DF_IN_USE', `object '${name}' is in use, can not be deleted`);
    }
    this.#groups.delete(name);
  }
}

/**
 * `qom-get` on a group: `limits`, or a limit as `x-` and its name.
 * @returns undefined for a property that there is not
 */
export function getThrottleProperty(
  group: ThrottleGroup,
  property: string,
): number | ThrottleLimits | undefined {
  if (property === 'limits') return group.limits;
  const limit = LIMIT_NAMES.find((name) => property === `x-${name}`);
  return limit === undefined ? undefined : group.limits[limit];
}

/**
 * `qom-set` on a group: `limits` only, since single limits can't be checked against each other.
 * @param value validated against ThrottleLimits when the property is `limits`
 * @throws BlockError DF_INVALID
 */
export function setThrottleProperty(
  group: ThrottleGroup,
  property: string,
  value: ThrottleLimits,
): void {
  if (property !== 'limits') {
    throw new BlockError('DF_INVALID', 'Property cannot be set after initialization');
  }
  group.setLimits(value);
}
