// SPDX-License-Identifier: MIT
/**
 * The table of snapshots as far as it can be read, for who is to mend it. Nothing is changed here, and what
 * can't be told apart from damage of another kind is refused: snapshots that are not found count as leaks.
 * @see qcow2.txt "Snapshots"
 */
import {
  QCOW2_SNAPSHOT,
  QCOW2_SNAPSHOT_EXTRA_MAX,
  QCOW2_SNAPSHOT_TABLE_MAX,
  QCOW2_SNAPSHOTS_MAX,
  type SnapshotEntry,
  snapshotExtra,
} from '../../../../../protocol/qcow2/snapshots.js';
import { alignUp } from '../../../../base/byte-range.js';
import { BlockError } from '../../../../base/errors.js';
import { NODE_SIZE_MAX } from '../../../../base/limits.js';
import type { CheckFix } from '../../../image-check.js';
import type { Geometry } from '../geometry.js';
import type { HeaderState } from '../header-state.js';
import { type ImageIo, readPadded } from '../image-io.js';
import type { SnapshotDamage, SnapshotsInFile } from './subject.js';

/** Bytes that are read at a time; more than an entry has, without its extra data. */
const WINDOW_LENGTH = 256 * 1024;
/** No table reaches further, bytes: QEMU's limit, with extra data that is too long. */
const REACH_MAX = 2 ** 31 - 1;

export interface SnapshotSource {
  readonly file: ImageIo;
  readonly header: HeaderState;
  readonly geometry: Geometry;
  readonly fix: CheckFix;
  readonly say: (text: string) => void;
}

/** An entry, and where it ends, host bytes. */
interface Found {
  readonly entry: SnapshotEntry;
  readonly extraLength: number;
  readonly end: number;
}

/** @throws BlockError for a table that can't be read, or only with what `fix` does not allow */
export async function readSnapshots(
  source: SnapshotSource,
): Promise<SnapshotsInFile & { readonly damage: SnapshotDamage }> {
  const { snapshotCount: told, snapshotsOffset } = source.header.header;
  const count = countToRead(source);
  checkOffset(source, count);
  const offset = Number(snapshotsOffset);
  const reader = new EntryReader(source.file);
  const entries: SnapshotEntry[] = [];
  /** The table's bytes, with and without extra data that is too long. */
  let length = 0;
  let kept = 0;
  let tooLong = 0;
  for (let index = 0; index < count; index++) {
    const { entry, extraLength, end } = await reader.read(alignUp(offset + length, 8), index);
    const isLong = extraLength > QCOW2_SNAPSHOT_EXTRA_MAX;
    if (isLong) tellTooLong(source, index, extraLength);
    if (isLong) tooLong++;
    if (tooLong > 0 || told > count) checkIsSnapshot(entry, index);
    const { extra, id, name } = entry;
    const bytes = extra.byteLength + id.byteLength + name.byteLength;
    kept = alignUp(kept, 8) + QCOW2_SNAPSHOT.size + bytes;
    if (kept > QCOW2_SNAPSHOT_TABLE_MAX || end - offset > REACH_MAX) {
      tellTooBig(source, count - index);
      if (isLong) tooLong--;
      break;
    }
    length = end - offset;
    entries.push(entry);
  }
  const wrongExtra = tooLong + tellIncomplete(source, entries);
  return { offset, length, entries, damage: { overhanging: told - entries.length, wrongExtra } };
}

/** How many entries are looked at. @throws BlockError DF_TOO_LARGE */
function countToRead({ header, fix, say }: SnapshotSource): number {
  const { snapshotCount } = header.header;
  const more = snapshotCount - QCOW2_SNAPSHOTS_MAX;
  if (more <= 0) return snapshotCount;
  if (fix !== 'all') {
    say('ERROR snapshot table too large');
    throw forceRemove(say, `all ${more} overhanging snapshots`);
  }
  say(`Discarding ${more} overhanging snapshots`);
  return QCOW2_SNAPSHOTS_MAX;
}

