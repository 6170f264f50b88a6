// SPDX-License-Identifier: MIT
/** What can happen to the bitmaps of a chain in one step of a random schedule. */
import type { BlockNode } from '../../src/block/node.js';
import type { ChainBench } from './chain-bench.js';
import { converted, type TrackedBitmap } from './chain-bitmaps.js';

const GRANULARITIES = [512, 4096, 65536] as const;
const BITMAPS_MAX = 6;

/** Runs a command while the client writes. @returns whether it was done */
type Try = (command: string, args: object) => Promise<boolean>;

export class ChainBitmapSteps {
  /** Steps that were carried out, by kind. */
  readonly done = new Map<string, number>();

  constructor(
    readonly bench: ChainBench,
    readonly attempt: Try,
  ) {}

  async step(): Promise<void> {
    const { random, bitmaps } = this.bench;
    bitmaps.forgetGone();
    const bitmap = this.#any([...bitmaps.tracked]);
    const dice = random.int(16);
    const isFull = bitmaps.tracked.size >= BITMAPS_MAX;
    if (bitmap === undefined || (dice < 4 && !isFull)) await this.#add();
    else if (dice < 6) await this.#remove(bitmap);
    else if (dice < 7) await this.#clear(bitmap);
    else if (dice < 9) await this.#switch(bitmap, 'disable');
    else if (dice < 11) await this.#switch(bitmap, 'enable');
    else if (dice < 13) await this.#merge(bitmap);
    else await this.#move(bitmap);
  }

  #count(kind: string): void {
    this.done.set(kind, (this.done.get(kind) ?? 0) + 1);
  }

  async #add(): Promise<void> {
    const { random, bitmaps, layers } = this.bench;
    const [top] = layers;
    const node = random.chance(0.8) ? top : this.#any(layers);
    if (node === undefined || top === undefined) return;
    const bitmap: TrackedBitmap = {
      nodes: [node.name],
      name: this.bench.next('b'),
      granularity: random.pick(GRANULARITIES),
      persistent: node === top && node.driver.name === 'qcow2' && random.chance(0.5),
      ...{ recording: 'changing', must: new Set(), may: new Set(), changes: 0 },
    };
    const disabled = random.chance(0.2);
    bitmaps.tracked.add(bitmap);
    bitmaps.change(bitmap);
    // A commit into the node marks what it writes.
    if (this.bench.jobs.length > 0) bitmap.may = undefined;
    const { name, granularity, persistent } = bitmap;
    const args = { node: node.name, name, granularity, persistent, disabled };
    if (await this.attempt('block-dirty-bitmap-add', args)) {
      bitmaps.settle(bitmap, disabled ? 'off' : 'on');
      this.#count('add');
    } else bitmaps.tracked.delete(bitmap);
  }

  async #remove(bitmap: TrackedBitmap): Promise<void> {
    const { bitmaps } = this.bench;
    const was = bitmap.recording === 'on' ? 'on' : 'off';
    bitmaps.change(bitmap);
    if (await this.attempt('block-dirty-bitmap-remove', called(bitmap))) {
      bitmaps.tracked.delete(bitmap);
      this.#count('remove');
    } else bitmaps.settle(bitmap, was);
  }

  async #clear(bitmap: TrackedBitmap): Promise<void> {
    const { bitmaps } = this.bench;
    const was = bitmap.recording === 'on' ? 'on' : 'off';
    const { may } = bitmap;
    // What is under way may be marked after it.
    if (may !== undefined && this.bench.jobs.length === 0) bitmap.may = new Set();
    bitmaps.change(bitmap);
    if (await this.attempt('block-dirty-bitmap-clear', called(bitmap))) {
      bitmap.must.clear();
      this.#count('clear');
    } else for (const granule of may ?? []) bitmap.may?.add(granule);
    bitmaps.settle(bitmap, was);
  }

  async #switch(bitmap: TrackedBitmap, verb: 'enable' | 'disable'): Promise<void> {
    const { bitmaps } = this.bench;
    const was = bitmap.recording === 'on' ? 'on' : 'off';
    bitmaps.change(bitmap);
    const done = await this.attempt(`block-dirty-bitmap-${verb}`, called(bitmap));
    if (done) this.#count(verb);
    bitmaps.settle(bitmap, done ? (verb === 'enable' ? 'on' : 'off') : was);
  }

  async #merge(target: TrackedBitmap): Promise<void> {
    const { bitmaps } = this.bench;
    const source = this.#any([...bitmaps.tracked]);
    if (source === undefined || source === target) return;
    const must = converted(source.must, source.granularity, target);
    const was = target.recording === 'on' ? 'on' : 'off';
    bitmaps.change(target);
    const done = await this.attempt('block-dirty-bitmap-merge', {
      ...{ node: target.nodes[0], target: target.name, bitmaps: [called(source)] },
    });
    if (done) {
      for (const granule of must) target.must.add(granule);
      this.#allowAll(target, source);
      this.#count('merge');
    }
    bitmaps.settle(target, was);
  }

  #allowAll(target: TrackedBitmap, { may, granularity }: TrackedBitmap): void {
    if (may === undefined) target.may = undefined;
    else for (const one of converted(may, granularity, target)) target.may?.add(one);
  }

  /** A snapshot that takes a bitmap along, or a transaction that fails and leaves it where it is. */
  async #move(bitmap: TrackedBitmap): Promise<void> {
    const { bench } = this;
    const { random } = bench;
    const [top] = bench.layers;
    if (top === undefined || bitmap.nodes[0] !== top.name) return;
    if (bench.mayBeLonger || bench.layers.length >= 8) return;
    const overlay = bench.next('n');
    const fails = random.chance(0.3);
    const actions = [...this.#moving(bitmap, top, overlay), ...(fails ? [ABORT] : [])];
    bitmap.nodes = [top.name, overlay];
    const { close } = bench.guest.moment();
    const done = await this.attempt('transaction', { actions });
    const moment = close();
    await bench.guest.settle();
    bench.bitmaps.note();
    bitmap.nodes = [done ? overlay : top.name];
    if (done && fails) bench.faults.push('a transaction with abort was carried out');
    if (!done && bench.daemon.graph.find(overlay) !== undefined)
      bench.faults.push('a node is left');
    if (done && bench.layers[0]?.name === overlay) bench.contents.set(top.name, moment);
    this.#count(done ? 'move' : 'failed move');
  }

  /** In an order that never leaves a write without a mark. */
  #moving(bitmap: TrackedBitmap, top: BlockNode, overlay: string): object[] {
    const { name, granularity, persistent, recording } = bitmap;
    const from = { node: top.name, name };
    const to = { node: overlay, name, granularity, persistent, disabled: recording === 'off' };
    return [
      action('block-dirty-bitmap-disable', from),
      action('blockdev-snapshot-sync', {
        'node-name': top.name,
        'snapshot-file': this.bench.path(overlay),
        'snapshot-node-name': overlay,
      }),
      action('block-dirty-bitmap-add', to),
      action('block-dirty-bitmap-merge', { node: overlay, target: name, bitmaps: [from] }),
      action('block-dirty-bitmap-remove', from),
    ];
  }

  #any<T>(choices: readonly T[]): T | undefined {
    return choices[this.bench.random.int(choices.length)];
  }
}

const action = (type: string, data: object): object => ({ type, data });
const ABORT = action('abort', {});

const called = ({ nodes: [node], name }: TrackedBitmap): object => ({ node, name });
