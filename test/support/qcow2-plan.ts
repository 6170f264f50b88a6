// SPDX-License-Identifier: MIT
/**
 * What a writer is going to do to an image, as data: one process carries it out and is killed, another works
 * out what may be in the image afterwards.
 */
import { pattern } from './pattern.js';
import type { Random } from './qcow2-model.js';

const SECTOR = 512;

export type Request =
  | { readonly kind: 'write'; readonly at: number; readonly length: number; readonly tag: number }
  | { readonly kind: 'zero'; readonly at: number; readonly length: number; readonly unmap: boolean }
  | { readonly kind: 'discard'; readonly at: number; readonly length: number };

export type Step =
  | { readonly kind: 'requests'; readonly requests: readonly Request[] }
  | { readonly kind: 'flush' | 'reopen' }
  | { readonly kind: 'resize'; readonly size: number }
  | { readonly kind: 'snapshot' | 'delete' | 'apply'; readonly name: string }
  | { readonly kind: 'add-bitmap' | 'remove-bitmap'; readonly name: string };

export interface PlanOptions {
  readonly clusterSize: number;
  readonly discards: boolean;
  readonly resizes: boolean;
  readonly snapshots: boolean;
  readonly bitmaps: boolean;
}

/** A disk, its snapshots and its bitmaps after some steps. */
export interface DiskState {
  readonly content: Buffer;
  readonly snapshots: ReadonlyMap<string, Buffer>;
  readonly bitmaps: readonly string[];
}

/** Steps and, for each, what is there after it. Names start with `prefix`. */
export class Plan {
  readonly steps: Step[] = [];
  readonly #random: Random;
  readonly #options: PlanOptions;
  readonly #prefix: string;
  #names = 0;

  constructor(random: Random, options: PlanOptions, prefix: string) {
    this.#random = random;
    this.#options = options;
    this.#prefix = prefix;
  }

  /** Adds a step. @returns the state after it */
  next(state: DiskState): DiskState {
    const step = this.#step(state);
    this.steps.push(step);
    return after(state, step, this.#options.clusterSize);
  }

  #step(state: DiskState): Step {
    const { resizes, snapshots, bitmaps } = this.#options;
    const kind = this.#random.below(40);
    if (kind === 0 && resizes) {
      const size = state.content.byteLength + (this.#random.below(400) - 200) * SECTOR;
      return { kind: 'resize', size: Math.min(Math.max(size, 64 * SECTOR), 8192 * SECTOR) };
    }
    if (kind < 3 && snapshots) return this.#snapshot(state);
    if (kind === 3 && bitmaps) {
      const [name] = state.bitmaps;
      if (name !== undefined && state.bitmaps.length > 1) return { kind: 'remove-bitmap', name };
      this.#names++;
      return { kind: 'add-bitmap', name: `${this.#prefix}b${this.#names}` };
    }
    if (kind === 4) return { kind: 'reopen' };
    if (kind < 11) return { kind: 'flush' };
    return { kind: 'requests', requests: this.#requests(state.content.byteLength) };
  }

  #snapshot({ snapshots, bitmaps }: DiskState): Step {
    const [name] = [...snapshots.keys()];
    const wanted = this.#random.below(4);
    if (name === undefined || (wanted < 2 && snapshots.size < 3)) {
      this.#names++;
      return { kind: 'snapshot', name: `${this.#prefix}s${this.#names}` };
    }
    return { kind: wanted < 3 || bitmaps.length > 0 ? 'delete' : 'apply', name };
  }

  /** Some at a time, in parts of the disk that don't meet. */
  #requests(size: number): Request[] {
    const { clusterSize, discards } = this.#options;
    const random = this.#random;
    const count = random.pick([1, 2, 4, 8]);
    const room = Math.floor(size / count);
    return Array.from({ length: count }, (_, nth): Request => {
      const unit = random.pick([1, SECTOR, clusterSize]);
      const from = nth * room;
      const at = Math.max(from, Math.floor((from + random.below(room)) / unit) * unit);
      const most = random.pick([1024, 20_000, 2 * clusterSize, 4 * clusterSize]);
      const length = Math.min(1 + random.below(most), from + room - at, 512 * 1024);
      const kind = random.below(8);
      if (kind < 5) return { kind: 'write', at, length, tag: random.below(2 ** 30) };
      if (kind < 7 || !discards) {
        return { kind: 'zero', at, length, unmap: random.below(2) === 0 };
      }
      return { kind: 'discard', at, length };
    });
  }
}

/** The state after a step that has ended. */
export function after(state: DiskState, step: Step, clusterSize: number): DiskState {
  switch (step.kind) {
    case 'requests': {
      const content = Buffer.from(state.content);
      for (const request of step.requests) perform(content, request, clusterSize);
      return { ...state, content };
    }
    case 'resize': {
      const content = Buffer.alloc(step.size);
      state.content.copy(content);
      return { ...state, content };
    }
    case 'snapshot':
      return {
        ...state,
        snapshots: new Map([...state.snapshots, [step.name, state.content]]),
      };
    case 'delete':
      return {
        ...state,
        snapshots: new Map([...state.snapshots].filter(([name]) => name !== step.name)),
      };
    case 'apply':
      return { ...state, content: state.snapshots.get(step.name) ?? state.content };
    case 'add-bitmap':
      return { ...state, bitmaps: [...state.bitmaps, step.name] };
    case 'remove-bitmap':
      return { ...state, bitmaps: state.bitmaps.filter((name) => name !== step.name) };
    default:
      return state;
  }
}

/** Whole clusters that are discarded read as zeroes; the rest of the range stays as it is. */
function perform(content: Buffer, request: Request, clusterSize: number): void {
  const { at, length } = request;
  const end = at + length;
  if (request.kind === 'write') pattern(length, request.tag).copy(content, at);
  else if (request.kind === 'zero') content.fill(0, at, end);
  else {
    const first = Math.ceil(at / clusterSize) * clusterSize;
    const last = end === content.byteLength ? end : Math.floor(end / clusterSize) * clusterSize;
    if (last > first) content.fill(0, first, last);
  }
}
