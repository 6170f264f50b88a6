// SPDX-License-Identifier: MIT
/**
 * A disk that is a chain of three qcow2 images, with a persistent bitmap, moves to another daemon under a
 * writer: as a whole into one image, and its top layer only, onto copies of the layers below.
 */
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { peerBitmaps } from '../support/bitmap-peer.js';
import { type Daemon, startDaemon } from '../support/daemon.js';
import { runPeer } from '../support/peers.js';
import {
  createImage,
  expectEqual,
  expectSound,
  KIB,
  MIB,
  pattern,
  qemuContent,
  qemuIo,
} from '../support/qcow2.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 16 * MIB;

interface Host {
  readonly daemon: Daemon;
  readonly qmp: QmpClient;
  readonly socket: string;
}

/** A daemon that serves an image, with all that is below it, for writing. */
async function host(scope: Scope, path: string): Promise<Host> {
  const socket = join(await scope.tempDir(), 'nbd');
  const file = `file.driver=file,file.filename=${path}`;
  const daemon = await startDaemon(scope, [
    ...['--blockdev', `qcow2,node-name=disk,discard=unmap,${file}`],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'nbd,id=e,node-name=disk,name=disk,writable=on'],
  ]);
  return { daemon, qmp: await daemon.qmp(scope), socket };
}

/** base <- middle <- top, of different clusters and sizes. @returns what `top` reads as */
async function makeChain(dir: string): Promise<Buffer> {
  const [base, middle, top] = ['base', 'middle', 'top'].map((name) => join(dir, name));
  if (base === undefined || middle === undefined || top === undefined) throw new Error('names');
  await createImage(base, 10 * MIB, 'cluster_size=4k');
  await qemuIo(base, ['write -P 1 0 6M', 'write -P 2 9M 1M']);
  await createImage(middle, SIZE, '', ['-b', 'base', '-F', 'qcow2']);
  await qemuIo(middle, ['write -P 3 5M 2M', 'write -z 1M 1M', 'write -P 4 13M 100k']);
  await createImage(top, SIZE, 'cluster_size=16k,extended_l2=on', ['-b', 'middle', '-F', 'qcow2']);
  await runPeer('qemu-img', ['bitmap', '--add', '-g', '65536', top, 'since']);
  await qemuIo(top, ['write -P 5 2M 10k', 'write -z 6M 300k']);
  const content = Buffer.alloc(SIZE);
  content.fill(1, 0, 6 * MIB).fill(2, 9 * MIB, 10 * MIB);
  content.fill(3, 5 * MIB, 7 * MIB).fill(0, 1 * MIB, 2 * MIB);
  content.fill(4, 13 * MIB, 13 * MIB + 100 * KIB);
  content.fill(5, 2 * MIB, 2 * MIB + 10 * KIB).fill(0, 6 * MIB, 6 * MIB + 300 * KIB);
  return content;
}

/** Writes until it is told to stop; `content` follows. */
function writer(client: NbdClient, content: Buffer): { stop(): Promise<void> } {
  let stopping = false;
  const running = (async () => {
    for (let nth = 0; !stopping; nth++) {
      const offset = (nth * 7919 * 4093) % (SIZE - 30_000);
      const bytes = pattern(1 + ((nth * 977) % 30_000), nth);
      if (nth % 5 === 4) {
        content.fill(0, offset, offset + bytes.byteLength);
        await client.writeZeroes(offset, bytes.byteLength);
      } else {
        bytes.copy(content, offset);
        await client.write(offset, bytes);
      }
    }
    await client.flush();
  })();
  return {
    stop: async () => {
      stopping = true;
      await running;
    },
  };
}

/** From one daemon to the other, the users of the disk with it. */
async function move(source: Host, target: Host, sync: 'full' | 'top'): Promise<void> {
  const { qmp } = source;
  const server = { type: 'unix', path: target.socket };
  await qmp.execute('blockdev-add', {
    ...{ driver: 'nbd', 'node-name': 'there', server, export: 'disk', discard: 'unmap' },
  });
  await qmp.execute('blockdev-mirror', {
    ...{ 'job-id': 'move', device: 'disk', target: 'there', sync, 'auto-dismiss': false },
    'copy-mode': 'write-blocking',
  });
  await qmp.event('BLOCK_JOB_READY', (data) => data.device === 'move');
  await qmp.execute('job-complete', { id: 'move' });
  await qmp.event('JOB_STATUS_CHANGE', ({ id, status }) => id === 'move' && status === 'concluded');
  const jobs = await qmp.execute<{ error?: string }[]>('query-jobs');
  expect(jobs[0]?.error).toBeUndefined();
  await qmp.execute('job-dismiss', { id: 'move' });
}

describe('a chain of qcow2 images moves to another daemon under a writer', () => {
  for (const sync of ['full', 'top'] as const) {
    it(`sync ${sync}`, { timeout: 120_000 }, async () => {
      const scope = testScope();
      const [here, there] = [await scope.tempDir(), await scope.tempDir()];
      const content = await makeChain(here);
      const top = join(here, 'top');
      const moved = join(there, 'top');
      let below: readonly string[] = [];
      if (sync === 'top') {
        for (const name of ['base', 'middle']) await copyFile(join(here, name), join(there, name));
        below = ['-b', 'middle', '-F', 'qcow2'];
      }
      await createImage(moved, SIZE, 'cluster_size=64k', below);
      const source = await host(scope, top);
      const target = await host(scope, moved);
      const address = { type: 'unix', path: source.socket } as const;
      const client = await NbdClient.connect({ address, exportName: 'disk' });
      scope.defer(() => client.close());
      const writing = writer(client, content);
      await move(source, target, sync);
      await writing.stop();
      const last = Buffer.alloc(5000, 0x77);
      last.copy(content, 8 * MIB);
      await client.write(8 * MIB, last);
      await client.flush();
      await client.close();
      await source.daemon.stop();
      await target.daemon.stop();
      for (const path of [top, moved, join(here, 'middle'), join(here, 'base')]) {
        await expectSound(path);
      }
      const got = await qemuContent(moved, join(there, 'raw'));
      expectEqual(got, content);
      // What was written here after the bitmap was made has its marks.
      const [bitmap] = await peerBitmaps(scope, top);
      expect(bitmap).toMatchObject({ name: 'since', persistent: true, recording: true });
      expect(bitmap?.count).toBeGreaterThan(0);
    });
  }
});
