// SPDX-License-Identifier: MIT
/**
 * Value or promise: what every block operation returns, so that work that needs no waiting
 * costs no promise. Test with `isPromise` and await only what is one.
 */
export type MaybePromise<T> = T | Promise<T>;

/** True when `value` has to be waited for. */
export function isPromise<T>(value: T | Promise<T>): value is Promise<T> {
  return value instanceof Promise;
}

/** Runs `next` on the value now, or when it arrives. */
export function chain<T, U>(
  value: MaybePromise<T>,
  next: (value: T) => MaybePromise<U>,
): MaybePromise<U> {
  return value instanceof Promise ? value.then(next) : next(value);
}
