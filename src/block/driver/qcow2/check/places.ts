// SPDX-License-Identifier: MIT
/** Where the image's own structures lie: nothing is mended that would be written over one of them. */
import { refcountTableOffset } from '../../../../../protocol/qcow2/entries.js';
import type { CheckSubject } from './subject.js';

/**
 * @param offset of an L2 table that is to be written, host bytes
 * @returns true when the cluster is not (only) such a table, or can't be one
 */
export function isOthersPlace(
  subject: CheckSubject,
  offset: number,
  { active }: { readonly active: boolean },
): boolean {
  const { file, geometry, l1, table, snapshots, directory, bitmaps } = subject;
  const { clusterSize } = geometry;
  if (offset % clusterSize !== 0 || offset + clusterSize > file.size) return true;
  const places: (readonly [offset: number, length: number])[] = [
    [0, clusterSize],
    [l1.offset, l1.bytes.byteLength],
    [table.offset, table.bytes.byteLength],
    [snapshots.offset, snapshots.length],
    [directory?.offset ?? 0, directory?.length ?? 0],
  ];
  for (const { l1Offset, l1Entries } of snapshots.entries) {
    places.push([Number(l1Offset), l1Entries * 8]);
  }
  for (const { tableOffset, tableEntries } of bitmaps) places.push([tableOffset, tableEntries * 8]);
  const end = offset + clusterSize;
  if (places.some(([at, length]) => length > 0 && at < end && offset < at + length)) return true;
  for (let index = 0; index < table.entries; index++) {
    const block = refcountTableOffset(table.high(index), table.low(index));
    if (block !== 0 && block < end && offset < block + clusterSize) return true;
  }
  if (active) return false;
  for (let index = 0; index < l1.entries; index++) if (l1.l2Offset(index) === offset) return true;
  return false;
}
