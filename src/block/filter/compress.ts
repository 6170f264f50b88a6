// SPDX-License-Identifier: MIT
/**
 * Filter that has everything compressed that is written to the image below. What is no whole cluster is read
 * and written anew by the node. @see qapi BlockdevOptionsGenericFormat
 */
import { BlockError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import {
  type BlockLimits,
  type DriverDefinition,
  REQ_WRITE_COMPRESSED,
  type RequestFlags,
} from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import { jsonFilename, PassThroughDriver, readPadded } from './pass-through.js';

export const compressDefinition: DriverDefinition = {
  name: 'compress',
  kind: 'filter',
  children: [{ key: 'file', role: 'filtered', required: true }],
  open(_options, context) {
    const child = context.child('file');
    if (child.limits.compressedUnit === 0) {
      throw new BlockError(
        'DF_NOT_SUPPORTED',
        `Compression is not supported for underlying format: ${child.node.driver.name}`,
      );
    }
    return new CompressDriver(child);
  },
};

class CompressDriver extends PassThroughDriver {
  #limits: BlockLimits | undefined;
  #limitsBelow: BlockLimits | undefined;

  constructor(child: ChildEdge) {
    super('compress', child);
  }

  override get limits(): BlockLimits {
    const below = this.child.limits;
    if (this.#limits === undefined || below !== this.#limitsBelow) {
      this.#limitsBelow = below;
      const requestAlignment = Math.max(below.compressedUnit, below.requestAlignment);
      this.#limits = { ...below, requestAlignment };
    }
    return this.#limits;
  }

  override get filename(): string {
    return jsonFilename('compress', { file: this.child });
  }

  override read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return readPadded(this.child, offset, buffer, flags);
  }

  override write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    const length = this.#inside(offset, buffer.byteLength);
    const passed = flags | REQ_WRITE_COMPRESSED;
    return this.child.write(offset, buffer.subarray(0, length), passed);
  }

  override writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.child.writeZeroes(offset, this.#inside(offset, length), flags);
  }

  override discard(offset: number, length: number): MaybePromise<void> {
    return this.child.discard(offset, this.#inside(offset, length));
  }

  /** The padding of the last cluster is no part of the image, whoever may resize that. */
  #inside(offset: number, length: number): number {
    return Math.max(Math.min(length, this.child.size - offset), 0);
  }
}
