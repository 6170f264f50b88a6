// SPDX-License-Identifier: MIT
/** Dirty bitmaps by QMP, seen by their queries, by their digests and by NBD clients. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { runPeer, runPeerJson } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const KIB = 1024;
const SIZE = 1024 * KIB;

interface Bitmap {
  readonly name?: string;
  readonly count: number;
  readonly granularity: number;
  readonly recording: boolean;
  readonly busy: boolean;
}

/** The bitmaps of a node by name, each as "count recording busy". */
async function bitmaps(qmp: QmpClient, node: string): Promise<Record<string, string>> {
  const nodes = await qmp.execute<{ 'node-name': string; 'dirty-bitmaps'?: Bitmap[] }[]>(
    'query-named-block-nodes',
    { flat: true },
  );
  const found = nodes.find((entry) => entry['node-name'] === node)?.['dirty-bitmaps'] ?? [];
  return Object.fromEntries(
    found.map(({ name = '', count, recording, busy }) => [
      name,
      `${count / KIB}K${recording ? ' recording' : ''}${busy ? ' busy' : ''}`,
    ]),
  );
}

/** Writes patterns through the export, as a guest would. */
async function write(uri: string, ...commands: string[]): Promise<void> {
  await runPeer('qemu-io', ['-f', 'raw', ...commands.flatMap((text) => ['-c', text]), uri]);
}

