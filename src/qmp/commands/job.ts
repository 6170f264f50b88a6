// SPDX-License-Identifier: MIT
/** Commands on jobs of every kind, and the events of their lives. */
import * as blockJob from '../../../protocol/qapi/block-job.js';
import * as qapi from '../../../protocol/qapi/job.js';
import type { ArgumentsOf, DataOf, Output } from '../../../protocol/qapi/types.js';
import { startTimeout } from '../../base/clock.js';
import { errorText, requestErrorText } from '../../base/error-text.js';
import { BlockError } from '../../base/errors.js';
import { JOB_CANCEL_REPLY_MS } from '../../base/limits.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import { BlockJob } from '../../job/block-job.js';
import type { Job } from '../../job/job.js';
import type { JobRegistry } from '../../job/job-registry.js';
import { MirrorJob } from '../../job/mirror.js';
import type { EventHub } from '../events.js';
import type { CommandRegistry } from '../registry.js';

type JobType = Output<typeof qapi.JobType>;

export function registerJobs(registry: CommandRegistry, jobs: JobRegistry): void {
  registry.register(qapi.JOB_PAUSE, ({ id }) => jobs.get(id).pause());
  registry.register(qapi.JOB_RESUME, ({ id }) => jobs.get(id).resume());
  registry.register(qapi.JOB_CANCEL, ({ id }) => cancelJob(jobs.get(id), { force: true }));
  registry.register(qapi.JOB_COMPLETE, ({ id }) => jobs.get(id).complete());
  registry.register(qapi.JOB_DISMISS, ({ id }) => jobs.get(id).dismiss());
  registry.register(qapi.JOB_FINALIZE, ({ id }) => jobs.get(id).finalize());
  registry.register(qapi.QUERY_JOBS, () => jobs.jobs.map(describeJob));
}

/** Commands that have two names each: the block jobs' own family. */
export function registerBlockJobs(registry: CommandRegistry, jobs: JobRegistry): void {
  const find = (id: string): BlockJob => jobs.getBlockJob(id);
  registry.register(blockJob.BLOCK_JOB_PAUSE, ({ device }) => find(device).pause());
  registry.register(blockJob.BLOCK_JOB_RESUME, ({ device }) => find(device).resume());
  registry.register(blockJob.BLOCK_JOB_CANCEL, ({ device, force = false }) =>
    cancelBlockJob(find(device), { force }),
  );
  registry.register(blockJob.BLOCK_JOB_COMPLETE, ({ device }) => find(device).complete());
  registry.register(blockJob.BLOCK_JOB_DISMISS, ({ id }) => find(id).dismiss());
  registry.register(blockJob.BLOCK_JOB_FINALIZE, ({ id }) => find(id).finalize());
  registry.register(blockJob.BLOCK_JOB_SET_SPEED, ({ device, speed }) =>
    find(device).setSpeed(speed),
  );
  registry.register(blockJob.BLOCK_JOB_CHANGE, (args) => changeJob(find(args.id), args));
  registry.register(blockJob.QUERY_BLOCK_JOBS, () => jobs.blockJobs.map(describeBlockJob));
}

/** @throws BlockError when the user, or an error, has paused the job and `force` is not given */
function cancelBlockJob(job: BlockJob, options: { readonly force: boolean }): MaybePromise<void> {
  if (job.userPaused && !options.force) {
    const reason = `The block job for device '${job.id}' is currently paused`;
    throw new BlockError('DF_INVALID', reason);
  }
  return cancelJob(job, options);
}

/**
 * As managers are used to, a job has ended before the reply, but for a mirror at its work, which only
 * begins to. A target that says nothing does not hold the reply for long.
 */
function cancelJob(job: Job, options: { readonly force: boolean }): MaybePromise<void> {
  const atWork = job.state !== 'waiting' && job.state !== 'pending';
  job.cancel(options);
  if (job instanceof MirrorJob && atWork) return undefined;
  return new Promise((resolve) => {
    const callOff = startTimeout(JOB_CANCEL_REPLY_MS, resolve);
    void job.concluded.then(() => {
      callOff();
      resolve();
    });
  });
}

