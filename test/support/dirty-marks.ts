// SPDX-License-Identifier: MIT
import { NbdClient } from '../../src/nbd.js';
import type { QmpClient } from './qmp-client.js';

export interface DirtyMarksOptions {
  readonly qmp: QmpClient;
  /** Socket of the daemon's NBD server. */
  readonly socket: string;
  readonly node: string;
  readonly bitmap: string;
  /** Of the disk, bytes. */
  readonly size: number;
}

/** What a bitmap marks, as an NBD client sees it: tells of each offset. The disk's writers must be silent. */
export async function dirtyMarks(options: DirtyMarksOptions): Promise<(offset: number) => boolean> {
  const { qmp, socket, node, bitmap, size } = options;
  const id = `marks-${node}`;
  const exported = { type: 'nbd', id, 'node-name': node, name: id, writable: true };
  await qmp.execute('block-export-add', { ...exported, bitmaps: [bitmap] });
  const context = `qemu:dirty-bitmap:${bitmap}`;
  const client = await NbdClient.connect({
    address: { type: 'unix', path: socket },
    exportName: id,
    metaContexts: [context],
  });
  const bits: [number, boolean][] = [];
  for (let at = 0; at < size; ) {
    for (const { length, flags } of await client.blockStatus(at, size - at, { context })) {
      bits.push([at, (flags & 1) !== 0]);
      at += length;
    }
  }
  await client.close();
  await qmp.execute('block-export-del', { id, mode: 'hard' });
  return (offset) => bits.findLast(([start]) => start <= offset)?.[1] === true;
}