describe('dirty bitmaps', () => {
  it('count what is written while they record, and no more when they are told so', async () => {
    const scope = testScope();
    const { daemon, uri } = await serveImage(scope, { size: SIZE });
    const qmp = await daemon.qmp(scope);
    const on = { node: 'disk' };
    await qmp.execute('block-dirty-bitmap-add', { ...on, name: 'b0' });
    await qmp.execute('block-dirty-bitmap-add', { ...on, name: 'b1', granularity: 32 * KIB });
    await qmp.execute('block-dirty-bitmap-add', { ...on, name: 'off', disabled: true });
    await write(uri, 'write 0 1', 'write 100k 70k', 'discard 512k 64k', 'write -z 1020k 4k');
    expect(await bitmaps(qmp, 'disk')).toEqual({
      b0: '320K recording',
      b1: '224K recording',
      off: '0K',
    });
    await qmp.execute('block-dirty-bitmap-disable', { ...on, name: 'b1' });
    await write(uri, 'write 300k 4k');
    expect((await bitmaps(qmp, 'disk')).b1).toBe('224K');
    await qmp.execute('block-dirty-bitmap-merge', { ...on, target: 'off', bitmaps: ['b0', 'b1'] });
    await qmp.execute('block-dirty-bitmap-clear', { ...on, name: 'b0' });
    await qmp.execute('block-dirty-bitmap-remove', { ...on, name: 'b1' });
    expect(await bitmaps(qmp, 'disk')).toEqual({ b0: '0K recording', off: '384K' });
  });

  it('have the digest that they have in qemu-storage-daemon', async () => {
    const scope = testScope();
    const { daemon, uri } = await serveImage(scope, { size: 64 * SIZE });
    const qmp = await daemon.qmp(scope);
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'b' });
    await write(uri, 'write 0 64k', 'write 1M 64k');
    const digest = await qmp.execute('x-debug-block-dirty-bitmap-sha256', {
      node: 'disk',
      name: 'b',
    });
    const dir = await scope.tempDir();
    const image = join(dir, 'theirs.img');
    await runPeer('truncate', ['-s', String(64 * SIZE), image]);
    const script = [
      { execute: 'qmp_capabilities' },
      { execute: 'blockdev-add', arguments: { driver: 'file', 'node-name': 'n', filename: image } },
      { execute: 'block-dirty-bitmap-add', arguments: { node: 'n', name: 'b' } },
      {
        execute: 'nbd-server-start',
        arguments: { addr: { type: 'unix', data: { path: join(dir, 's') } } },
      },
      {
        execute: 'block-export-add',
        arguments: { type: 'nbd', id: 'e', 'node-name': 'n', writable: true },
      },
    ].map((command) => JSON.stringify(command));
    const ask = JSON.stringify({
      execute: 'x-debug-block-dirty-bitmap-sha256',
      arguments: { node: 'n', name: 'b' },
    });
    const { stdout } = await runPeer('sh', [
      '-c',
      `{ printf '%s\\n' "$@"; until [ -S ${dir}/s ]; do sleep 0.05; done; sleep 0.2; ` +
        `qemu-io -f raw -c 'write 0 64k' -c 'write 1M 64k' 'nbd+unix:///n?socket=${dir}/s' >&2; ` +
        `printf '%s\\n' '${ask}' '{"execute":"quit"}'; } | ` +
        'qemu-storage-daemon --chardev stdio,id=m --monitor chardev=m',
      'sh',
      ...script,
    ]);
    expect(stdout).toContain(JSON.stringify((digest as { sha256: string }).sha256));
  });

  it('are shown to NBD clients of an export, and are busy as long as it lasts', async () => {
    const scope = testScope();
    const { daemon, uri, socketPath } = await serveImage(scope, { size: SIZE });
    const qmp = await daemon.qmp(scope);
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'b' });
    await write(uri, 'write 64k 64k', 'write 256k 128k');
    const add = { type: 'nbd', id: 'ro', 'node-name': 'disk', name: 'ro', bitmaps: ['b'] };
    expect((await qmp.refused('block-export-add', add)).desc).toBe(
      "Enabled bitmap 'b' incompatible with readonly export",
    );
    await qmp.execute('block-dirty-bitmap-disable', { node: 'disk', name: 'b' });
    await qmp.execute('block-export-add', add);
    const map = await runPeerJson<{ offset: number; length: number; type: number }[]>('nbdinfo', [
      '--map=qemu:dirty-bitmap:b',
      '--json',
      `nbd+unix:///ro?socket=${socketPath}`,
    ]);
    expect(map.map(({ offset, length, type }) => [offset / KIB, length / KIB, type])).toEqual([
      [0, 64, 0],
      [64, 64, 1],
      [128, 128, 0],
      [256, 128, 1],
      [384, 640, 0],
    ]);
    expect(await bitmaps(qmp, 'disk')).toEqual({ b: '192K busy' });
    expect((await qmp.refused('block-dirty-bitmap-remove', { node: 'disk', name: 'b' })).desc).toBe(
      "Bitmap 'b' is currently in use by another operation and cannot be used",
    );
    await qmp.execute('block-export-del', { id: 'ro' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    await qmp.execute('block-dirty-bitmap-remove', { node: 'disk', name: 'b' });
  });

  it('are refused in the words of QEMU, and nothing has changed then', async () => {
    const scope = testScope();
    const { daemon, uri } = await serveImage(scope, { size: SIZE });
    const qmp = await daemon.qmp(scope);
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'b' });
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'c', disabled: true });
    await write(uri, 'write 0 64k');
    const said = async (command: string, args: object): Promise<string> =>
      (await qmp.refused(command, args)).desc;
    const add = (args: object): Promise<string> =>
      said('block-dirty-bitmap-add', { node: 'disk', name: 'n', ...args });
    expect(await add({ name: 'b' })).toBe('Bitmap already exists: b');
    expect(await add({ name: '' })).toBe('Bitmap name cannot be empty');
    expect(await add({ granularity: 1000 })).toBe(
      'Granularity must be power of 2 and at least 512',
    );
    expect(await add({ node: 'no' })).toBe("Cannot find device='no' nor node-name='no'");
    expect(await add({ persistent: true })).toBe(
      "Can't store persistent bitmaps to disk: Operation not supported",
    );
    for (const verb of ['remove', 'clear', 'enable', 'disable']) {
      const named = `block-dirty-bitmap-${verb}`;
      expect(await said(named, { node: 'disk', name: 'x' })).toBe("Dirty bitmap 'x' not found");
      expect(await said(named, { node: 'no', name: 'x' })).toBe("Node 'no' not found");
    }
    const merge = { node: 'disk', target: 'c', bitmaps: ['b', 'x'] };
    expect(await said('block-dirty-bitmap-merge', merge)).toBe("Dirty bitmap 'x' not found");
    expect(await bitmaps(qmp, 'disk')).toEqual({ b: '64K recording', c: '0K' });
  });
});
