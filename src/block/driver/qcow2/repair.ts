// SPDX-License-Identifier: MIT
/**
 * Works out all counts anew, from what the tables refer to: needed after a crash of who used lazy
 * refcounts. The same that `img check` does, for an image that is open and has changed nothing yet.
 * @see qcow2.txt, incompatible feature "dirty bit"
 */
import { QCOW2_INCOMPAT_DIRTY } from '../../../../protocol/qcow2/header.js';
import { BlockError } from '../../../base/errors.js';
import { directoryPlace } from './bitmap-directory.js';
import { rebuildCounts } from './check/rebuild.js';
import { compareCounts, countBlocks } from './check/refcount-blocks.js';
import { countReferences } from './check/references.js';
import { type CheckSubject, newTally } from './check/subject.js';
import type { Qcow2Image } from './image.js';
import { readSnapshotTable } from './snapshots.js';

/** Puts the counts in the file right and takes the mark away. @throws BlockError DF_CORRUPT_IMAGE */
export async function repairRefcounts(image: Qcow2Image): Promise<void> {
  const findings: string[] = [];
  const subject = await openSubject(image, (text) => {
    if (findings.length === 0) findings.push(text);
  });
  const { tally } = subject;
  const counts = await countReferences(subject);
  if (tally.corruptions > 0) throw broken(findings);
  const sound = countBlocks(subject, counts);
  const { rebuild } = await compareCounts(subject, counts, 'none');
  findings.length = 0;
  if (!sound || rebuild) {
    await rebuildCounts(subject, counts);
    image.refcounts.useTable(subject.table);
    // Without the old table and its blocks.
    const again = await countReferences(subject);
    countBlocks(subject, again);
    await compareCounts(subject, again, 'leaks');
  } else {
    Object.assign(tally, newTally());
    await compareCounts(subject, counts, 'all');
    if (tally.corruptions > 0 || tally.checkErrors > 0) throw broken(findings);
  }
  image.refcountCache.drop(0, Number.POSITIVE_INFINITY);
  const { header } = image.header;
  await image.header.update({ incompatible: header.incompatible & ~QCOW2_INCOMPAT_DIRTY });
}

async function openSubject(image: Qcow2Image, say: (text: string) => void): Promise<CheckSubject> {
  const { file, header, geometry, size, hasDataFile, map, refcounts, storedBitmaps } = image;
  return {
    ...{ file, header, geometry, size, hasDataFile, say },
    l1: map.l1,
    table: refcounts.table,
    snapshots: await readSnapshotTable(image),
    bitmaps: storedBitmaps,
    directory: directoryPlace(image),
    fix: 'none',
    // A cluster past the end may have been allocated and not written yet; far past it none can.
    reach: geometry.bytesPerL2,
    tally: newTally(),
  };
}

const broken = ([found = 'its tables contradict each other']: readonly string[]): BlockError =>
  new BlockError('DF_CORRUPT_IMAGE', `The image was not closed, and can't be put right: ${found}`);
