// SPDX-License-Identifier: MIT
/** Time as throttling sees it; tests have one that they turn themselves. */
export interface Clock {
  /** Nanoseconds since any fixed moment; never steps back. */
  nowNs(): number;
  /** Calls `fire` once, after at least `delayNs`. @returns a function that calls it off */
  startTimer(delayNs: number, fire: () => void): () => void;
}

const NS_PER_MS = 1e6;
/** Longest delay that setTimeout keeps; a timer that fires early is started again. */
const DELAY_MAX_MS = 2 ** 31 - 1;

export const systemClock: Clock = {
  nowNs: () => performance.now() * NS_PER_MS,
  startTimer(delayNs, fire) {
    const delayMs = Math.min(Math.max(Math.ceil(delayNs / NS_PER_MS), 1), DELAY_MAX_MS);
    const timer = setTimeout(fire, delayMs);
    return () => clearTimeout(timer);
  },
};