function checkOffset({ header, geometry, say }: SnapshotSource, count: number): void {
  const { snapshotsOffset: offset } = header.header;
  const most = BigInt(NODE_SIZE_MAX - count * QCOW2_SNAPSHOT.size);
  if (offset % BigInt(geometry.clusterSize) === 0n && offset <= most) return;
  say('ERROR snapshot table offset invalid');
  throw new BlockError('DF_INVALID', 'Invalid argument');
}

function tellTooLong({ fix, say }: SnapshotSource, index: number, extraLength: number): void {
  if (fix !== 'all') {
    const what = `Too much extra metadata in snapshot table entry ${index}`;
    say(`ERROR failed to read the snapshot table: ${what}`);
    throw forceRemove(say, 'this extra metadata');
  }
  const lengths = `(${extraLength} > ${QCOW2_SNAPSHOT_EXTRA_MAX})`;
  say(`Discarding too much extra metadata in snapshot table entry ${index} ${lengths}`);
}

function tellTooBig({ fix, say }: SnapshotSource, rest: number): void {
  if (fix !== 'all') {
    say('ERROR failed to read the snapshot table: Snapshot table is too big');
    throw forceRemove(say, `all ${rest} overhanging snapshots`);
  }
  say(`Discarding ${rest} overhanging snapshots (snapshot table is too big)`);
}

function forceRemove(say: SnapshotSource['say'], what: string): BlockError {
  say(`You can force-remove ${what} with diskferry img check -r all`);
  return new BlockError('DF_TOO_LARGE', 'File too large');
}

/** Where a length or the count is wrong the rest may be read from anywhere, and often is nothing. */
function checkIsSnapshot({ id, l1Entries }: SnapshotEntry, index: number): void {
  if (id.byteLength > 0 || l1Entries > 0) return;
  throw new BlockError(
    'DF_CORRUPT_IMAGE',
    `There is no snapshot where entry ${index} of the snapshot table should be: nothing is mended`,
  );
}

/** @returns entries with less extra data than they must have */
function tellIncomplete(
  { header, fix, say }: SnapshotSource,
  entries: readonly SnapshotEntry[],
): number {
  if (header.header.version < 3) return 0;
  const what = fix === 'all' ? 'Repairing' : 'ERROR';
  let count = 0;
  for (const [index, entry] of entries.entries()) {
    if (snapshotExtra(entry, 'diskSize') !== undefined) continue;
    say(`${what} snapshot table entry ${index} is incomplete`);
    count++;
  }
  return count;
}

/** Reads ahead, and passes over extra data that is too long. */
class EntryReader {
  readonly #file: ImageIo;
  #window: Buffer = Buffer.alloc(0);
  #windowAt = 0;

  constructor(file: ImageIo) {
    this.#file = file;
  }

  /** @param at host bytes @throws BlockError DF_CORRUPT_IMAGE where the file has no such bytes */
  async read(at: number, index: number): Promise<Found> {
    const { extraLength, idLength, nameLength, ...fixed } = QCOW2_SNAPSHOT.decode(
      await this.#bytes(at, QCOW2_SNAPSHOT.size, index),
    );
    const extraAt = at + QCOW2_SNAPSHOT.size;
    const extra = await this.#bytes(
      extraAt,
      Math.min(extraLength, QCOW2_SNAPSHOT_EXTRA_MAX),
      index,
    );
    const id = await this.#bytes(extraAt + extraLength, idLength, index);
    const end = extraAt + extraLength + idLength + nameLength;
    const name = await this.#bytes(end - nameLength, nameLength, index);
    return { entry: { ...fixed, extra, id, name }, extraLength, end };
  }

  async #bytes(at: number, length: number, index: number): Promise<Uint8Array> {
    if (at + length > this.#file.size) {
      throw new BlockError(
        'DF_CORRUPT_IMAGE',
        `Entry ${index} of the snapshot table, at ${at}, lies outside the file: nothing is mended`,
      );
    }
    const from = at - this.#windowAt;
    if (from < 0 || from + length > this.#window.byteLength) {
      this.#window = Buffer.alloc(Math.min(WINDOW_LENGTH, this.#file.size - at));
      this.#windowAt = at;
      await readPadded(this.#file, at, this.#window);
    }
    const start = at - this.#windowAt;
    // A copy: a part of the window would keep all of it in memory.
    return new Uint8Array(this.#window.subarray(start, start + length));
  }
}
