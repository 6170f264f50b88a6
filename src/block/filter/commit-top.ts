// SPDX-License-Identifier: MIT
/**
 * The filter that a commit puts above the topmost layer that goes: those above it can rely on what they
 * read, while nobody may look into the layers below it, whose base is being written.
 */
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { BlockDriver, BlockLimits, DriverFeatures, Extent } from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import { PERM_ALL, type Permissions } from '../permissions.js';

export class CommitTopDriver implements BlockDriver {
  readonly name = 'commit_top';
  readonly features: DriverFeatures = {
    fua: false,
    writeZeroes: false,
    discard: false,
    backing: false,
    multiConn: false,
  };
  readonly #child: ChildEdge;

  constructor(child: ChildEdge) {
    this.#child = child;
  }

  get limits(): BlockLimits {
    return this.#child.limits;
  }

  get size(): number {
    return this.#child.size;
  }

  get filename(): string {
    return this.#child.node.driver.filename;
  }

  childPermissions(): Permissions {
    return { taken: 0, shared: PERM_ALL };
  }

  read(offset: number, buffer: Buffer, flags: number): MaybePromise<void> {
    return this.#child.read(offset, buffer, flags);
  }

  blockStatus(offset: number, length: number): Extent {
    return { length, flags: 0, delegate: this.#child, hostOffset: offset };
  }

  close(): void {}
}
