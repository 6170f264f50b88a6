// SPDX-License-Identifier: MIT
/**
 * Snapshots are made, deleted and applied, each by one write of the header: see `table-switch.ts`. For
 * images that nobody uses meanwhile. @see qcow2.txt "Snapshots"
 */
import {
  diskSnapshotExtra,
  encodeSnapshotTables,
  QCOW2_SNAPSHOT_TABLE_MAX,
  QCOW2_SNAPSHOTS_MAX,
  type SnapshotEntry,
  snapshotExtra,
} from '../../../../protocol/qcow2/snapshots.js';
import { alignUp } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import type { InternalSnapshot, NewInternalSnapshot } from '../../block-driver.js';
import type { HeaderChange } from './header-state.js';
import type { Qcow2Image } from './image.js';
import { OverlapGuard } from './overlap.js';
import { prepareWrite } from './prepare-write.js';
import {
  diskOf,
  readSnapshotL1,
  type SnapshotL1,
  type SnapshotTable,
  snapshotTables,
} from './snapshots.js';
import { switchTables } from './table-switch.js';

const NS_PER_S = 1_000_000_000n;
const NO_ICOUNT = 2n ** 64n - 1n;

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('utf8');

/** @throws BlockError DF_CORRUPT_IMAGE when the table can't be right */
export async function listSnapshots(image: Qcow2Image): Promise<InternalSnapshot[]> {
  const { tables } = await snapshotTables(image);
  return tables.map(({ entry }) => describe(entry));
}

function describe(entry: SnapshotEntry): InternalSnapshot {
  const icount = snapshotExtra(entry, 'icount');
  return {
    id: text(entry.id),
    name: text(entry.name),
    vmStateSize: Number(snapshotExtra(entry, 'vmStateSize') ?? entry.vmStateLength),
    dateSeconds: entry.dateSeconds,
    dateNanoseconds: entry.dateNanoseconds,
    clockSeconds: Number(entry.vmClock / NS_PER_S),
    clockNanoseconds: Number(entry.vmClock % NS_PER_S),
    ...(icount === undefined || icount === NO_ICOUNT ? {} : { icount: Number(icount) }),
  };
}

/** @returns the snapshot @throws BlockError; the image has lost some clusters then, at worst */
export async function createSnapshot(
  image: Qcow2Image,
  { name, dateSeconds, dateNanoseconds }: NewInternalSnapshot,
): Promise<InternalSnapshot> {
  await settle(image);
  const old = await snapshotTables(image);
  if (old.tables.length >= QCOW2_SNAPSHOTS_MAX) {
    throw new BlockError('DF_TOO_LARGE', `The image has ${old.tables.length} snapshots, the most`);
  }
  const active = image.map.l1;
  // The snapshot keeps the active tables as they are; the disk goes on with copies.
  const entry: SnapshotEntry = {
    l1Offset: BigInt(active.offset),
    l1Entries: active.entries,
    dateSeconds,
    dateNanoseconds,
    vmClock: 0n,
    vmStateLength: 0,
    extra: diskSnapshotExtra(image.size),
    id: Buffer.from(newId(old.tables)),
    name: Buffer.from(name),
  };
  const { entries } = active;
  await switchTables(image, {
    ...{ source: active, entries, gains: true, released: [] },
    ...snapshotChange([...old.tables.map((table) => table.entry), entry]),
  });
  await finish(image, old);
  return describe(entry);
}

/** @param id as `listSnapshots` tells it @throws BlockError DF_NOT_FOUND */
export async function deleteSnapshot(
  image: Qcow2Image,
  { id, name }: { readonly id: string; readonly name: string },
): Promise<void> {
  await settle(image);
  const old = await snapshotTables(image);
  const gone = old.tables.find(({ entry }) => text(entry.id) === id && text(entry.name) === name);
  if (gone === undefined) throw notFound(name);
  const active = image.map.l1;
  const others = old.tables.filter((table) => table !== gone);
  await switchTables(image, {
    ...{ source: active, entries: active.entries, gains: false },
    ...{ released: [await readSnapshotL1(image, gone)], replaced: active },
    ...snapshotChange(others.map(({ entry }) => entry)),
  });
  await finish(image, old);
}

/**
 * The disk is as it was, its size too.
 * @param wanted id, or name @throws BlockError DF_NOT_FOUND, DF_CORRUPT_IMAGE
 */
export async function applySnapshot(image: Qcow2Image, wanted: string): Promise<void> {
  await settle(image);
  const { tables } = await snapshotTables(image);
  const found =
    tables.find(({ entry }) => text(entry.id) === wanted) ??
    tables.find(({ entry }) => text(entry.name) === wanted);
  if (found === undefined) throw notFound(wanted);
  const { size, entries } = diskOf(image, found);
  await switchTables(image, {
    source: await readSnapshotL1(image, found),
    entries,
    gains: true,
    released: [image.map.l1],
    header: { size: BigInt(size) },
  });
  image.size = size;
  await finish(image);
}

/** Everything is in the file, counts too, and nothing waits to come free. */
async function settle(image: Qcow2Image): Promise<void> {
  if (image.hasDataFile) {
    throw new BlockError(
      'DF_NOT_SUPPORTED',
      'An image with an external data file can not have internal snapshots',
    );
  }
  await prepareWrite(image);
  await image.metadata.finish();
  await image.file.flush();
}

/**
 * What has been replaced comes free. Where that fails the change has happened all the same: it is tried
 * again with the next one, and until then clusters are lost.
 * @param old a table of snapshots that another has replaced
 */
async function finish(image: Qcow2Image, old?: SnapshotTable): Promise<void> {
  if (old !== undefined && old.length > 0) {
    const length = alignUp(old.length, image.geometry.clusterSize);
    const discard = image.options.passDiscard.other;
    image.frees.add({ offset: old.offset, length, table: true, discard });
  }
  try {
    await image.metadata.finish();
    await image.file.flush();
    image.guard = await OverlapGuard.create(image);
  } catch {
    image.guard?.refresh();
  }
}

/** @throws BlockError DF_TOO_LARGE */
function snapshotChange(entries: readonly SnapshotEntry[]): {
  readonly snapshots: Uint8Array;
  readonly header: HeaderChange;
} {
  const snapshots = encodeSnapshotTables(entries);
  if (snapshots.byteLength > QCOW2_SNAPSHOT_TABLE_MAX) {
    throw new BlockError('DF_TOO_LARGE', 'The table of snapshots has become too long');
  }
  return { snapshots, header: { snapshotCount: entries.length } };
}

/** One more than the largest number among the ids. */
function newId(tables: readonly SnapshotL1[]): string {
  let most = 0;
  for (const { entry } of tables) {
    const id = text(entry.id);
    if (/^\d{1,9}$/.test(id)) most = Math.max(most, Number(id));
  }
  return String(most + 1);
}

const notFound = (name: string): BlockError =>
  new BlockError('DF_NOT_FOUND', `There is no snapshot '${name}'`);
