// SPDX-License-Identifier: MIT
/** The time between the loss of the last connection and its return. */
import { startTimeout } from '../../base/clock.js';
import { BlockError, toError } from '../../base/errors.js';
import { NBD_RECONNECT_PAUSE_MAX_MS, NBD_RECONNECT_PAUSE_MIN_MS } from '../../base/limits.js';
import type { NbdConnection } from './connection.js';

/** The server is back, but with something else: trying again is no use. */
export class ExportChangedError extends BlockError {}

export interface OutageOptions {
  /** One attempt. Throws ExportChangedError when there is no point in more. */
  readonly attempt: (signal: AbortSignal) => Promise<NbdConnection>;
  /** How long requests wait, milliseconds. */
  readonly windowMs: number;
  /** Before the first attempt, milliseconds. */
  readonly pauseMs: number;
  readonly onBack: (connection: NbdConnection) => void;
  /** The time is over; attempts go on. */
  readonly onExpired: () => void;
  readonly onHopeless: (error: ExportChangedError) => void;
}

/** Waits; ends early, without an error, when the signal aborts. */
export function pause(ms: number, signal: AbortSignal, options: { ref: boolean }): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    if (!options.ref) timer.unref();
    if (signal.aborted) done();
    else signal.addEventListener('abort', done, { once: true });
  });
}

/** Tries again and again until it succeeds, is hopeless, or is ended. */
export class Outage {
  readonly #options: OutageOptions;
  readonly #controller = new AbortController();
  #stopTimer: (() => void) | undefined;
  #waiting: boolean;
  /** Why the last attempt failed. */
  lastError: Error | undefined;

  constructor(options: OutageOptions) {
    this.#options = options;
    this.#waiting = options.windowMs > 0;
  }

  /** True while requests should wait for the server's return. */
  get waiting(): boolean {
    return this.#waiting;
  }

  start(): void {
    if (this.#waiting) {
      this.#stopTimer = startTimeout(this.#options.windowMs, () => this.expire());
    } else this.#options.onExpired();
    void this.#run();
  }

  /** Requests wait no longer. */
  expire(): void {
    if (!this.#waiting) return;
    this.#waiting = false;
    this.#stopTimer?.();
    this.#options.onExpired();
  }

  /** No more attempts; no callback comes any more. */
  end(): void {
    this.#stopTimer?.();
    this.#waiting = false;
    this.#controller.abort(new BlockError('DF_CANCELLED', 'the NBD client was closed'));
  }

  async #run(): Promise<void> {
    const { signal } = this.#controller;
    let { pauseMs } = this.#options;
    while (!signal.aborted) {
      if (pauseMs > 0) await pause(pauseMs, signal, { ref: this.#waiting });
      if (signal.aborted) return;
      try {
        const connection = await this.#options.attempt(signal);
        if (!signal.aborted && !connection.isClosed) {
          this.#stopTimer?.();
          this.#options.onBack(connection);
          return;
        }
        connection.close();
      } catch (error) {
        if (signal.aborted) return;
        this.lastError = toError(error);
        if (error instanceof ExportChangedError) {
          this.end();
          this.#options.onHopeless(error);
          return;
        }
      }
      pauseMs = nextPause(pauseMs);
    }
  }
}

/** Twice as long, between the two limits. */
export function nextPause(pauseMs: number): number {
  return Math.min(Math.max(pauseMs * 2, NBD_RECONNECT_PAUSE_MIN_MS), NBD_RECONNECT_PAUSE_MAX_MS);
}

/** A server that is there and will be no other in a moment. */
function isFinal(error: unknown): boolean {
  if (!(error instanceof BlockError)) return false;
  const { code } = error;
  return code === 'DF_PROTOCOL' || code === 'DF_NOT_SUPPORTED' || code === 'DF_TOO_LARGE';
}

/**
 * First connection: once, or again and again until the time is over.
 * @throws the last attempt's error
 */
export async function connectFirst(
  attempt: (signal: AbortSignal) => Promise<NbdConnection>,
  openTimeoutMs: number,
  signal: AbortSignal,
): Promise<NbdConnection> {
  const end = performance.now() + openTimeoutMs;
  let pauseMs = NBD_RECONNECT_PAUSE_MIN_MS;
  for (;;) {
    try {
      return await attempt(signal);
    } catch (error) {
      const left = end - performance.now();
      if (signal.aborted || left <= 0 || isFinal(error)) throw error;
      await pause(Math.min(pauseMs, left), signal, { ref: true });
      pauseMs = nextPause(pauseMs);
    }
  }
}
