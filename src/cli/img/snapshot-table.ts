// SPDX-License-Identifier: MIT
/** Snapshots as people read them: qemu-img's table. */
import type { SnapshotInfo } from '../../../protocol/qapi/block-nodes-info.js';
import type { Output } from '../../../protocol/qapi/types.js';
import { sizeText } from './sizes.js';

type Snapshot = Output<typeof SnapshotInfo>;

/** Lines: a title, the heads of the columns, one for each snapshot. Dates are local time. */
export function snapshotTable(snapshots: readonly Snapshot[]): string[] {
  const heads = 'ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT';
  return ['Snapshot list:', heads, ...snapshots.map(line)];
}

function line(snapshot: Snapshot): string {
  return [
    `${snapshot.id.padEnd(9)} ${snapshot.name.padEnd(16)} `,
    sizeText(snapshot['vm-state-size']).padStart(8),
    dateText(snapshot['date-sec']).padStart(20),
    clockText(snapshot).padStart(13),
    String(snapshot.icount ?? '').padStart(11),
  ].join('');
}

const digits = (value: number, length = 2): string => String(value).padStart(length, '0');

function dateText(seconds: number): string {
  const date = new Date(seconds * 1000);
  const day = [digits(date.getFullYear(), 4), digits(date.getMonth() + 1), digits(date.getDate())];
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()];
  return `${day.join('-')} ${time.map((part) => digits(part)).join(':')}`;
}

function clockText(snapshot: Snapshot): string {
  const seconds = snapshot['vm-clock-sec'];
  const milliseconds = Math.floor(snapshot['vm-clock-nsec'] / 1e6);
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return `${parts.map((part) => digits(part)).join(':')}.${digits(milliseconds, 3)}`;
}
