// SPDX-License-Identifier: MIT
/** The same request to several copies: all are waited for, whatever becomes of each. */
import { isPromise, type MaybePromise } from '../../../base/maybe-promise.js';
import type { RangeHold } from '../../../base/range-lock.js';

/** How one request ended. */
export type Outcome<T> =
  | { readonly failed: false; readonly value: T }
  | { readonly failed: true; readonly error: unknown };

/** Runs `request` for each of `items`, all at once; the outcomes come in the order of the items. */
export function attemptAll<I, T>(
  items: readonly I[],
  request: (item: I, index: number) => MaybePromise<T>,
): MaybePromise<Outcome<T>[]> {
  const done: Outcome<T>[] = [];
  let pending: Promise<void>[] | undefined;
  for (const [index, item] of items.entries()) {
    const outcome = attempt(() => request(item, index));
    if (isPromise(outcome)) {
      pending ??= [];
      pending.push(
        outcome.then((value) => {
          done[index] = value;
        }),
      );
    } else done[index] = outcome;
  }
  return pending === undefined ? done : Promise.all(pending).then(() => done);
}

function attempt<T>(request: () => MaybePromise<T>): MaybePromise<Outcome<T>> {
  try {
    const value = request();
    if (!isPromise(value)) return { failed: false, value };
    return value.then(
      (arrived) => ({ failed: false, value: arrived }),
      (error: unknown) => ({ failed: true, error }),
    );
  } catch (error) {
    return { failed: true, error };
  }
}

/** The errors among outcomes. */
export function errorsOf(outcomes: readonly Outcome<unknown>[]): unknown[] {
  return outcomes.flatMap((outcome) => (outcome.failed ? [outcome.error] : []));
}

/** Runs `work` once the range is held, and releases it when the work has ended. */
export function holding<T>(
  hold: MaybePromise<RangeHold>,
  work: () => MaybePromise<T>,
): MaybePromise<T> {
  if (isPromise(hold)) return hold.then((held) => holding(held, work));
  let result: MaybePromise<T>;
  try {
    result = work();
  } catch (error) {
    hold.release();
    throw error;
  }
  if (isPromise(result)) return result.finally(() => hold.release());
  hold.release();
  return result;
}
