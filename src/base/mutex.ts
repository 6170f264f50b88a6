// SPDX-License-Identifier: MIT
/** One at a time, in order of arrival. */
import { isPromise, type MaybePromise } from './maybe-promise.js';

export class Mutex {
  #busy = false;
  /** Each runs a work to its end; a promise when that has to wait. It never throws or rejects. */
  readonly #queue: (() => MaybePromise<void>)[] = [];

  /** Nobody is at it or waits for it: what ends within this turn may go without asking. */
  get idle(): boolean {
    return !this.#busy;
  }

  /**
   * Runs `work` when all that came before has ended; its failure is its caller's alone. Works that do
   * not wait follow one another at once, so that a queue of them does not last.
   */
  run<T>(work: () => MaybePromise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#queue.push(() => {
        try {
          const result = work();
          if (isPromise(result)) return result.then(resolve, reject);
          resolve(result);
        } catch (error) {
          reject(error);
        }
        return undefined;
      });
      if (this.#busy) return;
      this.#busy = true;
      queueMicrotask(() => this.#next());
    });
  }

  #next(): void {
    for (let start = this.#queue.shift(); start !== undefined; start = this.#queue.shift()) {
      const pending = start();
      if (pending === undefined) continue;
      pending.then(() => this.#next());
      return;
    }
    this.#busy = false;
  }
}
