// SPDX-License-Identifier: MIT
/**
 * Snapshots are made, deleted and applied. Wherever that is cut off, the image is sound but for clusters
 * that are lost (leaks) or copied once more than needed: counts go up before anything refers to clusters,
 * marks of sole use go before the snapshot is in the table, and one write of the header decides.
 * For images that nobody uses meanwhile. @see qcow2.txt "Snapshots"
 */
import { ENTRY_COPIED, ENTRY_LENGTH } from '../../../../protocol/qcow2/entries.js';
import { QCOW2_L1_TABLE_MAX } from '../../../../protocol/qcow2/header.js';
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
import { allocateContiguousLocked } from './allocate.js';
import type { HeaderChange } from './header-state.js';
import type { Qcow2Image } from './image.js';
import { readPadded } from './image-io.js';
import { L1Table } from './l1-table.js';
import { OverlapGuard } from './overlap.js';
import { prepareWrite } from './prepare-write.js';
import { addReferences, dropReferences, markCopied } from './shared-clusters.js';
import { type SnapshotL1, snapshotTables } from './snapshots.js';

const NS_PER_S = 1_000_000_000n;
const NO_ICOUNT = 2n ** 64n - 1n;

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('utf8');

/** @throws BlockError DF_CORRUPT_IMAGE when the table can't be right */
export async function listSnapshots(image: Qcow2Image): Promise<InternalSnapshot[]> {
  const { tables } = await snapshotTables(image);
  return tables.map(({ entry }) => {
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
  });
}

/** @throws BlockError; the image has lost some clusters then, at worst */
export async function createSnapshot(
  image: Qcow2Image,
  { name, dateSeconds, dateNanoseconds }: NewInternalSnapshot,
): Promise<void> {
  await settle(image);
  const { tables } = await snapshotTables(image);
  if (tables.length >= QCOW2_SNAPSHOTS_MAX) {
    throw new BlockError('DF_TOO_LARGE', `The image has ${tables.length} snapshots, the most`);
  }
  const active = image.map.l1;
  await addReferences(image, active);
  const l1Offset = await writeTable(image, shared(active.bytes));
  // Now counts are durable, so nothing that will belong to the snapshot is taken for ours alone.
  await markCopied(image);
  const entry: SnapshotEntry = {
    l1Offset: BigInt(l1Offset),
    l1Entries: active.entries,
    dateSeconds,
    dateNanoseconds,
    vmClock: 0n,
    vmStateLength: 0,
    extra: diskSnapshotExtra(image.size),
    id: Buffer.from(newId(tables)),
    name: Buffer.from(name),
  };
  await replaceTable(image, [...tables.map((table) => table.entry), entry]);
  await finish(image);
}

/** @param id as `listSnapshots` tells it @throws BlockError DF_NOT_FOUND */
export async function deleteSnapshot(
  image: Qcow2Image,
  { id, name }: { readonly id: string; readonly name: string },
): Promise<void> {
  await settle(image);
  const { tables } = await snapshotTables(image);
  const gone = tables.find(({ entry }) => text(entry.id) === id && text(entry.name) === name);
  if (gone === undefined) throw notFound(name);
  const l1 = await readL1(image, gone);
  const others = tables.filter((table) => table !== gone);
  await replaceTable(
    image,
    others.map(({ entry }) => entry),
  );
  await dropReferences(image, l1);
  release(image, l1.offset, l1.bytes.byteLength);
  await image.metadata.commit();
  await markCopied(image);
  await finish(image);
}

/**
 * The disk is as it was, its size too.
 * @param wanted id, or name @throws BlockError DF_NOT_FOUND
 */
