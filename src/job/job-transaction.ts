// SPDX-License-Identifier: MIT
/** Jobs that take effect together or not at all. A job by itself is a transaction of one. */
import type { Job } from './job.js';

export class JobTransaction {
  readonly #jobs = new Set<Job>();
  #aborting = false;
  #preparing = false;

  /** What can still fail is being tried; who is cancelled now is undone when that has ended. */
  get preparing(): boolean {
    return this.#preparing;
  }

  add(job: Job): void {
    this.#jobs.add(job);
  }

  remove(job: Job): void {
    this.#jobs.delete(job);
  }

  /** One more has done its work: when all have, they become pending, and conclude if they may. */
  succeeded(): void {
    if (this.#aborting) {
      this.#abortIdle();
      return;
    }
    const jobs = [...this.#jobs];
    if (!jobs.every((job) => job.state === 'waiting')) return;
    for (const job of jobs) job.setState('pending');
    if (jobs.every((job) => job.autoFinalize)) void this.finalize();
  }

  /** Lets all pending jobs take effect; undoes all when one can't. Never rejects. */
  async finalize(): Promise<void> {
    const jobs = [...this.#jobs];
    this.#preparing = true;
    for (const job of jobs) {
      try {
        await job.takeEffect('prepare');
      } catch (error) {
        job.fail(error);
      }
      const failed = jobs.find(({ error }) => error !== undefined);
      if (failed === undefined) continue;
      this.#preparing = false;
      this.failed(failed);
      return;
    }
    for (const job of jobs) job.seal();
    for (const job of jobs) {
      this.#jobs.delete(job);
      await job.takeEffect('commit');
    }
  }

  /** One has failed or was cancelled: the others are cancelled, and all are undone as they end. */
  failed(failed: Job): void {
    this.#jobs.delete(failed);
    void failed.undo();
    if (!this.#aborting) {
      this.#aborting = true;
      for (const job of [...this.#jobs]) job.cancelNow({ force: true });
    }
    this.#abortIdle();
  }

  #abortIdle(): void {
    for (const job of [...this.#jobs]) {
      if (job.state !== 'waiting' && job.state !== 'pending' && job.state !== 'created') continue;
      this.#jobs.delete(job);
      void job.undo();
    }
  }
}
