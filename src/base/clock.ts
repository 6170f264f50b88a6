// SPDX-License-Identifier: MIT
/** The source of time; tests put one in its place that they turn themselves. */

export interface Clock {
  /** Nanoseconds since any fixed moment; never steps back. */
  nowNs(): number;
  /** Calls `fire` once, after at least `delayNs`. @returns a function that calls it off */
  startTimer(delayNs: number, fire: () => void): () => void;
}

const NS_PER_MS = 1e6;
/** Longest delay that setTimeout keeps, milliseconds; longer ones fire early and are started again. */
const DELAY_MAX_MS = 2 ** 31 - 1;

export const systemClock: Clock = {
  nowNs: () => performance.now() * NS_PER_MS,
  startTimer: (delayNs, fire) => startTimeout(delayNs / NS_PER_MS, fire),
};

/**
 * `setTimeout` for delays that a user chooses: Node's fires at once when it is told more than 24 days.
 * @param options.ref false: it does not keep the process alive
 * @returns a function that calls it off
 */
export function startTimeout(
  delayMs: number,
  fire: () => void,
  { ref = true }: { readonly ref?: boolean } = {},
): () => void {
  const dueMs = performance.now() + delayMs;
  let timer: NodeJS.Timeout;
  const start = (): void => {
    const leftMs = Math.max(Math.ceil(dueMs - performance.now()), 1);
    timer = leftMs > DELAY_MAX_MS ? setTimeout(start, DELAY_MAX_MS) : setTimeout(fire, leftMs);
    if (!ref) timer.unref();
  };
  start();
  return () => clearTimeout(timer);
}

/** Milliseconds since 1970, for people; steps when the system's clock is set. */
export function wallClockMs(): number {
  return Date.now();
}
