// SPDX-License-Identifier: MIT
/** One sync for all who wait for one: what a sync that begins now covers, none of them needs another. */

export class SharedSync {
  readonly #sync: () => Promise<void>;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  /** @param sync makes everything durable that completed before it was called */
  constructor(sync: () => Promise<void>) {
    this.#sync = sync;
  }

  /**
   * Everything that completed before this call is durable afterwards. A sync that is under way may
   * have begun too early for that; so who comes meanwhile shares the one that begins after it.
   * @throws what the sync threw, to all who shared it
   */
  run(): Promise<void> {
    if (this.#running === undefined) return this.#start();
    const start = (): Promise<void> => {
      this.#next = undefined;
      return this.#start();
    };
    this.#next ??= this.#running.then(start, start);
    return this.#next;
  }

  #start(): Promise<void> {
    const running = this.#sync().finally(() => {
      if (this.#running === running) this.#running = undefined;
    });
    this.#running = running;
    return running;
  }
}