export async function applySnapshot(image: Qcow2Image, wanted: string): Promise<void> {
  await settle(image);
  const { tables } = await snapshotTables(image);
  const found =
    tables.find(({ entry }) => text(entry.id) === wanted) ??
    tables.find(({ entry }) => text(entry.name) === wanted);
  if (found === undefined) throw notFound(wanted);
  const size = Number(snapshotExtra(found.entry, 'diskSize') ?? BigInt(image.size));
  const bytes = await l1For(image, found, size);
  const next = new L1Table(0, bytes);
  await addReferences(image, next);
  const offset = await writeTable(image, bytes);
  const old = image.map.l1;
  await image.header.update({
    l1Offset: BigInt(offset),
    l1Entries: next.entries,
    size: BigInt(size),
  });
  image.map.l1 = new L1Table(offset, bytes);
  image.size = size;
  image.l2.drop(0, Number.POSITIVE_INFINITY);
  image.decompressed.clear();
  await dropReferences(image, old);
  release(image, old.offset, old.bytes.byteLength);
  await image.metadata.commit();
  await markCopied(image);
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

async function finish(image: Qcow2Image): Promise<void> {
  await image.metadata.finish();
  await image.file.flush();
  image.guard = await OverlapGuard.create(image);
}

async function readL1(image: Qcow2Image, { offset, entries }: SnapshotL1): Promise<L1Table> {
  const bytes = Buffer.alloc(entries * ENTRY_LENGTH);
  await readPadded(image.file, offset, bytes);
  return new L1Table(offset, bytes);
}

/** A snapshot's L1 table as the active one for a disk of `size` bytes. */
async function l1For(image: Qcow2Image, snapshot: SnapshotL1, size: number): Promise<Buffer> {
  const needed = Math.ceil(size / image.geometry.bytesPerL2);
  const length = Math.max(needed, snapshot.entries) * ENTRY_LENGTH;
  if (size % 512 !== 0 || length > QCOW2_L1_TABLE_MAX) {
    throw new BlockError('DF_CORRUPT_IMAGE', `A snapshot of a disk of ${size} bytes can not be`);
  }
  const bytes = Buffer.alloc(length);
  const { bytes: saved } = await readL1(image, snapshot);
  shared(saved).copy(bytes);
  return bytes;
}

/** A copy of an L1 table that has nothing alone. */
function shared(l1: Buffer): Buffer {
  const copy = new L1Table(0, Buffer.from(l1));
  for (let index = 0; index < copy.entries; index++) {
    const high = copy.high(index);
    copy.view.setUint32(index * ENTRY_LENGTH, (high & ~ENTRY_COPIED) >>> 0);
  }
  return copy.bytes;
}

/** Writes a table to new clusters, after all counts; durable when done. @returns where, host bytes */
async function writeTable(image: Qcow2Image, bytes: Uint8Array): Promise<number> {
  const { allocation, geometry, metadata, file } = image;
  const clusters = Math.ceil(bytes.byteLength / geometry.clusterSize);
  const offset =
    clusters === 0
      ? 0
      : (await allocation.run(() => allocateContiguousLocked(image, clusters))).offset;
  await metadata.writeRefcounts();
  if (clusters > 0) await file.write(offset, Buffer.from(bytes));
  await file.flush();
  return offset;
}

/** Another table of snapshots takes the old one's place, durably. */
async function replaceTable(image: Qcow2Image, entries: readonly SnapshotEntry[]): Promise<void> {
  const old = await snapshotTables(image);
  const bytes = encodeSnapshotTables(entries);
  if (bytes.byteLength > QCOW2_SNAPSHOT_TABLE_MAX) {
    throw new BlockError('DF_TOO_LARGE', 'The table of snapshots has become too long');
  }
  const offset = await writeTable(image, bytes);
  const change: HeaderChange = {
    snapshotCount: entries.length,
    snapshotsOffset: BigInt(offset),
  };
  await image.header.update(change);
  if (old.length > 0) release(image, old.offset, old.length);
}

/** Clusters of a table that nothing refers to any more. */
function release(image: Qcow2Image, offset: number, bytes: number): void {
  const length = alignUp(bytes, image.geometry.clusterSize);
  if (length === 0) return;
  const discard = image.options.passDiscard.other;
  image.frees.add({ offset, length, table: true, discard });
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
