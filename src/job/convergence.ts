// SPDX-License-Identifier: MIT
/** Does a copy get ahead of the writers, or do they write as fast as it copies? */

/** Time between samples, milliseconds. */
const SAMPLE_MS = 250;
/** Time over which rates are compared, milliseconds. */
const WINDOW_MS = 3_000;
/** Who copies less than this many times what is written gains next to nothing. */
const GAIN_MIN = 1.1;

interface Sample {
  readonly at: number;
  readonly copied: number;
  readonly remaining: number;
}

/** Bytes a second over the last few seconds. */
export interface CopyRates {
  /** At which writers change what had been copied, or was equal. */
  readonly dirtyRate: number;
  readonly copyRate: number;
  /** Bytes that differ now. */
  readonly remaining: number;
}

/** Fed with samples of one copy; everything in bytes. */
export class Convergence {
  readonly #small: number;
  readonly #nowMs: () => number;
  #samples: Sample[] = [];

  /** @param small bytes: when no more than this differs, the copy has caught up */
  constructor(small: number, nowMs: () => number) {
    this.#small = small;
    this.#nowMs = nowMs;
  }

  /** The copy was held, or works otherwise than before: what was seen means nothing now. */
  reset(): void {
    this.#samples = [];
  }

  /**
   * @param copied bytes copied since the job began
   * @param remaining bytes that differ now
   * @returns 'unknown' until a whole window has been seen; 'gaining'; or the rates of a window in
   *   which writers kept up with the copy all the time
   */
  sample(copied: number, remaining: number): 'unknown' | 'gaining' | CopyRates {
    const now = this.#nowMs();
    this.#samples.push({ at: now, copied, remaining });
    // The first that is kept is the last that is a window old.
    while ((this.#samples[1]?.at ?? now) <= now - WINDOW_MS) this.#samples.shift();
    const [first] = this.#samples;
    if (first === undefined || first.at > now - WINDOW_MS) return 'unknown';
    const copiedSince = copied - first.copied;
    const dirtied = remaining - first.remaining + copiedSince;
    const caughtUp = this.#samples.some((sample) => sample.remaining <= this.#small);
    if (caughtUp || dirtied <= 0 || copiedSince >= dirtied * GAIN_MIN) return 'gaining';
    const seconds = (now - first.at) / 1000;
    const perSecond = (bytes: number): number => Math.round(bytes / seconds);
    return { dirtyRate: perSecond(dirtied), copyRate: perSecond(copiedSince), remaining };
  }
}

export interface ConvergenceWatchOptions {
  /** Bytes, as in Convergence. */
  readonly small: number;
  /** False while there is nothing to be judged: the copy is held, or writers are. */
  readonly atWork: () => boolean;
  /** Bytes copied since the job began, and bytes that differ now. */
  readonly progress: () => { readonly copied: number; readonly remaining: number };
  /** Once each time that a copy that gained before does so no more. */
  readonly lost: (rates: CopyRates) => void;
}

/** Watches a copy at work; returns what ends that. */
export function watchConvergence({
  small,
  atWork,
  progress,
  lost,
}: ConvergenceWatchOptions): () => void {
  const convergence = new Convergence(small, () => performance.now());
  let told = false;
  const timer = setInterval(() => {
    if (!atWork()) {
      convergence.reset();
      return;
    }
    const { copied, remaining } = progress();
    const found = convergence.sample(copied, remaining);
    if (found === 'unknown') return;
    if (found === 'gaining') told = false;
    else if (!told) {
      told = true;
      lost(found);
    }
  }, SAMPLE_MS);
  timer.unref();
  return () => clearInterval(timer);
}
