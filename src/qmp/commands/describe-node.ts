// SPDX-License-Identifier: MIT
/** Nodes as queries show them, field by field as QEMU does. @see qapi BlockDeviceInfo, ImageInfo */

import type { BlockDirtyInfo } from '../../../protocol/qapi/bitmaps.js';
import {
  type BlockDeviceInfo,
  type BlockInfo,
  type ImageInfo,
  ImageInfoSpecific,
  type SnapshotInfo,
} from '../../../protocol/qapi/block-nodes-info.js';
import type { JsonObject, Output } from '../../../protocol/qapi/types.js';
import { validate } from '../../../protocol/qapi/validate.js';
import { BlockError } from '../../base/errors.js';
import type { DirtyBitmap } from '../../block/bitmap/dirty-bitmap.js';
import type { FormatInfo, InternalSnapshot } from '../../block/block-driver.js';
import { chainDown, chainNext } from '../../block/chain.js';
import { shownName } from '../../block/image-name.js';
import type { BlockNode } from '../../block/node.js';

/** Options of one description. */
export interface DescribeOptions {
  /** Leave out the nested images of the backing chain. */
  readonly flat: boolean;
}

/** @see qapi BlockDeviceInfo */
export async function describeNode(
  node: BlockNode,
  options: DescribeOptions,
): Promise<Output<typeof BlockDeviceInfo>> {
  const filename = await shownName(node);
  const backing = node.children.get('backing')?.node;
  const bitmaps = [...node.bitmaps.values(), ...anonymousTrackers(node)];
  return {
    file: filename,
    'node-name': node.name,
    ro: node.readOnly,
    drv: node.driver.name,
    ...(backing !== undefined ? { backing_file: await shownName(backing) } : {}),
    backing_file_depth: options.flat ? 0 : backingDepth(node),
    encrypted: node.driver.encrypted === true,
    detect_zeroes: node.options.detectZeroes,
    ...NO_THROTTLE,
    image: await describeImage(node, options),
    cache: {
      writeback: true,
      direct: node.options.cache.direct,
      'no-flush': node.options.cache.noFlush,
    },
    write_threshold: node.writeThreshold,
    ...(node.active ? {} : { active: false }),
    // The newest first, as QEMU lists them.
    ...(bitmaps.length > 0 ? { 'dirty-bitmaps': bitmaps.toReversed().map(describeBitmap) } : {}),
  };
}

/** Limits live in throttle nodes, not in devices; the fields are always 0. */
const NO_THROTTLE = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };

/** @see qapi ImageInfo */
export async function describeImage(
  node: BlockNode,
  options: DescribeOptions,
): Promise<Output<typeof ImageInfo>> {
  const backing = node.children.get('backing')?.node;
  const below = options.flat ? undefined : chainNext(node);
  const allocated = await allocatedSize(node);
  const specific = await specificInfo(node);
  const info = await node.driver.formatInfo?.();
  const snapshots = await snapshotsOf(node);
  const backingFilename = info?.backingFilename ?? backing?.driver.filename;
  return {
    filename: await shownName(node),
    format: node.driver.name,
    'virtual-size': node.size,
    ...(allocated !== undefined ? { 'actual-size': allocated } : {}),
    ...(node.driver.encrypted === true ? { encrypted: true } : {}),
    ...(backingFilename !== undefined ? { 'backing-filename': backingFilename } : {}),
    ...(info !== undefined
      ? describeFormat(info)
      : isNeverDirty(node)
        ? { 'dirty-flag': false }
        : {}),
    ...(snapshots.length > 0 ? { snapshots: snapshots.map(describeSnapshot) } : {}),
    ...(specific !== undefined ? { 'format-specific': specific } : {}),
    ...(below !== undefined ? { 'backing-image': await describeImage(below, options) } : {}),
  };
}

/** As QEMU tells it: of files, and of what lies on them as it is. */
function isNeverDirty({ driver, kind, children }: BlockNode): boolean {
  if (driver.name === 'file' || driver.name === 'host_device') return true;
  if (driver.name !== 'raw' && driver.name !== 'luks' && kind !== 'filter') return false;
  const [child] = [...children.values()].filter(
    ({ role }) => role === 'file' || role === 'filtered',
  );
  return child !== undefined && isNeverDirty(child.node);
}

/** One image whose table is broken must not keep a query from telling of all others. */
async function snapshotsOf({ driver }: BlockNode): Promise<readonly InternalSnapshot[]> {
  try {
    return (await driver.snapshots?.list()) ?? [];
  } catch (error) {
    if (error instanceof BlockError && error.code === 'DF_CORRUPT_IMAGE') return [];
    throw error;
  }
}

/** @see qapi SnapshotInfo */
export function describeSnapshot(snapshot: InternalSnapshot): Output<typeof SnapshotInfo> {
  return {
    id: snapshot.id,
    name: snapshot.name,
    'vm-state-size': snapshot.vmStateSize,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': snapshot.clockSeconds,
    'vm-clock-nsec': snapshot.clockNanoseconds,
    ...(snapshot.icount !== undefined ? { icount: snapshot.icount } : {}),
  };
}

/** What only images of a format have. */
function describeFormat(info: FormatInfo): Partial<Output<typeof ImageInfo>> {
  const { fullBackingFilename, backingFormat } = info;
  return {
    'cluster-size': info.clusterSize,
    'dirty-flag': info.dirty,
    ...(fullBackingFilename !== undefined ? { 'full-backing-filename': fullBackingFilename } : {}),
    ...(backingFormat !== undefined ? { 'backing-filename-format': backingFormat } : {}),
  };
}

/** What the driver tells of its format, checked: it has its own idea of the schema. */
async function specificInfo(
  node: BlockNode,
): Promise<Output<typeof ImageInfoSpecific> | undefined> {
  const told = await node.driver.specificInfo?.();
  return told === undefined ? undefined : validate(ImageInfoSpecific, told as JsonObject);
}

/**
 * Bytes that the node and what lies below it, but not its backing chain, take of their media;
 * undefined where that is not known. A filter takes what its one child takes.
 */
async function allocatedSize(node: BlockNode): Promise<number | undefined> {
  if (node.driver.allocatedSize !== undefined) return node.driver.allocatedSize();
  if (node.kind === 'protocol') return undefined;
  const edges = [...node.children.values()].filter(({ role }) =>
    node.kind === 'filter' ? role === 'filtered' : role !== 'backing',
  );
  let sum: number | undefined;
  for (const edge of edges) {
    const taken = await allocatedSize(edge.node);
    if (taken === undefined) return undefined;
    sum = (sum ?? 0) + taken;
  }
  return sum;
}

/** Filters count, as in QEMU. */
function backingDepth(node: BlockNode): number {
  return chainDown(node).length - 1;
}

/** Bitmaps of jobs, which have no name. */
function anonymousTrackers(node: BlockNode): DirtyBitmap[] {
  const named = new Set(node.bitmaps.values());
  return node.trackers.filter((bitmap) => !named.has(bitmap));
}

/** @see qapi BlockDirtyInfo */
function describeBitmap(bitmap: DirtyBitmap): Output<typeof BlockDirtyInfo> {
  return {
    ...(bitmap.name !== undefined ? { name: bitmap.name } : {}),
    count: bitmap.count,
    granularity: bitmap.granularity,
    recording: bitmap.recording,
    busy: bitmap.busy,
    persistent: bitmap.persistent,
    ...(bitmap.inconsistent ? { inconsistent: true } : {}),
  };
}

/** Devices belong to virtual machines; a storage daemon has none. */
export function describeDevices(): Output<typeof BlockInfo>[] {
  return [];
}
