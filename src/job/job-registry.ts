// SPDX-License-Identifier: MIT
/** The jobs that exist, by id, and who hears of their lives. */
import { BlockError } from '../base/errors.js';
import { isIdentifier } from '../base/identifier.js';
import type { EdgeParent } from '../block/edge.js';
import { BlockJob, type BlockJobObserver, type ErrorAction } from './block-job.js';
import type { CopyRates } from './convergence.js';
import type { Job } from './job.js';

/** What the layer above turns into events. All optional. */
export interface JobListener {
  stateChanged?(job: Job): void;
  finished?(job: Job): void;
  ioError?(job: BlockJob, operation: 'read' | 'write', action: ErrorAction, error: unknown): void;
  notConverging?(job: BlockJob, rates: CopyRates, copyMode: 'background' | 'write-blocking'): void;
}

export class JobRegistry implements BlockJobObserver {
  readonly #jobs = new Map<string, Job>();
  readonly #reserved = new Set<string>();
  readonly #listeners = new Set<JobListener>();

  get jobs(): readonly Job[] {
    return [...this.#jobs.values()];
  }

  get blockJobs(): readonly BlockJob[] {
    return this.jobs.filter((job) => job instanceof BlockJob);
  }

  /** Calls the listener from now on; returns what ends that. */
  listen(listener: JobListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The job whose own a user of a node is, when it is one's. */
  jobOf(parent: EdgeParent): Job | undefined {
    return this.jobs.find((job) => job.owns(parent));
  }

  /** @throws BlockError in the words of the job-* commands */
  get(id: string): Job {
    const job = this.#jobs.get(id);
    if (job === undefined) throw new BlockError('DF_NOT_FOUND', 'Job not found');
    return job;
  }

  /** @throws BlockError DF_JOB_NOT_FOUND in the words of the block-job-* commands */
  getBlockJob(id: string): BlockJob {
    const job = this.#jobs.get(id);
    if (job instanceof BlockJob) return job;
    throw new BlockError('DF_JOB_NOT_FOUND', `Block job '${id}' not found`);
  }

  /**
   * Makes a job under an id that nobody else has, and starts it.
   * @throws BlockError DF_INVALID for a bad id, DF_EXISTS, and what `make` throws
   */
  async run<J extends Job>(id: string, make: () => J | Promise<J>): Promise<J> {
    const job = await this.create(id, make);
    job.start();
    return job;
  }

  /** @throws BlockError DF_INVALID for a bad id, DF_EXISTS */
  checkFree(id: string): void {
    checkJobId(id);
    if (this.#jobs.has(id) || this.#reserved.has(id)) {
      throw new BlockError('DF_EXISTS', `Job ID '${id}' already in use`);
    }
  }

  /** As `run`, but the job is to be started, or given up by `abandon`, by the caller. */
  async create<J extends Job>(id: string, make: () => J | Promise<J>): Promise<J> {
    this.checkFree(id);
    this.#reserved.add(id);
    try {
      const job = await make();
      this.#jobs.set(id, job);
      job.announce();
      return job;
    } finally {
      this.#reserved.delete(id);
    }
  }

  /** Breaks off all jobs, waits until each has ended, and forgets them; for shut-down. */
  async cancelAll(): Promise<void> {
    for (const job of this.jobs) job.cancelNow({ force: true });
    for (const job of this.jobs) {
      await job.ended;
      await job.concluded;
      if (job.state === 'concluded') job.dismiss();
    }
  }

  stateChanged(job: Job): void {
    if (job.state === 'null') this.#jobs.delete(job.id);
    for (const listener of this.#listeners) listener.stateChanged?.(job);
  }

  finished(job: Job): void {
    for (const listener of this.#listeners) listener.finished?.(job);
  }

  notConverging(job: BlockJob, rates: CopyRates, copyMode: 'background' | 'write-blocking'): void {
    for (const listener of this.#listeners) listener.notConverging?.(job, rates, copyMode);
  }

  ioError(job: BlockJob, operation: 'read' | 'write', action: ErrorAction, error: unknown): void {
    for (const listener of this.#listeners) listener.ioError?.(job, operation, action, error);
  }
}

/** @throws BlockError DF_INVALID: ids are formed as node names are, without a limit of length */
function checkJobId(id: string): void {
  if (isIdentifier(id)) return;
  throw new BlockError('DF_INVALID', `Invalid job ID '${id}'`);
}