/** Turns the lives of jobs into events; returns what ends that. */
export function emitJobEvents(jobs: JobRegistry, events: EventHub): () => void {
  return jobs.listen({
    stateChanged(job) {
      events.emit(qapi.JOB_STATUS_CHANGE, { id: job.id, status: job.state });
      if (!(job instanceof BlockJob)) return;
      if (job.state === 'ready' && !job.wasReady) {
        events.emit(blockJob.BLOCK_JOB_READY, describeProgress(job));
      }
      if (job.state === 'pending' && !job.autoFinalize) {
        events.emit(blockJob.BLOCK_JOB_PENDING, { type: job.type as JobType, id: job.id });
      }
    },
    finished(job) {
      if (!(job instanceof BlockJob)) return;
      if (job.cancelled) {
        events.emit(blockJob.BLOCK_JOB_CANCELLED, describeProgress(job));
        return;
      }
      events.emit(blockJob.BLOCK_JOB_COMPLETED, {
        ...describeProgress(job),
        ...describeError(job),
      });
    },
    ioError(job, operation, action) {
      events.emit(blockJob.BLOCK_JOB_ERROR, { device: job.id, operation, action });
    },
    notConverging(job, { dirtyRate, copyRate, remaining }, copyMode) {
      events.emit(blockJob.BLOCK_JOB_NOT_CONVERGING, {
        device: job.id,
        'dirty-rate': dirtyRate,
        'copy-rate': copyRate,
        remaining,
        'copy-mode': copyMode,
      });
    },
  });
}

function describeProgress(job: BlockJob): DataOf<typeof blockJob.BLOCK_JOB_CANCELLED> {
  return {
    type: job.type as JobType,
    device: job.id,
    len: job.progressTotal,
    offset: job.progressCurrent,
    speed: job.speed,
  };
}

function describeJob(job: Job): Output<typeof qapi.JobInfo> {
  return {
    id: job.id,
    type: job.type as JobType,
    status: job.state,
    'current-progress': job.progressCurrent,
    'total-progress': job.progressTotal,
    ...describeRate(job),
    ...describeError(job),
  };
}

function describeBlockJob(job: BlockJob): Output<typeof blockJob.BlockJobInfo> {
  return {
    ...describeProgress(job),
    busy: job.busy,
    paused: job.userPaused,
    'io-status': job.ioStatus,
    ready: job.state === 'ready' || job.state === 'standby',
    status: job.state,
    'auto-finalize': job.autoFinalize,
    'auto-dismiss': job.autoDismiss,
    ...describeRate(job),
    ...describeMirror(job),
    ...describeError(job),
  };
}

/** @throws BlockError when the job is of another kind, or can't be changed */
function changeJob(
  job: BlockJob,
  args: ArgumentsOf<typeof blockJob.BLOCK_JOB_CHANGE>,
): Promise<void> {
  if (args.type !== job.type) {
    const text = `Job '${job.id}' is of type '${job.type}', not '${args.type}'`;
    throw new BlockError('DF_INVALID', text);
  }
  if (!(job instanceof MirrorJob) || args.type !== 'mirror') {
    throw new BlockError('DF_INVALID', 'Job type does not support change');
  }
  return job.changeCopyMode(args['copy-mode']);
}

function describeMirror(job: BlockJob): Partial<Output<typeof blockJob.BlockJobInfo>> {
  if (!(job instanceof MirrorJob) || job.type !== 'mirror') return {};
  return { 'copy-mode': job.copyMode, 'actively-synced': job.activelySynced };
}

/** What is left, how fast it goes, and so how long it takes, unless nothing moves. */
function describeRate(job: Job): { remaining: number; rate: number; 'time-left'?: number } {
  const remaining = Math.max(0, job.progressTotal - job.progressCurrent);
  const rate = job.progressRate;
  return { remaining, rate, ...(rate > 0 ? { 'time-left': Math.ceil(remaining / rate) } : {}) };
}

/** A block job says first, in the system's words, what its request failed with. */
function describeError(job: Job): { error?: string } {
  const { error } = job;
  if (error === undefined) return {};
  return { error: job instanceof BlockJob ? requestErrorText(error) : errorText(error) };
}
