// SPDX-License-Identifier: MIT
/** `img check` of qcow2: all references counted anew and compared with what the image says. */
import {
  QCOW2_INCOMPAT_CORRUPT,
  QCOW2_INCOMPAT_DIRTY,
} from '../../../../../protocol/qcow2/header.js';
import { BlockError } from '../../../../base/errors.js';
import type { CheckRequest, CheckResult, ImageChecker } from '../../../image-check.js';
import { checkCopiedMarks } from './copied-marks.js';
import { rebuildCounts } from './rebuild.js';
import { compareCounts, countBlocks } from './refcount-blocks.js';
import type { ReferenceCounts } from './reference-counts.js';
import { countReferences } from './references.js';
import { rewriteSnapshots } from './rewrite-snapshots.js';
import { type CheckSubject, openSubject, type SnapshotDamage } from './subject.js';

export const qcow2Checker: ImageChecker = { check };

async function check(request: CheckRequest): Promise<CheckResult> {
  const { subject, damage } = await openSubject(request);
  await checkSubject(subject, damage);
  await mendSnapshots(subject, damage);
  if (subject.fix !== 'none') await clearMarks(subject);
  return subject.tally;
}

/** Counts, compares and mends. What is mended is durable when it returns. */
async function checkSubject(subject: CheckSubject, { overhanging }: SnapshotDamage): Promise<void> {
  const { fix, tally, header, snapshots } = subject;
  const { counts, sound } = await countAll(subject);
  // First of all, and only now that all the others have been found: what they have are leaks from here on.
  if (overhanging > 0) await header.update({ snapshotCount: snapshots.entries.length });
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
    subject.say('ERROR need to rebuild refcount structures');
    throw new BlockError('DF_CORRUPT_IMAGE', 'Input/output error', {
      hint: 'The counts have to be written anew, which is more than leaks: -r all does that.',
    });
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

/** The table of snapshots is written anew, where that is asked for; the tally has its damage then. */
async function mendSnapshots(
  subject: CheckSubject,
  { overhanging, wrongExtra }: SnapshotDamage,
): Promise<void> {
  const { fix, tally, say } = subject;
  tally.corruptionsFixed += overhanging;
  if (wrongExtra === 0) return;
  const isCounted = tally.checkErrors === 0 && tally.corruptions === 0;
  if (fix === 'all' && isCounted) {
    await rewriteSnapshots(subject);
    tally.corruptionsFixed += wrongExtra;
    return;
  }
  if (fix === 'all') say('ERROR the snapshot table is as before: clusters are not counted right');
  tally.corruptions += wrongExtra;
}

/** An image with nothing wrong may be used again. */
async function clearMarks({ tally, header }: CheckSubject): Promise<void> {
  if (tally.checkErrors > 0 || tally.corruptions > 0) return;
  const { incompatible } = header.header;
  const cleared = incompatible & ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
  if (cleared !== incompatible) await header.update({ incompatible: cleared });
}
