// SPDX-License-Identifier: MIT
/**
 * The filter that a mirror puts above its source: the place where the source's users meet the job,
 * and which the pivot takes out again. What passes is marked dirty by the source node below.
 */
import type { MaybePromise } from '../../base/maybe-promise.js';
import type {
  BlockDriver,
  BlockLimits,
  DriverFeatures,
  Extent,
  RequestFlags,
} from '../block-driver.js';
import type { ChildEdge } from '../edge.js';

export class MirrorTopDriver implements BlockDriver {
  readonly name = 'mirror_top';
  /** Called after each change of the source, when the job waits for one. */
  onChange: (() => void) | undefined;

  constructor(readonly child: ChildEdge) {}

  get features(): DriverFeatures {
    return { ...this.child.node.driver.features, fua: true, writeZeroes: true, discard: true };
  }

  get limits(): BlockLimits {
    return this.child.limits;
  }

  get size(): number {
    return this.child.size;
  }

  get readOnly(): boolean {
    return this.child.node.readOnly;
  }

  get filename(): string {
    return this.child.node.driver.filename;
  }

  read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return this.child.read(offset, buffer, flags);
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return this.#changed(this.child.write(offset, buffer, flags));
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#changed(this.child.writeZeroes(offset, length, flags));
  }

  discard(offset: number, length: number): MaybePromise<void> {
    return this.#changed(this.child.discard(offset, length));
  }

  blockStatus(offset: number, length: number): Extent {
    return { length, flags: 0, delegate: this.child, hostOffset: offset };
  }

  close(): void {}

  #changed(pending: MaybePromise<void>): MaybePromise<void> {
    if (pending !== undefined) return pending.finally(() => this.onChange?.());
    this.onChange?.();
  }
}
