// SPDX-License-Identifier: MIT
/** Limits that several nodes share, each getting its turn. @see throttle.txt */

import { type Clock, systemClock } from '../../base/clock.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import { LeakyBucket } from './leaky-bucket.js';
import {
  changeLimits,
  limitsAnything,
  type ThrottleConfig,
  type ThrottleLimits,
  UNLIMITED,
} from './throttle-config.js';

export type Direction = 'read' | 'write';
const DIRECTIONS: readonly Direction[] = ['read', 'write'];

interface Waiting {
  readonly length: number;
  readonly proceed: () => void;
}

/** The two buckets of bytes and two of operations that one direction fills; only those with a limit. */
interface Buckets {
  readonly bytes: readonly LeakyBucket[];
  readonly operations: readonly LeakyBucket[];
}

/** One node's place in a group. */
export class ThrottleMember {
  readonly queues: Readonly<Record<Direction, Waiting[]>> = { read: [], write: [] };
  #unlimited = 0;

  constructor(readonly group: ThrottleGroup) {}

  /** True while the node is being drained: nothing waits. */
  get unlimited(): boolean {
    return this.#unlimited > 0;
  }

  /**
   * Asks for a request of `length` bytes to pass: at once where it may, else a promise for the moment
   * when it may. Requests of one direction pass in the order in which they asked.
   */
  admit(direction: Direction, length: number): MaybePromise<void> {
    return this.group.admit(this, direction, length);
  }

  /** From now on nothing waits; what waits already proceeds. May be nested. */
  suspendLimits(): void {
    this.#unlimited++;
    this.group.release(this);
  }

  resumeLimits(): void {
    this.#unlimited--;
  }

  /** Leaves the group; what still waits proceeds. */
  leave(): void {
    this.group.leave(this);
  }
}

export class ThrottleGroup {
  readonly name: string;
  readonly #clock: Clock;
  readonly #members: ThrottleMember[] = [];
  /** Whose turn was last, per direction. */
  readonly #turn: Record<Direction, number> = { read: 0, write: 0 };
  readonly #waiting: Record<Direction, number> = { read: 0, write: 0 };
  #config = UNLIMITED;
  #limited = false;
  #distinct: readonly LeakyBucket[] = [];
  #buckets: Record<Direction, Buckets> = { read: NO_BUCKETS, write: NO_BUCKETS };
  #lastLeakNs: number;
  #cancelTimer: (() => void) | undefined;

  /** @throws BlockError DF_INVALID for limits that don't go together */
  constructor(name: string, limits: ThrottleLimits = {}, clock: Clock = systemClock) {
    this.name = name;
    this.#clock = clock;
    this.#lastLeakNs = clock.nowNs();
    this.setLimits(limits);
  }

  /** All limits as they are. */
  get limits(): ThrottleConfig {
    return this.#config;
  }

  /** Nodes that belong to the group. */
  get memberCount(): number {
    return this.#members.length;
  }

  /**
   * Changes the limits that are named. Buckets start empty again; who waits is looked at anew.
   * @throws BlockError DF_INVALID; nothing has changed then
   */
  setLimits(limits: ThrottleLimits): void {
    this.#config = changeLimits(this.#config, limits);
    this.#limited = limitsAnything(this.#config);
    this.#fillBuckets();
    this.#lastLeakNs = this.#clock.nowNs();
    this.#pump();
  }

  join(): ThrottleMember {
    const member = new ThrottleMember(this);
    this.#members.push(member);
    return member;
  }

  /** Called by a member. */
  leave(member: ThrottleMember): void {
    const at = this.#members.indexOf(member);
    if (at < 0) return;
    this.release(member);
    this.#members.splice(at, 1);
    this.#pump();
  }

