// SPDX-License-Identifier: MIT
/** `img check` of qcow2: all references counted anew and compared with what the image says. */
import {
  QCOW2_INCOMPAT_CORRUPT,
  QCOW2_INCOMPAT_DIRTY,
} from '../../../../../protocol/qcow2/header.js';
import { snapshotExtra } from '../../../../../protocol/qcow2/snapshots.js';
import { BlockError } from '../../../../base/errors.js';
import type { CheckRequest, CheckResult, ImageChecker } from '../../../image-check.js';
import { checkCopiedMarks } from './copied-marks.js';
import { rebuildCounts } from './rebuild.js';
import { compareCounts, countBlocks } from './refcount-blocks.js';
import type { ReferenceCounts } from './reference-counts.js';
import { countReferences } from './references.js';
import { type CheckSubject, corruption, openSubject } from './subject.js';

export const qcow2Checker: ImageChecker = { check };

async function check(request: CheckRequest): Promise<CheckResult> {
  const subject = await openSubject(request);
  await checkSubject(subject);
  checkSnapshotEntries(subject);
  if (subject.fix !== 'none') await clearMarks(subject);
  return subject.tally;
}

/** Counts, compares and mends. What is mended is durable when it returns. */
export async function checkSubject(subject: CheckSubject): Promise<void> {
  const { fix, tally } = subject;
  const { counts, sound } = await countAll(subject);
  const before = { ...tally };
  const { rebuild } = await compareCounts(subject, counts, 'none');
  if (sound && !rebuild) {
    if (fix !== 'none' && (tally.leaks > 0 || tally.corruptions > 0)) {
      Object.assign(tally, before);
      await compareCounts(subject, counts, fix);
    }
  } else if (fix === 'all') {
    await mendByRebuilding(subject, counts);
  } else if (fix === 'leaks') {
    throw new BlockError(
      'DF_CORRUPT_IMAGE',
      "The counts are damaged and have to be written anew, which is more than 'leaks': use 'all'",
    );
  }
  await checkCopiedMarks(subject);
}

async function countAll(
  subject: CheckSubject,
): Promise<{ readonly counts: ReferenceCounts; readonly sound: boolean }> {
  const counts = await countReferences(subject);
  return { sound: countBlocks(subject, counts), counts };
}

/** New counts; then what else is wrong is found out anew, and the old structures are freed. */
async function mendByRebuilding(subject: CheckSubject, counts: ReferenceCounts): Promise<void> {
  const { tally } = subject;
  const before = { ...tally };
  await rebuildCounts(subject, counts);
  tally.corruptions = 0;
  tally.leaks = 0;
  tally.checkErrors = 0;
  const again = await countAll({ ...subject, say: () => undefined });
  const { corruptions } = tally;
  const { rebuild } = await compareCounts(subject, again.counts, 'leaks');
  if (!again.sound || rebuild) {
    throw new BlockError(
      'DF_CORRUPT_IMAGE',
      'The counts are damaged still after they were rebuilt',
    );
  }
  // The old table and its blocks were no leaks that anybody had seen.
  tally.leaksFixed = before.leaksFixed + Math.max(0, before.leaks - tally.leaks);
  tally.corruptionsFixed = before.corruptionsFixed + Math.max(0, before.corruptions - corruptions);
}

/** Version 3 wants 16 bytes of extra data in each entry. */
function checkSnapshotEntries(subject: CheckSubject): void {
  if (subject.geometry.version < 3) return;
  for (const [index, entry] of subject.snapshots.entries.entries()) {
    if (snapshotExtra(entry, 'diskSize') !== undefined) continue;
    corruption(subject, `snapshot table entry ${index} is incomplete`);
  }
}

/** An image with nothing wrong may be used again. */
async function clearMarks({ tally, header }: CheckSubject): Promise<void> {
  if (tally.checkErrors > 0 || tally.corruptions > 0) return;
  const { incompatible } = header.header;
  const cleared = incompatible & ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
  if (cleared !== incompatible) await header.update({ incompatible: cleared });
}
