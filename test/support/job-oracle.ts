// SPDX-License-Identifier: MIT
/** What a job may do: the order of its events, the action for each error, the verbs for each state. */
import type { JobChoice, Policy, Verb } from './job-schedule.js';

/** What was heard of a job, in order. */
export type Heard =
  | { readonly what: 'state'; readonly state: string }
  | { readonly what: 'end' }
  | {
      readonly what: 'error';
      readonly operation: string;
      readonly action: string;
      /** Undefined where it can't be known from outside. */
      readonly noSpace: boolean | undefined;
      /** I/O status at that moment, where it is known. */
      readonly ioStatus?: string;
    }
  | { readonly what: 'said'; readonly verb: Verb | 'quit' };

const ORDER = new RegExp(
  '^created running( paused running)*( ready( standby ready)*)?' +
    '( waiting( pending)?( aborting)?| aborting) end concluded( null)?$',
);

/** Says what is wrong with the order of events; the job has to be over. */
export function checkOrder(heard: readonly Heard[]): void {
  const words = heard.flatMap((entry) => {
    if (entry.what === 'state') return [entry.state];
    return entry.what === 'end' ? ['end'] : [];
  });
  const text = words.join(' ');
  if (!ORDER.test(text)) throw new Error(`events in an order that is not the contract's: ${text}`);
}

function actionFor(policy: Policy, noSpace: boolean): string {
  if (policy === 'enospc') return noSpace ? 'stop' : 'report';
  return policy;
}

/**
 * Each error was dealt with as its policy says, and 'stop' did stop the job.
 * @param brokenOff by the failure of another job of its transaction, whenever that came
 */
export function checkErrors(
  heard: readonly Heard[],
  job: JobChoice,
  { brokenOff = false }: { readonly brokenOff?: boolean } = {},
): void {
  let state = '';
  for (const [index, entry] of heard.entries()) {
    if (entry.what === 'state') state = entry.state;
    if (entry.what !== 'error') continue;
    if (state === 'pending' && entry.action === 'report') continue; // there is no pause from there
    const policy = entry.operation === 'read' ? job.onSourceError : job.onTargetError;
    const right = [true, false]
      .filter((noSpace) => entry.noSpace === undefined || entry.noSpace === noSpace)
      .map((noSpace) => actionFor(policy, noSpace));
    if (!right.includes(entry.action)) {
      throw new Error(`a ${entry.operation} error led to ${entry.action}, the policy is ${policy}`);
    }
    // A write whose old content can't be saved ends a backup all the same.
    const ends = job.kind === 'backup' && job.onCbwError === 'break-snapshot';
    if (entry.action === 'stop' && !ends && !brokenOff) checkStopped(heard, index);
  }
}

const ENDS_A_PAUSE: readonly string[] = ['resume', 'cancel', 'cancel-by-force', 'quit'];

function checkStopped(heard: readonly Heard[], index: number): void {
  for (const entry of heard.slice(index + 1)) {
    if (entry.what === 'said' && ENDS_A_PAUSE.includes(entry.verb)) return;
    if (entry.what !== 'state') continue;
    if (entry.state === 'paused' || entry.state === 'standby') return;
    throw new Error(`stopped by an error, but went on to '${entry.state}'`);
  }
}

/** The states in which QEMU takes a verb. */
const AT_WORK = ['created', 'running', 'paused', 'ready', 'standby'];
const TAKEN_IN: Readonly<Record<Verb, readonly string[]>> = {
  pause: AT_WORK,
  resume: AT_WORK,
  slow: AT_WORK,
  fast: AT_WORK,
  cancel: [...AT_WORK, 'waiting', 'pending'],
  'cancel-by-force': [...AT_WORK, 'waiting', 'pending'],
  complete: ['ready', 'standby'],
  finalize: ['pending'],
  dismiss: ['concluded'],
  'write-blocking': ['running', 'paused', 'ready', 'standby'],
  background: ['running', 'paused', 'ready', 'standby'],
};

/** Answers in states in which the verb may be said; whether a job was paused is asked before its state. */
const REFUSALS: Readonly<Partial<Record<Verb, RegExp>>> = {
  pause: /^Job is already paused$/,
  resume: /^Can't resume a job that was not paused$/,
  complete: /cannot be completed$/,
  finalize: /is being finalized already$/,
};

/**
 * @param state in which the job was when the verb was said
 * @param refusal text of the error, undefined when the verb was taken
 */
export function checkVerb(verb: Verb, state: string, refusal: string | undefined): void {
  const taken = TAKEN_IN[verb].includes(state);
  if (refusal === undefined) {
    if (!taken) throw new Error(`${verb} was taken in state '${state}'`);
    return;
  }
  if (!taken && refusal.includes(`in state '${state}' cannot accept command verb`)) return;
  if ((taken || verb === 'resume') && REFUSALS[verb]?.test(refusal) === true) return;
  throw new Error(`${verb} was refused in state '${state}': ${refusal}`);
}
