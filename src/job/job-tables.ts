// SPDX-License-Identifier: MIT
/** Which state may follow which, and which verb may be said in which. @see qapi JobStatus, JobVerb */

export const JOB_STATES = [
  'created',
  'running',
  'paused',
  'ready',
  'standby',
  'waiting',
  'pending',
  'aborting',
  'concluded',
  'null',
] as const;
export type JobState = (typeof JOB_STATES)[number];

/** Successors of each state; no state is set outside this table. */
export const NEXT_STATES: Readonly<Record<JobState, readonly JobState[]>> = {
  created: ['running', 'aborting', 'null'],
  running: ['paused', 'ready', 'waiting', 'aborting'],
  paused: ['running'],
  ready: ['standby', 'waiting', 'aborting'],
  standby: ['ready'],
  waiting: ['pending', 'aborting'],
  pending: ['aborting', 'concluded'],
  aborting: ['aborting', 'concluded'],
  concluded: ['null'],
  null: [],
};

export const JOB_VERBS = [
  'cancel',
  'pause',
  'resume',
  'set-speed',
  'complete',
  'finalize',
  'dismiss',
  'change',
] as const;
export type JobVerb = (typeof JOB_VERBS)[number];

const AT_WORK: readonly JobState[] = ['created', 'running', 'paused', 'ready', 'standby'];

export const STATES_OF_VERB: Readonly<Record<JobVerb, readonly JobState[]>> = {
  cancel: [...AT_WORK, 'waiting', 'pending'],
  pause: AT_WORK,
  resume: AT_WORK,
  'set-speed': AT_WORK,
  complete: ['ready', 'standby'],
  finalize: ['pending'],
  dismiss: ['concluded'],
  change: ['running', 'paused', 'ready', 'standby'],
};
