// SPDX-License-Identifier: MIT
/** The image that is checked, and what has been found so far. All is read from the file. */
import type { StoredBitmap } from '../../../../../protocol/qcow2/bitmaps.js';
import { QCOW2_INCOMPAT_DATA_FILE } from '../../../../../protocol/qcow2/header.js';
import type { SnapshotEntry } from '../../../../../protocol/qcow2/snapshots.js';
import type { CheckFix, CheckRequest, CheckResult } from '../../../image-check.js';
import { type DirectoryPlace, directoryPlace, readDirectory } from '../bitmap-directory.js';
import type { Geometry } from '../geometry.js';
import { HeaderState } from '../header-state.js';
import type { ImageIo } from '../image-io.js';
import type { EntryTable, L1Table } from '../l1-table.js';
import { readHead, readTables } from '../open.js';
import { readSnapshots } from './read-snapshots.js';

export type Tally = { -readonly [K in keyof CheckResult]: CheckResult[K] };

export interface CheckSubject {
  readonly file: ImageIo;
  readonly header: HeaderState;
  readonly geometry: Geometry;
  readonly hasDataFile: boolean;
  /** Virtual size, bytes. */
  readonly size: number;
  readonly l1: L1Table;
  /** Of refcount blocks; another one when all counts have been written anew. */
  table: EntryTable;
  /** Another table when it has been written anew. */
  snapshots: SnapshotsInFile;
  readonly bitmaps: readonly StoredBitmap[];
  /** Where `bitmaps` stand; undefined: there are none. */
  readonly directory: DirectoryPlace | undefined;
  readonly fix: CheckFix;
  readonly say: (text: string) => void;
  readonly tally: Tally;
  /** Less than so many bytes behind the end of the file something may lie. */
  readonly reach: number;
}

export interface SnapshotsInFile {
  /** Host bytes. */
  readonly offset: number;
  readonly length: number;
  readonly entries: readonly SnapshotEntry[];
}

/** What is wrong with the table of snapshots, and is mended when the counts are right. */
export interface SnapshotDamage {
  /** Snapshots at the end of the table that are more than there may be: `entries` are without them. */
  readonly overhanging: number;
  /** Entries with too much extra data, of which the rest is left out of `entries`, or with too little. */
  readonly wrongExtra: number;
}

/** @throws BlockError for an image whose header, table of snapshots or directory of bitmaps can't be */
export async function openSubject({ file, fix, say }: CheckRequest): Promise<{
  readonly subject: CheckSubject;
  readonly damage: SnapshotDamage;
}> {
  const head = await readHead(file, { snapshots: 'unchecked' });
  const opened = await readTables(file, head, undefined);
  const { geometry, size, l1, refcountTable, content } = opened;
  const header = new HeaderState(content, () => file);
  const image = { file, header, geometry };
  const bitmaps = await readDirectory(image);
  const { damage, ...snapshots } = await readSnapshots({ ...image, fix, say });
  const subject: CheckSubject = {
    ...{ file, header, geometry, size, l1, fix, say, bitmaps },
    hasDataFile: (content.header.incompatible & QCOW2_INCOMPAT_DATA_FILE) !== 0n,
    table: refcountTable,
    snapshots,
    directory: directoryPlace({ header, storedBitmaps: bitmaps }),
    tally: newTally(),
    // The last cluster need not be there as a whole.
    reach: geometry.clusterSize,
  };
  return { subject, damage };
}

export function newTally(): Tally {
  return {
    corruptions: 0,
    leaks: 0,
    checkErrors: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    imageEndOffset: 0,
    totalClusters: 0,
    allocatedClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
  };
}

/** Tells of something that endangers data and has not been mended. */
export function corruption(subject: CheckSubject, text: string): void {
  subject.say(`ERROR ${text}`);
  subject.tally.corruptions++;
}
