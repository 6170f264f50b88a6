// SPDX-License-Identifier: MIT
/**
 * How writes to a mirror's source reach its target: marked and copied later (background), in both
 * before they are done (write-blocking), or the one until it does not converge (auto).
 */
import { BlockError } from '../base/errors.js';
import type { MaybePromise } from '../base/maybe-promise.js';
import { RangeLock } from '../base/range-lock.js';
import type { BlockBackend } from '../block/backend.js';
import type { DirtyBitmap } from '../block/bitmap/dirty-bitmap.js';
import { REQ_MAY_UNMAP } from '../block/block-driver.js';
import { drained } from '../block/drain.js';
import type { ChildEdge } from '../block/edge.js';
import { type MirrorSide, MirrorTopDriver } from '../block/filter/mirror-top.js';
import type { BlockGraph } from '../block/graph.js';
import type { BlockNode } from '../block/node.js';

/** What is asked for. */
export type MirrorCopyMode = 'background' | 'write-blocking' | 'auto';

export interface MirrorWritesOptions {
  readonly graph: BlockGraph;
  readonly bitmap: DirtyBitmap;
  readonly target: BlockBackend;
  /** The target is a backing node of the source. */
  readonly intoChain: boolean;
  /** Zeroes may become holes in the target. */
  readonly unmap: boolean;
  /** Of a granule that is written in part the target has to get the rest as well. */
  readonly wholeGranules: boolean;
  readonly mode: MirrorCopyMode;
  /** False while the job does not want the target written. */
  readonly usable: () => boolean;
  readonly failed: (error: unknown) => void;
  readonly changed: () => void;
}

export class MirrorWrites implements MirrorSide {
  readonly lock = new RangeLock();
  readonly #options: MirrorWritesOptions;
  #mode: MirrorCopyMode;
  #filter: BlockNode | undefined;

  constructor(options: MirrorWritesOptions) {
    this.#options = options;
    this.#mode = options.mode;
  }

  get bitmap(): DirtyBitmap {
    return this.#options.bitmap;
  }

  get intoChain(): boolean {
    return this.#options.intoChain;
  }

  get wholeGranules(): boolean {
    return this.#options.wholeGranules;
  }

  get targetUsable(): boolean {
    return this.#options.usable();
  }

  /** As asked for. */
  get mode(): MirrorCopyMode {
    return this.#mode;
  }

  /** Writes go to both, now. */
  get toBoth(): boolean {
    return this.#driver?.writesBoth === true;
  }

  /** The filter's driver, with the mode in force from its first request on. */
  makeDriver(child: ChildEdge): MirrorTopDriver {
    const driver = new MirrorTopDriver(child, this);
    driver.writesBoth = this.#mode === 'write-blocking';
    return driver;
  }

  /** The filter above the source; undefined once it is taken out. */
  set filter(filter: BlockNode | undefined) {
    this.#filter = filter;
  }

  /**
   * Changes the mode. When it ends, no write of the old mode is in flight.
   * @throws BlockError when somebody writes to the source past the filter; nothing has changed then
   */
  async change(mode: MirrorCopyMode): Promise<void> {
    const driver = this.#driver;
    if (driver === undefined) throw new BlockError('DF_INVALID', 'the job is about to end');
    // Who is in both already stays so: 'auto' never goes back.
    const toBoth = mode === 'write-blocking' || (mode === 'auto' && driver.writesBoth);
    await this.#switch(toBoth);
    this.#mode = mode;
  }

  /** For 'auto', when it does not converge: writes go to both from now on. @throws as `change` */
  slowDownWriters(): Promise<void> {
    return this.#switch(true);
  }

  write(offset: number, buffer: Buffer): MaybePromise<void> {
    return this.#options.target.root.write(offset, buffer);
  }

  writeZeroes(offset: number, length: number): MaybePromise<void> {
    const { target, unmap } = this.#options;
    return target.root.writeZeroes(offset, length, unmap ? REQ_MAY_UNMAP : 0);
  }

  targetFailed(error: unknown): void {
    this.#options.failed(error);
  }

  changed(): void {
    this.#options.changed();
  }

  get #driver(): MirrorTopDriver | undefined {
    const driver = this.#filter?.driver;
    return driver instanceof MirrorTopDriver ? driver : undefined;
  }

  #switch(toBoth: boolean): Promise<void> {
    const { graph } = this.#options;
    return graph.exclusive(async () => {
      const filter = this.#filter;
      const driver = this.#driver;
      if (filter === undefined || driver === undefined || driver.writesBoth === toBoth) return;
      await drained([filter], async () => {
        driver.writesBoth = toBoth;
        try {
          await graph.updatePermissions([filter]);
        } catch (error) {
          driver.writesBoth = !toBoth;
          throw error;
        }
      });
    });
  }
}
