// SPDX-License-Identifier: MIT
/** Where the bytes of a range are: in this image, below it, or nowhere. */
import type { MaybePromise } from '../../../base/maybe-promise.js';
import {
  type Extent,
  STATUS_ALLOCATED,
  STATUS_COMPRESSED,
  STATUS_DATA,
  STATUS_OFFSET_VALID,
  STATUS_ZERO,
} from '../../block-driver.js';
import type { ChildEdge } from '../../edge.js';
import { RUN_COMPRESSED, RUN_DATA, RUN_ZERO, Run } from './cluster-map.js';
import type { Qcow2Image } from './image.js';

const FLAGS: Readonly<Record<number, number>> = {
  [RUN_DATA]: STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID,
  [RUN_ZERO]: STATUS_ZERO | STATUS_ALLOCATED,
  [RUN_COMPRESSED]: STATUS_DATA | STATUS_ALLOCATED | STATUS_COMPRESSED,
};

/** @param data where guest data is: the file that knows more of its bytes */
export function statusOf(
  image: Qcow2Image,
  data: ChildEdge,
  offset: number,
  length: number,
): MaybePromise<Extent> {
  const run = new Run();
  if (image.map.lookup(offset, length, run)) return extentOf(image, data, { offset, length, run });
  return loadedStatus(image, data, offset, length);
}

async function loadedStatus(
  image: Qcow2Image,
  data: ChildEdge,
  offset: number,
  length: number,
): Promise<Extent> {
  const run = new Run();
  await image.map.find(offset, length, run);
  return extentOf(image, data, { offset, length, run });
}

/** The run, and those behind it that go on with the same, as far as they are in memory. */
function extentOf(
  image: Qcow2Image,
  data: ChildEdge,
  { offset, length, run }: { offset: number; length: number; run: Run },
): Extent {
  const next = new Run();
  let total = run.length;
  while (total < length && image.map.lookup(offset + total, length - total, next)) {
    if (next.kind !== run.kind) break;
    if (run.kind === RUN_DATA && next.hostOffset !== run.hostOffset + total) break;
    total += next.length;
  }
  const flags = FLAGS[run.kind] ?? 0;
  // What lies in the file is not what the guest sees.
  if (run.kind === RUN_DATA && image.encryption !== undefined) {
    return { length: total, flags: flags & ~STATUS_OFFSET_VALID };
  }
  if (run.kind !== RUN_DATA) return { length: total, flags };
  return { length: total, flags, hostOffset: run.hostOffset, delegate: data };
}
