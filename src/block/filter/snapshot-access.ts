// SPDX-License-Identifier: MIT
/**
 * Shows the point in time that a copy-before-write filter keeps, for readers beside the writers of
 * that filter (image fleecing). @see qapi BlockdevDriver, snapshot-access
 */
import { BlockError } from '../../base/errors.js';
import {
  type BlockDriver,
  type BlockLimits,
  type DriverDefinition,
  type DriverFeatures,
  type Extent,
  STATUS_ALLOCATED,
} from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import { PERM_ALL, PERM_CONSISTENT_READ, type Permissions } from '../permissions.js';
import { CopyBeforeWriteDriver } from './copy-before-write.js';
import { jsonFilename } from './pass-through.js';

export const snapshotAccessDefinition: DriverDefinition = {
  name: 'snapshot-access',
  kind: 'format',
  children: [{ key: 'file', role: 'file', required: true }],
  open(_options, context) {
    const child = context.child('file');
    const { driver, name } = child.node;
    if (driver instanceof CopyBeforeWriteDriver) return new SnapshotAccessDriver(child, driver);
    throw new BlockError('DF_INVALID', `Node '${name}' is no copy-before-write filter`, {
      node: name,
    });
  },
};

/** A reader; a backup may take what it has copied out of the snapshot (`discard-source`). */
export class SnapshotAccessDriver implements BlockDriver {
  readonly name = 'snapshot-access';
  readonly features: DriverFeatures = {
    fua: true,
    writeZeroes: false,
    discard: false,
    backing: false,
    multiConn: true,
  };

  constructor(
    readonly child: ChildEdge,
    /** The filter itself: others may come between, but the snapshot is this one's. */
    readonly filter: CopyBeforeWriteDriver,
  ) {}

  get limits(): BlockLimits {
    return this.child.limits;
  }

  get size(): number {
    return this.filter.copies.size;
  }

  get filename(): string {
    return jsonFilename('snapshot-access', { file: this.child });
  }

  /** A reader of the snapshot relies on every write passing the filter. */
  childPermissions(): Permissions {
    return { taken: PERM_CONSISTENT_READ, shared: PERM_ALL };
  }

  read(offset: number, buffer: Buffer): Promise<void> {
    return this.filter.readSnapshot(offset, buffer);
  }

  async blockStatus(offset: number, length: number): Promise<Extent> {
    const { length: prefix, flags } = await this.filter.snapshotStatus(offset, length);
    return { length: prefix, flags: flags | STATUS_ALLOCATED };
  }

  close(): void {}
}
