// SPDX-License-Identifier: MIT
/** What qemu-storage-daemon takes the bitmaps of a qcow2 image to be. */
import { once } from 'node:events';
import { join } from 'node:path';
import { untilMonitor } from './listening.js';
import { spawnTracked } from './peers.js';
import type { QmpClient } from './qmp-client.js';
import type { Scope } from './temp.js';

/** As `query-named-block-nodes` has them. */
export interface ShownBitmap {
  readonly name: string;
  readonly count: number;
  readonly granularity: number;
  readonly recording: boolean;
  readonly busy: boolean;
  readonly persistent: boolean;
  readonly inconsistent?: boolean;
}

export interface PeerBitmap extends ShownBitmap {
  readonly sha256?: string;
}

interface Peer {
  readonly qmp: QmpClient;
  stop(): Promise<void>;
}

/** qemu-storage-daemon with the image as node 'disk'. */
async function startBitmapPeer(scope: Scope, path: string, more = ''): Promise<Peer> {
  const folder = await scope.tempDir();
  const monitor = join(folder, 'qmp');
  const child = spawnTracked('qemu-storage-daemon', [
    ...['--blockdev', `driver=file,node-name=f,filename=${path}`],
    ...['--blockdev', `driver=qcow2,node-name=disk,file=f${more}`],
    ...['--chardev', `socket,id=m,path=${monitor},server=on,wait=off`, '--monitor', 'm'],
  ]);
  const exited = once(child, 'exit');
  scope.defer(() => child.kill('SIGTERM'));
  const qmp = await untilMonitor(child, monitor);
  const stop = async (): Promise<void> => {
    qmp.close();
    child.kill('SIGTERM');
    await exited;
  };
  return { qmp, stop };
}

/** The bitmaps of node 'disk' with the digests of those that can be used. */
export async function shownBitmaps(qmp: QmpClient): Promise<PeerBitmap[]> {
  const nodes = (await qmp.execute('query-named-block-nodes')) as {
    'node-name': string;
    'dirty-bitmaps'?: ShownBitmap[];
  }[];
  const shown = nodes.find((node) => node['node-name'] === 'disk')?.['dirty-bitmaps'] ?? [];
  const all: PeerBitmap[] = [];
  for (const bitmap of shown) {
    if (bitmap.inconsistent === true) all.push(bitmap);
    else {
      const named = { node: 'disk', name: bitmap.name };
      const digest = await qmp.execute('x-debug-block-dirty-bitmap-sha256', named);
      all.push({ ...bitmap, ...(digest as { sha256: string }) });
    }
  }
  return all.toSorted((left, right) => (left.name < right.name ? -1 : 1));
}

/** What QEMU loads from an image that nobody has open. The image stays as it is. */
export async function peerBitmaps(scope: Scope, path: string): Promise<PeerBitmap[]> {
  const { qmp, stop } = await startBitmapPeer(scope, path, ',read-only=on');
  const bitmaps = await shownBitmaps(qmp);
  await stop();
  return bitmaps;
}
