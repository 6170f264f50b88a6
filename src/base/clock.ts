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
  startTimer(delayNs, fire) {
    const dueMs = performance.now() + delayNs / NS_PER_MS;
    let timer: NodeJS.Timeout;
    const start = (): void => {
      const delayMs = Math.max(Math.ceil(dueMs - performance.now()), 1);
      timer = delayMs > DELAY_MAX_MS ? setTimeout(start, DELAY_MAX_MS) : setTimeout(fire, delayMs);
    };
    start();
    return () => clearTimeout(timer);
  },
};

/** Milliseconds since 1970, for people; steps when the system's clock is set. */
export function wallClockMs(): number {
  return Date.now();
}
