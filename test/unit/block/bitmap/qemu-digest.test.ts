// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { DirtyBitmap } from '../../../../src/block/bitmap/dirty-bitmap.js';
import { untilMonitor } from '../../../support/listening.js';
import { runPeer, spawnTracked } from '../../../support/peers.js';
import type { QmpClient } from '../../../support/qmp-client.js';
import { type Scope, testScope } from '../../../support/temp.js';

const SIZE = 100 * 1024 * 1024 + 512;
const WRITES = [
  { offset: 0, length: 512 },
  { offset: 65024, length: 1024 },
  { offset: 1 << 20, length: 3 << 20 },
  { offset: 77 << 20, length: 4096 },
  { offset: SIZE - 512, length: 512 },
];

async function startPeer(scope: Scope): Promise<{ qmp: QmpClient; uri: string }> {
  const folder = await scope.tempDir();
  const monitor = join(folder, 'qmp');
  const peer = spawnTracked('qemu-storage-daemon', [
    ...['--blockdev', `driver=null-co,node-name=disk,size=${SIZE},read-zeroes=on`],
    ...['--nbd-server', `addr.type=unix,addr.path=${folder}/nbd`],
    ...['--export', 'nbd,id=e,node-name=disk,name=disk,writable=on'],
    ...['--chardev', `socket,id=m,path=${monitor},server=on,wait=off`, '--monitor', 'm'],
  ]);
  scope.defer(() => peer.kill('SIGTERM'));
  const qmp = await untilMonitor(peer, monitor);
  scope.defer(() => qmp.close());
  return { qmp, uri: `nbd+unix:///disk?socket=${folder}/nbd` };
}

it('has the digest and the count that qemu-storage-daemon has for the same writes', async () => {
  const { qmp, uri } = await startPeer(testScope());
  const granularities = [512, 4096, 65536, 1 << 20, 2 ** 31];
  for (const granularity of granularities) {
    const name = `g${granularity}`;
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name, granularity });
  }
  const commands = WRITES.flatMap(({ offset, length }) => ['-c', `write ${offset} ${length}`]);
  await runPeer('qemu-io', ['-f', 'raw', ...commands, uri]);
  type Described = { name: string; count: number }[];
  const [node] = await qmp.execute<{ 'dirty-bitmaps': Described }[]>('query-named-block-nodes');
  for (const granularity of granularities) {
    const name = `g${granularity}`;
    const bitmap = new DirtyBitmap({ name, size: SIZE, granularity });
    for (const { offset, length } of WRITES) bitmap.setDirty(offset, length);
    const theirs = await qmp.execute('x-debug-block-dirty-bitmap-sha256', { node: 'disk', name });
    expect({ name, sha256: bitmap.sha256() }).toEqual({ name, ...(theirs as object) });
    const count = node?.['dirty-bitmaps'].find((bitmap) => bitmap.name === name)?.count;
    expect(bitmap.count).toBe(count);
  }
});
