// SPDX-License-Identifier: MIT
/** How fast a job has been of late. */

/** What happened before this is old news, milliseconds. */
const WINDOW_MS = 8_000;
/** Time between two samples, milliseconds: bounds how many there are. */
const STEP_MS = 250;

interface Sample {
  readonly at: number;
  readonly done: number;
}

export class ProgressMeter {
  readonly #now: () => number;
  /** The oldest is just outside of the window, or the first that there was. */
  readonly #samples: Sample[];

  /** @param now milliseconds, never going back */
  constructor(now: () => number) {
    this.#now = now;
    this.#samples = [{ at: now(), done: 0 }];
  }

  /** @param done bytes in all */
  note(done: number): void {
    const at = this.#now();
    const last = this.#samples[this.#samples.length - 1];
    if (last !== undefined && at - last.at < STEP_MS) return;
    this.#samples.push({ at, done });
    this.#dropOld(at);
  }

  /** Bytes a second; 0 before anything can be said. @param done bytes in all, as of now */
  rate(done: number): number {
    const at = this.#now();
    this.#dropOld(at);
    const [first] = this.#samples;
    if (first === undefined || at - first.at < STEP_MS) return 0;
    return Math.max(0, Math.round(((done - first.done) * 1000) / (at - first.at)));
  }

  #dropOld(at: number): void {
    for (;;) {
      const next = this.#samples[1];
      if (next === undefined || at - next.at < WINDOW_MS) return;
      this.#samples.shift();
    }
  }
}
