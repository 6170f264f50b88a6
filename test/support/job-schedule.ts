// SPDX-License-Identifier: MIT
/** Random lives of a mirror or backup: what job, what is written, said and broken meanwhile. */
import { SeededRandom } from './seeded-random.js';

export type Policy = 'report' | 'ignore' | 'stop' | 'enospc';
export type BitmapMode = 'on-success' | 'never' | 'always';

export type CopyMode = 'background' | 'write-blocking' | 'auto';

export interface JobChoice {
  readonly kind: 'mirror' | 'backup';
  readonly sync: 'full' | 'top' | 'none' | 'bitmap';
  /** What becomes of the bitmap; undefined: the job has none. */
  readonly bitmapMode: BitmapMode | undefined;
  readonly onSourceError: Policy;
  readonly onTargetError: Policy;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  /** Mirror: bytes a bit. Backup: 64 KiB always. */
  readonly granularity: number;
  /** Bytes in flight at most (mirror), or requests (backup). */
  readonly window: number;
  /** Bytes a second; 0: no limit. */
  readonly speed: number;
  /** Mirror: when a write is done; a backup has none. */
  readonly copyMode: CopyMode | undefined;
  /** Mirror: the source is a filter, and the node below it is replaced. */
  readonly replaces: boolean;
  /** Backup: what fails when old content can't be saved. */
  readonly onCbwError: 'break-guest-write' | 'break-snapshot';
}

const VERBS = [
  'pause',
  'resume',
  'slow',
  'fast',
  'cancel',
  'cancel-by-force',
  'complete',
  'finalize',
  'dismiss',
  'write-blocking',
  'background',
] as const;
export type Verb = (typeof VERBS)[number];

export type Step =
  | { readonly act: 'write'; readonly offset: number; readonly length: number }
  | { readonly act: 'zero' | 'discard'; readonly offset: number; readonly length: number }
  | { readonly act: 'say'; readonly verb: Verb }
  /** `fault` is one of those that the bench knows. */
  | { readonly act: 'break'; readonly fault: string }
  | { readonly act: 'heal' }
  | { readonly act: 'quit' }
  /** Wait until the job has got there, or will not in a while. */
  | { readonly act: 'await'; readonly state: 'ready' | 'pending' | 'over' }
  /** Turns of the event loop, or milliseconds, as the bench does. */
  | { readonly act: 'wait'; readonly count: number };

export interface Schedule {
  readonly seed: number;
  readonly job: JobChoice;
  /** What is written before the job begins: what a bitmap marks. */
  readonly before: readonly Step[];
  readonly steps: readonly Step[];
}

export interface ScheduleOptions {
  /** Of the disk, bytes. */
  readonly size: number;
  /** Writes are multiples of it, bytes. */
  readonly alignment: number;
  readonly faults: readonly [string, ...string[]];
  /** Steps at most. */
  readonly stepsMax: number;
  /** Speed of a slow job, bytes a second. */
  readonly slowSpeed: number;
}

const KIB = 1024;
const POLICIES = ['report', 'ignore', 'stop', 'enospc'] as const;
const LONGEST_WRITE = 160 * KIB;

export function makeSchedule(seed: number, options: ScheduleOptions): Schedule {
  const random = new SeededRandom(seed * 7919 + 17);
  const job = chooseJob(random, options);
  const before = Array.from({ length: 1 + random.int(5) }, () => chooseWrite(random, options));
  const steps = Array.from({ length: 3 + random.int(options.stepsMax) }, () =>
    chooseStep(random, job, options),
  );
  return { seed, job, before, steps };
}

function chooseJob(random: SeededRandom, { slowSpeed }: ScheduleOptions): JobChoice {
  const kind = random.pick(['mirror', 'backup']);
  const sync = random.pick(['full', 'top', 'none', 'bitmap', 'bitmap', 'bitmap']);
  const withBitmap = sync === 'bitmap' || (sync !== 'none' && random.chance(0.4));
  // Without marks to be copied, 'never' has no meaning, and is refused.
  const modes = ['on-success', 'always', sync === 'bitmap' ? 'never' : 'always'] as const;
  return {
    kind,
    sync,
    bitmapMode: withBitmap ? random.pick(modes) : undefined,
    onSourceError: random.pick(POLICIES),
    onTargetError: random.pick(POLICIES),
    autoFinalize: random.chance(0.7),
    autoDismiss: random.chance(0.3),
    granularity: random.pick([512, 4 * KIB, 64 * KIB, 128 * KIB]),
    window: random.pick([1, 2, 4, 16]),
    speed: random.chance(0.3) ? slowSpeed : 0,
    copyMode: kind === 'mirror' ? random.pick(['background', 'write-blocking', 'auto']) : undefined,
    replaces: kind === 'mirror' && random.chance(0.15),
    onCbwError: random.pick(['break-guest-write', 'break-snapshot']),
  };
}

function chooseWrite(random: SeededRandom, { size, alignment }: ScheduleOptions): Step {
  const blocks = Math.floor(size / alignment);
  const first = random.int(blocks);
  const most = Math.min(blocks - first, Math.floor(LONGEST_WRITE / alignment));
  const offset = first * alignment;
  const length = (1 + random.int(most)) * alignment;
  const act = random.pick(['write', 'write', 'write', 'zero', 'discard']);
  return { act, offset, length };
}

function chooseStep(random: SeededRandom, job: JobChoice, options: ScheduleOptions): Step {
  const dice = random.int(100);
  if (dice < 34) return chooseWrite(random, options);
  if (dice < 50) return { act: 'wait', count: random.int(12) };
  if (dice < 62) return { act: 'break', fault: random.pick(options.faults) };
  if (dice < 70) return { act: 'heal' };
  if (dice < 71) return { act: 'quit' };
  if (dice < 80) return chooseAwait(random, job);
  return { act: 'say', verb: chooseVerb(random, job) };
}

function chooseAwait(random: SeededRandom, { kind }: JobChoice): Step {
  const state = random.pick(['ready', 'ready', 'pending', 'over']);
  return { act: 'await', state: kind === 'backup' && state === 'ready' ? 'pending' : state };
}

/** Those that end the job are rarer than those that change its course. */
function chooseVerb(random: SeededRandom, { kind }: JobChoice): Verb {
  if (kind === 'mirror' && random.chance(0.1)) return random.pick(['write-blocking', 'background']);
  if (random.chance(0.6)) return random.pick(['pause', 'resume', 'resume', 'slow', 'fast']);
  return random.pick(['pause', 'cancel', 'cancel-by-force', 'complete', 'finalize', 'dismiss']);
}

/** To be shown when it fails. */
export function describeSchedule({ seed, job, before, steps }: Schedule): string {
  const line = (step: Step): string => {
    const { act, ...rest } = step;
    return [act, ...Object.values(rest)].join(' ');
  };
  return [
    `DISKFERRY_SEED=${seed}`,
    JSON.stringify(job),
    `before: ${before.map(line).join('; ')}`,
    ...steps.map((step, index) => `${index}: ${line(step)}`),
  ].join('\n');
}

/** Seeds to run: `DISKFERRY_SEED` alone, or `DISKFERRY_SCHEDULES` many from 1 on. */
export function seedsToRun(count: number): number[] {
  const { DISKFERRY_SEED: seed, DISKFERRY_SCHEDULES: wanted } = process.env;
  if (seed !== undefined) return [Number(seed)];
  const first = Number(process.env.DISKFERRY_FIRST_SEED ?? 1);
  return Array.from({ length: Number(wanted ?? count) }, (_, index) => first + index);
}
