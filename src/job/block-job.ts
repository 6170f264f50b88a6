// SPDX-License-Identifier: MIT
/** What jobs that move blocks have beyond job.ts: speed, error policies, I/O status. */
import { BlockError, errnoName } from '../base/errors.js';
import type { MaybePromise } from '../base/maybe-promise.js';
import { RateLimit } from '../base/rate-limit.js';
import { REQ_LEND_ONCE, type RequestFlags } from '../block/block-driver.js';
import { Job, type JobObserver, type JobOptions } from './job.js';

/** Pause before a flush that failed is tried again, milliseconds. */
const FLUSH_RETRY_MS = 100;

export type ErrorPolicy = 'report' | 'ignore' | 'stop' | 'enospc' | 'auto';
export type ErrorAction = 'report' | 'ignore' | 'stop';
export type IoStatus = 'ok' | 'failed' | 'nospace';

export interface BlockJobOptions extends JobOptions {
  /** Bytes a second, 0: as fast as it goes. A bigint where a client sent more than a number holds. */
  readonly speed?: number | bigint;
  readonly onSourceError?: ErrorPolicy;
  readonly onTargetError?: ErrorPolicy;
}

export interface BlockJobObserver extends JobObserver {
  /** An I/O error of the job, and what its policy made of it. */
  ioError(job: BlockJob, operation: 'read' | 'write', action: ErrorAction, error: unknown): void;
}

export abstract class BlockJob extends Job {
  override readonly observer: BlockJobObserver;
  /** As it was given, so that queries and events echo it exactly. */
  speed: number | bigint;
  ioStatus: IoStatus = 'ok';
  readonly onSourceError: ErrorPolicy;
  readonly onTargetError: ErrorPolicy;
  protected readonly rate: RateLimit;

  constructor(options: BlockJobOptions, observer: BlockJobObserver) {
    super(options, observer);
    this.observer = observer;
    this.speed = options.speed ?? 0;
    this.onSourceError = options.onSourceError ?? 'report';
    this.onTargetError = options.onTargetError ?? 'report';
    this.rate = new RateLimit(Number(this.speed), () => performance.now());
  }

  /**
   * What a job allows whose source does not change while it is copied, but may afterwards: a lost
   * target must be its end.
   */
  protected get lendOnce(): RequestFlags {
    const triesAgain = this.onTargetError === 'ignore' || this.onTargetError === 'stop';
    return triesAgain ? 0 : REQ_LEND_ONCE;
  }

  /** @param speed bytes a second, 0: no limit. @throws BlockError in the wrong state, or below 0 */
  setSpeed(speed: number | bigint): void {
    this.checkVerb('set-speed');
    if (speed < 0) {
      throw new BlockError('DF_INVALID', "Parameter 'speed' expects a non-negative value");
    }
    this.speed = speed;
    this.rate.bytesPerSecond = Number(speed);
    this.wakeUp();
  }

  /**
   * Applies the policy to an I/O error: reports it, pauses where it says stop. A job that is being
   * finalized can't be paused; and what ends because the job was broken off is no news, nor is what
   * fails while it stands still for an error already.
   */
  protected ioFailed(operation: 'read' | 'write', error: unknown): ErrorAction {
    if (this.cancelled) return 'report';
    const policy = operation === 'read' ? this.onSourceError : this.onTargetError;
    const noSpace = errnoName(error) === 'ENOSPC';
    const action = this.state === 'pending' ? 'report' : actionOf(policy, noSpace);
    if (action === 'stop') {
      // What was in flight beside the first that failed has the same to say.
      if (this.ioStatus !== 'ok') return action;
      this.ioStatus = noSpace ? 'nospace' : 'failed';
      this.stopForUser();
    }
    this.observer.ioError(this, operation, action, error);
    return action;
  }

  /**
   * Flushes, again and again where the policy for the target's errors says so; the job has nothing
   * in flight meanwhile. Returns early when the job is broken off. @throws what flushing throws
   */
  protected async flushUnderPolicy(flush: () => MaybePromise<void>): Promise<void> {
    while (!this.cancelled) {
      try {
        await flush();
        return;
      } catch (error) {
        if (this.ioFailed('write', error) === 'report') throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, FLUSH_RETRY_MS));
      await this.pausePoint();
    }
  }

  protected override userResumed(): void {
    this.ioStatus = 'ok';
  }
}

function actionOf(policy: ErrorPolicy, noSpace: boolean): ErrorAction {
  if (policy === 'enospc' || policy === 'auto') return noSpace ? 'stop' : 'report';
  return policy;
}
