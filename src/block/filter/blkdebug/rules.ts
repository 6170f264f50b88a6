// SPDX-License-Identifier: MIT
/** The rules of a blkdebug node: which event arms which error or changes the state. */
import { constants } from 'node:os';
import { type BlockError, fromSystemError } from '../../../base/errors.js';

/**
 * The events that a blkdebug node raises itself: `none` when it is opened, the others before (`pwritev_done`:
 * after) a request is passed on to the image. Events inside formats are not among them.
 */
export const BLKDEBUG_EVENTS = [
  'none',
  'read_aio',
  'write_aio',
  'pwritev',
  'pwritev_zero',
  'pwritev_done',
  'flush_to_os',
  'flush_to_disk',
] as const;
export type BlkdebugEvent = (typeof BLKDEBUG_EVENTS)[number];

export type BlkdebugIoType =
  | 'read'
  | 'write'
  | 'write-zeroes'
  | 'discard'
  | 'flush'
  | 'block-status';

const IO_TYPES_DEFAULT: ReadonlySet<string> = new Set([
  'read',
  'write',
  'write-zeroes',
  'discard',
  'flush',
]);

const SECTOR = 512;
const STATE_ANY = 0;
const STATE_FIRST = 1;

/** Wire spelling. @see qapi BlkdebugInjectErrorOptions */
export interface InjectErrorOptions {
  readonly event: BlkdebugEvent;
  readonly state?: number;
  readonly iotype?: BlkdebugIoType;
  readonly errno?: number;
  readonly sector?: number;
  readonly once?: boolean;
  readonly immediately?: boolean;
}

/** Wire spelling. @see qapi BlkdebugSetStateOptions */
export interface SetStateOptions {
  readonly event: BlkdebugEvent;
  readonly state?: number;
  readonly new_state: number;
}

/** An error that a request has to end with. */
export interface InjectedError {
  readonly error: BlockError;
  /** Fail within the call; otherwise on a later turn of the event loop. */
  readonly immediately: boolean;
}

export interface CheckedRequest {
  readonly type: BlkdebugIoType;
  readonly offset: number;
  readonly length: number;
}

/**
 * An event arms the error rules that fit it and the state, in place of those armed before (none fit:
 * those stay armed). An armed rule fails each request that it matches until others are armed.
 */
export class BlkdebugRules {
  #injections: readonly InjectErrorOptions[];
  readonly #changes: readonly SetStateOptions[];
  #armed: readonly InjectErrorOptions[] = [];
  #state = STATE_FIRST;

  constructor(injections: readonly InjectErrorOptions[], changes: readonly SetStateOptions[]) {
    this.#injections = injections;
    this.#changes = changes;
    this.raise('none');
  }

  raise(event: BlkdebugEvent): void {
    if (this.#injections.length === 0) return;
    const state = this.#state;
    const fits = (rule: { readonly event: string; readonly state?: number }): boolean =>
      rule.event === event && [undefined, STATE_ANY, state].includes(rule.state);
    const armed = this.#injections.filter(fits);
    if (armed.length > 0) this.#armed = armed;
    const change = this.#changes.find(fits);
    if (change !== undefined) this.#state = change.new_state;
  }

  /** The error that the request must fail with, if any. */
  check(request: CheckedRequest): InjectedError | undefined {
    const rule = this.#armed.find((candidate) => matches(candidate, request));
    if (rule === undefined) return undefined;
    const errno = rule.errno ?? constants.errno.EIO;
    if (errno === 0) return undefined;
    if (rule.once === true) {
      this.#armed = this.#armed.filter((other) => other !== rule);
      this.#injections = this.#injections.filter((other) => other !== rule);
    }
    return { error: injected(errno, request), immediately: rule.immediately === true };
  }
}

function matches(rule: InjectErrorOptions, request: CheckedRequest): boolean {
  const rightType =
    rule.iotype === undefined ? IO_TYPES_DEFAULT.has(request.type) : rule.iotype === request.type;
  if (!rightType) return false;
  if (rule.sector === undefined || rule.sector === -1) return true;
  const at = rule.sector * SECTOR;
  return at >= request.offset && at < request.offset + request.length;
}

const ERRNO_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(constants.errno).map(([name, value]) => [value, name]),
);

function injected(errno: number, { type, offset, length }: CheckedRequest): BlockError {
  const code = ERRNO_NAMES.get(errno) ?? `errno ${errno}`;
  const cause = Object.assign(new Error(`injected ${code}`), { code });
  return fromSystemError(cause, `blkdebug: ${type} of ${length} bytes at ${offset} failed`, {
    op: type,
    offset,
    length,
  });
}
