// SPDX-License-Identifier: MIT
/** Host clusters for guest clusters that nobody has written yet. */
import {
  ENTRY_COMPRESSED,
  ENTRY_COPIED,
  ENTRY_ZERO,
  entryOffset,
  highWord,
  lowWord,
} from '../../../../protocol/qcow2/entries.js';
import { alignDown, alignUp } from '../../../base/byte-range.js';
import { QCOW2_STEP } from '../../../base/limits.js';
import type { PreallocationMode } from '../../block-driver.js';
import { allocate } from './allocate.js';
import type { Qcow2Image } from './image.js';
import { type Entry, ensureL2, getEntry, setEntry, withEntries } from './l2-entries.js';
import { writeRuns } from './write.js';

export interface Preallocation {
  /** Guest bytes. */
  readonly from: number;
  readonly to: number;
  readonly mode: Exclude<PreallocationMode, 'off'>;
}

/** Clusters that have a place already keep it. What is got ready reads as zeroes. */
export async function preallocate(
  image: Qcow2Image,
  { from, to, mode }: Preallocation,
  signal?: AbortSignal,
): Promise<void> {
  const { clusterSize } = image.geometry;
  const end = alignUp(to, clusterSize);
  const secret = image.encryption !== undefined;
  if (secret && image.geometry.version < 3) return writeAll(image, from, to, signal);
  for (let at = alignDown(from, clusterSize); at < end; ) {
    signal?.throwIfAborted();
    await ensureL2(image, at);
    const wanted = Math.min(end - at, Math.max(QCOW2_STEP, clusterSize)) / clusterSize;
    const { missing, present } = await survey(image, at, wanted);
    at += present * clusterSize;
    if (missing === 0) continue;
    const place = image.hasDataFile
      ? { offset: at, clusters: missing, fresh: at >= image.data.size }
      : await allocate(image, missing);
    const length = place.clusters * clusterSize;
    await makeReady(image, { ...place, length }, mode);
    await withEntries(image, at, place.clusters, ({ table, first, count }) => {
      for (let nth = 0; nth < count; nth++) {
        const host = place.offset + nth * clusterSize;
        const { zero } = getEntry(image, table, first + nth);
        const high = (highWord(host) | ENTRY_COPIED) >>> 0;
        const entry = { high, low: lowWord(host), zero, allocated: 0 };
        setEntry(image, table, first + nth, secret ? markedZero(image, entry) : entry);
      }
    });
    at += length;
  }
}

/** Zeroes of the file are not zeroes when they are decrypted: the cluster says itself that it is zero. */
function markedZero(image: Qcow2Image, entry: Entry): Entry {
  if (image.geometry.extendedL2) return { ...entry, zero: 0xffff_ffff };
  return { ...entry, low: (entry.low | ENTRY_ZERO) >>> 0 };
}

/** Where clusters can't be marked, zeroes are written: all of them, because every cluster needs a place. */
async function writeAll(
  image: Qcow2Image,
  from: number,
  to: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const zeroes = Buffer.alloc(Math.max(QCOW2_STEP, image.geometry.clusterSize));
  for (let at = from; at < to; at += zeroes.byteLength) {
    signal?.throwIfAborted();
    await writeRuns(image, at, zeroes.subarray(0, Math.min(zeroes.byteLength, to - at)));
  }
}

/** How many clusters have a place, and how many behind them have none. */
async function survey(
  image: Qcow2Image,
  offset: number,
  clusters: number,
): Promise<{ present: number; missing: number }> {
  let present = 0;
  let missing = 0;
  await withEntries(image, offset, clusters, ({ table, first, count }) => {
    while (present < count && hasPlace(image, getEntry(image, table, first + present))) present++;
    while (
      present + missing < count &&
      !hasPlace(image, getEntry(image, table, first + present + missing))
    ) {
      missing++;
    }
  });
  return { present, missing };
}

/** A zero cluster with a place counts too: it is written there. */
function hasPlace(image: Qcow2Image, { high, low }: Entry): boolean {
  if ((high & ENTRY_COMPRESSED) !== 0 || entryOffset(high, low) !== 0) return true;
  return image.hasDataFile && (high & ENTRY_COPIED) !== 0 && (low & ENTRY_ZERO) === 0;
}

async function makeReady(
  image: Qcow2Image,
  { offset, length, fresh }: { offset: number; length: number; fresh: boolean },
  mode: Preallocation['mode'],
): Promise<void> {
  const { data } = image;
  image.metadata.unsettle();
  const inside = Math.min(Math.max(data.size - offset, 0), length);
  if (!fresh && inside > 0) await data.writeZeroes(offset, inside);
  if (offset + length > data.size) {
    const preallocation = mode === 'metadata' ? 'off' : mode;
    await data.truncate(offset + length, { exact: false, preallocation });
  }
}