  /** Called by a member. */
  admit(member: ThrottleMember, direction: Direction, length: number): MaybePromise<void> {
    if (!this.#limited) return;
    this.#leak();
    const pass =
      member.unlimited || (this.#waiting[direction] === 0 && this.#waitNs(direction) === 0);
    if (pass) {
      this.#account(direction, length);
      return;
    }
    return new Promise((proceed) => {
      member.queues[direction].push({ length, proceed });
      this.#waiting[direction]++;
      this.#armTimer();
    });
  }

  /** Lets all requests of one member proceed. Called by the member. */
  release(member: ThrottleMember): void {
    for (const direction of DIRECTIONS) {
      while (this.#proceedNext(member, direction));
    }
    this.#armTimer();
  }

  /** Lets those proceed that may by now, in turn, and sets the timer for the next. */
  #pump(): void {
    this.#leak();
    for (const direction of DIRECTIONS) {
      while (this.#waiting[direction] > 0 && this.#waitNs(direction) === 0) {
        this.#proceedNext(this.#nextMember(direction), direction);
      }
    }
    this.#armTimer();
  }

  /** The first member with requests after the one that had its turn last. */
  #nextMember(direction: Direction): ThrottleMember | undefined {
    const count = this.#members.length;
    for (let step = 1; step <= count; step++) {
      const at = (this.#turn[direction] + step) % count;
      const member = this.#members[at];
      if (member === undefined || member.queues[direction].length === 0) continue;
      this.#turn[direction] = at;
      return member;
    }
    return undefined;
  }

  #proceedNext(member: ThrottleMember | undefined, direction: Direction): boolean {
    const next = member?.queues[direction].shift();
    if (next === undefined) return false;
    this.#waiting[direction]--;
    this.#account(direction, next.length);
    next.proceed();
    return true;
  }

  /** One timer for the group: for the direction that may go first. None when nobody waits. */
  #armTimer(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    let delayNs = Number.POSITIVE_INFINITY;
    for (const direction of DIRECTIONS) {
      if (this.#waiting[direction] > 0) delayNs = Math.min(delayNs, this.#waitNs(direction));
    }
    if (delayNs === Number.POSITIVE_INFINITY) return;
    this.#cancelTimer = this.#clock.startTimer(delayNs, () => this.#pump());
  }

  #leak(): void {
    const now = this.#clock.nowNs();
    const elapsed = now - this.#lastLeakNs;
    if (elapsed <= 0) return;
    this.#lastLeakNs = now;
    for (const bucket of this.#distinct) bucket.leak(elapsed);
  }

  #waitNs(direction: Direction): number {
    let wait = 0;
    const { bytes, operations } = this.#buckets[direction];
    for (const bucket of bytes) wait = Math.max(wait, bucket.waitNs());
    for (const bucket of operations) wait = Math.max(wait, bucket.waitNs());
    return wait;
  }

  /** A request longer than `iops-size` counts as several operations, or a fraction more than one. */
  #account(direction: Direction, length: number): void {
    const size = this.#config['iops-size'];
    const operations = size > 0 && length > size ? length / size : 1;
    const buckets = this.#buckets[direction];
    for (const bucket of buckets.bytes) bucket.pour(length);
    for (const bucket of buckets.operations) bucket.pour(operations);
  }

  #fillBuckets(): void {
    const made: LeakyBucket[] = [];
    const bucket = (name: 'bps' | 'iops', of: Direction | 'total'): LeakyBucket[] => {
      const key = `${name}-${of}` as const;
      const average = this.#config[key];
      if (average === 0) return [];
      const max = this.#config[`${key}-max`];
      const burstSeconds = this.#config[`${key}-max-length`];
      const one = new LeakyBucket({ average, max, burstSeconds });
      made.push(one);
      return [one];
    };
    const bytes = bucket('bps', 'total');
    const operations = bucket('iops', 'total');
    const both = (direction: Direction): Buckets => ({
      bytes: [...bytes, ...bucket('bps', direction)],
      operations: [...operations, ...bucket('iops', direction)],
    });
    this.#buckets = { read: both('read'), write: both('write') };
    this.#distinct = made;
  }
}

const NO_BUCKETS: Buckets = { bytes: [], operations: [] };
