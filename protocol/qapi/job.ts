// SPDX-License-Identifier: MIT
/** Jobs of every kind. @see QEMU's qapi/job.json */
import {
  array,
  defineCommand,
  defineEvent,
  enumeration,
  int,
  optional,
  required,
  str,
  struct,
} from './define.js';

export const JobType = enumeration('JobType', {
  doc: 'Kinds of jobs.',
  values: {
    commit: 'copies layers of a chain into one below them, and takes them out',
    stream: 'copies what a layer shows of those below it into it, and takes these out',
    backup: 'copies a source as it is at one moment',
    mirror: 'makes a target equal to a source and keeps it so',
    create: 'makes an image',
  },
});

export const JobStatus = enumeration('JobStatus', {
  doc: 'States of a job.',
  values: {
    undefined: 'not there yet',
    created: 'made, but not started',
    running: 'at work',
    paused: 'held on request',
    ready: 'done but for what comes in, waits for job-complete',
    standby: 'ready, and held on request',
    waiting: 'done, waits for the other jobs of its transaction',
    pending: 'done, waits for job-finalize',
    aborting: 'failed or cancelled, cleaning up',
    concluded: 'over, waits for job-dismiss',
    null: 'forgotten',
  },
});

export const JOB_STATUS_CHANGE = defineEvent({
  name: 'JOB_STATUS_CHANGE',
  doc: 'A job has come into another state.',
  data: {
    id: required(str, 'its id'),
    status: required(JobStatus, 'the state'),
  },
});

const jobId = required(str, 'id of the job');

export const JOB_PAUSE = defineCommand({
  name: 'job-pause',
  doc: 'Holds a job until job-resume.',
  arguments: { id: jobId },
});

export const JOB_RESUME = defineCommand({
  name: 'job-resume',
  doc: 'Lets a job that job-pause holds go on.',
  arguments: { id: jobId },
});

export const JOB_CANCEL = defineCommand({
  name: 'job-cancel',
  doc: 'Ends a job without its effect, at once.',
  arguments: { id: jobId },
});

export const JOB_COMPLETE = defineCommand({
  name: 'job-complete',
  doc: 'Ends a job that is ready, with its effect.',
  arguments: { id: jobId },
});

export const JOB_DISMISS = defineCommand({
  name: 'job-dismiss',
  doc: 'Forgets a job that is concluded.',
  arguments: { id: jobId },
});

export const JOB_FINALIZE = defineCommand({
  name: 'job-finalize',
  doc: 'Makes the effect of a pending job, and of all others of its transaction.',
  arguments: { id: jobId },
});

export const JobInfo = struct('JobInfo', {
  doc: 'A job.',
  members: {
    id: required(str, 'its id'),
    type: required(JobType, 'its kind'),
    status: required(JobStatus, 'its state'),
    'current-progress': required(int, 'what has been done, bytes'),
    'total-progress': required(int, 'what there is to do, as known now, bytes'),
    remaining: required(int, 'what is left to do, as known now, bytes'),
    rate: required(int, 'bytes a second over the last seconds'),
    'time-left': optional(int, 'seconds that the rest takes at this rate; absent: nothing moves'),
    error: optional(str, 'why it failed'),
  },
});

export const QUERY_JOBS = defineCommand({
  name: 'query-jobs',
  doc: 'Lists the jobs.',
  result: array(JobInfo),
});

export const JOB_COMMANDS = [
  JOB_PAUSE,
  JOB_RESUME,
  JOB_CANCEL,
  JOB_COMPLETE,
  JOB_DISMISS,
  JOB_FINALIZE,
  QUERY_JOBS,
] as const;

export const JOB_EVENTS = [JOB_STATUS_CHANGE] as const;
