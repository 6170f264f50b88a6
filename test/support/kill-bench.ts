// SPDX-License-Identifier: MIT
/** Writers that are killed, and the judgement of what they leave. */
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import { collect, spawnTracked } from './peers.js';
import type { Random } from './qcow2-model.js';
import { after, type DiskState, type Step } from './qcow2-plan.js';
import type { Orders } from './qcow2-victim.js';
import type { Scope } from './temp.js';

/** Latest moment of a kill after the first step, milliseconds. */
const LIFE_MS = 60;

/** Starts each writer ahead of time, so that the next is ready when one has died. */
export class Writers {
  readonly #program: string;
  #next: ReturnType<typeof spawnTracked>;

  constructor(scope: Scope, program: string) {
    this.#program = program;
    this.#next = this.#start();
    scope.defer(() => this.#next.kill('SIGKILL'));
  }

  #start(): ReturnType<typeof spawnTracked> {
    const options = { stdio: ['pipe', 'pipe', 'pipe'] as ('pipe' | 'pipe')[] };
    return spawnTracked(process.execPath, [this.#program], options);
  }

  /** Lets a writer begin and kills it. @returns what it has noted */
  async killOne(orders: Orders, random: Random): Promise<string> {
    const child = this.#next;
    this.#next = this.#start();
    const stderr = collect(child.stderr);
    const ended = once(child, 'close');
    await writeFile(orders.log, '');
    child.stdin?.on('error', () => {});
    child.stdin?.write(`${JSON.stringify(orders)}\n`);
    let noted = '';
    while (noted === '' && child.exitCode === null) {
      await sleep(1);
      noted = await readFile(orders.log, 'utf8');
    }
    await sleep(random.below(LIFE_MS));
    child.kill('SIGKILL');
    await ended;
    if (child.exitCode !== null && child.exitCode !== 0) {
      throw new Error(`the writer failed: ${stderr.text()}`);
    }
    return readFile(orders.log, 'utf8');
  }
}

export interface Outcome {
  /** The last state that was made to last, and those that came after it, in order. */
  readonly states: readonly DiskState[];
  /** The steps that lead from one state to the next. */
  readonly steps: readonly Step[];
  /** The last step was under way. */
  readonly cutOff: boolean;
  /** There was nothing more to do: the image may have been closed. */
  readonly finished: boolean;
}

/** What may be in the image, by what the writer has noted. */
export function outcomeOf(
  start: DiskState,
  steps: readonly Step[],
  { log, clusterSize }: { readonly log: string; readonly clusterSize: number },
): Outcome {
  let begun = -1;
  let ended = -1;
  let lasting = -1;
  for (const [, what, number] of log.matchAll(/^([bef]) (\d+)$/gm)) {
    if (what === 'b') begun = Number(number);
    else ended = Number(number);
    if (what === 'f') lasting = Number(number);
  }
  let state = start;
  const states: DiskState[] = [];
  for (let nth = 0; nth <= begun; nth++) {
    if (nth === lasting + 1) states.push(state);
    const step = steps[nth];
    if (step !== undefined) state = after(state, step, clusterSize);
    if (nth > lasting) states.push(state);
  }
  if (states.length === 0) states.push(state);
  const rest = steps.slice(lasting + 1, begun + 1);
  const finished = ended === steps.length - 1;
  return { states, steps: rest, cutOff: begun !== ended, finished };
}

const PIECE = 4096;

/** Every byte is as it was flushed, or as a later step has it. */
export function expectContent(content: Buffer, { states, steps, cutOff }: Outcome): void {
  const sizes = new Set(states.map((state) => state.content.byteLength));
  expect([...sizes]).toContain(content.byteLength);
  const last = steps.at(-1);
  // What a disk was about to lose may be gone.
  const shrunk = cutOff && last?.kind === 'resize' ? last.size : content.byteLength;
  const length = Math.min(content.byteLength, shrunk);
  for (let at = 0; at < length; at += PIECE) {
    const end = Math.min(at + PIECE, length);
    const piece = content.subarray(at, end);
    if (states[0]?.content.subarray(at, end).equals(piece)) continue;
    for (let byte = at; byte < end; byte++) {
      const value = content[byte];
      // What a disk gains is zero.
      if (states.some((state) => (state.content[byte] ?? 0) === value)) continue;
      const flushed = states[0]?.content[byte];
      throw new Error(`byte ${byte} is ${value}; it was flushed as ${flushed}`);
    }
  }
}
