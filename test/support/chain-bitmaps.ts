// SPDX-License-Identifier: MIT
/**
 * What dirty bitmaps of a chain have to mark, and what they may: each write of the client, on the node
 * that was the topmost one, in bitmaps that were recording. Nothing is known of the order of what is under
 * way at the same time, so there is a lower bound and an upper one.
 */
import type { BlockNode } from '../../src/block/node.js';

/** A bitmap as it should be. */
export interface TrackedBitmap {
  /** Nodes that it may be on; two while it moves. */
  nodes: readonly string[];
  readonly name: string;
  /** Bytes. */
  readonly granularity: number;
  readonly persistent: boolean;
  /** Changing: a command is under way, or has been since a write began. */
  recording: 'on' | 'off' | 'changing';
  /** Numbers of granules that are marked for certain. */
  must: Set<number>;
  /** Those that can be; undefined: any. */
  may: Set<number> | undefined;
  /** Commands so far: a write sees whether there was one meanwhile. */
  changes: number;
}

interface Write {
  readonly offset: number;
  readonly length: number;
  /** The first of the topmost nodes that it may have gone to. */
  readonly since: number;
  /** Bitmaps that were recording on what was the top when it began, and their changes. */
  readonly before: ReadonlyMap<TrackedBitmap, number>;
}

export class ChainBitmaps {
  readonly tracked = new Set<TrackedBitmap>();
  /** Nodes that the client has written to, the last one is the present one. */
  readonly #tops: string[] = [];
  readonly #running = new Set<Write>();

  constructor(
    readonly top: () => string | undefined,
    readonly find: (name: string) => BlockNode | undefined,
  ) {}

  /** Looks which node is the topmost one; asked for often enough that none is missed. */
  note(): void {
    const top = this.top();
    if (top !== undefined && this.#tops.at(-1) !== top) this.#tops.push(top);
  }

  /** A write begins. @returns to be called when it has been done */
  begin(offset: number, length: number): () => void {
    this.note();
    const before = new Map<TrackedBitmap, number>();
    for (const bitmap of this.tracked) {
      const isHere = bitmap.nodes.includes(this.#tops.at(-1) ?? '');
      if (isHere && bitmap.recording === 'on') before.set(bitmap, bitmap.changes);
    }
    const write: Write = { offset, length, since: Math.max(0, this.#tops.length - 1), before };
    this.#running.add(write);
    for (const bitmap of this.tracked) this.#allow(bitmap, write);
    return () => this.#end(write);
  }

  #end(write: Write): void {
    this.note();
    this.#running.delete(write);
    const tops = this.#tops.slice(write.since);
    for (const bitmap of this.tracked) {
      this.#allow(bitmap, write);
      const steady = bitmap.recording === 'on' && write.before.get(bitmap) === bitmap.changes;
      if (!steady || !tops.every((top) => bitmap.nodes.includes(top))) continue;
      for (const granule of granulesOf(bitmap, write)) bitmap.must.add(granule);
    }
  }

  #allow(bitmap: TrackedBitmap, write: Write): void {
    if (bitmap.recording === 'off' || bitmap.may === undefined) return;
    const tops = this.#tops.slice(write.since);
    if (!tops.some((top) => bitmap.nodes.includes(top))) return;
    for (const granule of granulesOf(bitmap, write)) bitmap.may.add(granule);
  }

  /** A command that changes a bitmap begins: what is under way may come before it or after it. */
  change(bitmap: TrackedBitmap): void {
    this.note();
    bitmap.changes++;
    bitmap.recording = 'changing';
    for (const write of this.#running) this.#allow(bitmap, write);
  }

  /** It is done. */
  settle(bitmap: TrackedBitmap, recording: 'on' | 'off'): void {
    this.note();
    for (const write of this.#running) this.#allow(bitmap, write);
    bitmap.recording = recording;
  }

  /** Somebody else writes to a node: a commit into it, a mirror. */
  forgetBounds(node: string): void {
    for (const bitmap of this.tracked) if (bitmap.nodes.includes(node)) bitmap.may = undefined;
  }

  /** Bitmaps go with their nodes. */
  forgetGone(): void {
    for (const bitmap of this.tracked) {
      if (this.find(bitmap.nodes[0] ?? '') === undefined) this.tracked.delete(bitmap);
    }
  }

  /** Says what is wrong. Nothing may be under way. */
  check(): string[] {
    this.forgetGone();
    const wrong: string[] = [];
    for (const bitmap of this.tracked) {
      const node = this.find(bitmap.nodes[0] ?? '');
      if (node !== undefined) wrong.push(...differences(bitmap, node));
    }
    return wrong;
  }

  /** The same of what images have stored, which have been opened anew. @param names of the nodes before */
  checkStored(names: readonly string[], layers: readonly BlockNode[]): string[] {
    const wrong: string[] = [];
    for (const bitmap of this.tracked) {
      const layer = layers[names.indexOf(bitmap.nodes[0] ?? '')];
      if (layer === undefined || !bitmap.persistent) continue;
      // Below the top images are read-only: there it is switched in memory alone, as with QEMU.
      const recording = layer === layers[0] ? bitmap.recording : undefined;
      wrong.push(...differences({ ...bitmap, recording }, layer));
    }
    return wrong;
  }

  /** A node has another size: what it lost had marks. @param size bytes */
  resize(node: string, size: number): void {
    for (const { nodes, must, granularity } of this.tracked) {
      if (!nodes.includes(node)) continue;
      for (const granule of must) if (granule * granularity >= size) must.delete(granule);
    }
  }
}

export function granulesOf(
  { granularity }: Pick<TrackedBitmap, 'granularity'>,
  { offset, length }: { readonly offset: number; readonly length: number },
): number[] {
  const first = Math.floor(offset / granularity);
  const last = Math.floor((offset + length - 1) / granularity);
  return Array.from({ length: last - first + 1 }, (_, index) => first + index);
}

/** Granules of `to` that those of another granularity touch. */
export function converted(
  granules: ReadonlySet<number>,
  from: number,
  to: Pick<TrackedBitmap, 'granularity'>,
): Set<number> {
  const all = new Set<number>();
  for (const granule of granules) {
    for (const one of granulesOf(to, { offset: granule * from, length: from })) all.add(one);
  }
  return all;
}

type Expected = Omit<TrackedBitmap, 'recording'> & {
  readonly recording: TrackedBitmap['recording'] | undefined;
};

function differences(bitmap: Expected, node: BlockNode): string[] {
  const { name, granularity, must, may, recording, persistent } = bitmap;
  const there = node.bitmaps.get(name);
  const what = `bitmap ${name} of ${node.name}`;
  if (there === undefined) return [`${what} is gone`];
  const wrong: string[] = [];
  const isSwitched = recording !== undefined && there.enabled !== (recording === 'on');
  if (isSwitched) wrong.push(`${what}: recording is ${there.enabled}`);
  if (there.granularity !== granularity) wrong.push(`${what}: granularity ${there.granularity}`);
  if (there.persistent !== persistent) wrong.push(`${what}: persistent is ${there.persistent}`);
  if (there.size !== node.size) wrong.push(`${what} has ${there.size} bytes, not ${node.size}`);
  for (let at = 0; at * granularity < node.size; at++) {
    const isDirty = there.isDirty(at * granularity);
    if (must.has(at) && !isDirty) wrong.push(`${what}: granule ${at} is not marked`);
    if (isDirty && may !== undefined && !may.has(at))
      wrong.push(`${what}: granule ${at} is marked`);
  }
  return wrong.slice(0, 3);
}
