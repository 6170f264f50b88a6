// SPDX-License-Identifier: MIT
/** Waiting for what a daemon tells of one of its jobs. */
import type { QmpClient } from '../qmp/client.js';

/** Tells when a job's state changes, so that nobody waits for the next look at it. */
export class JobChanges {
  readonly stopListening: () => void;
  #changed = false;
  #wake: (() => void) | undefined;

  constructor(client: QmpClient, job: string) {
    this.stopListening = client.onEvent(({ name, data }) => {
      if (name !== 'JOB_STATUS_CHANGE' || data.id !== job) return;
      this.#changed = true;
      this.#wake?.();
    });
  }

  /** Waits for a change since the last call, `timeoutMs` at most. */
  async next(timeoutMs: number): Promise<void> {
    if (!this.#changed) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timeoutMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = undefined;
    }
    this.#changed = false;
  }
}
