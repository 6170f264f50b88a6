// SPDX-License-Identifier: MIT
/** Several copies of one disk behind an export: what a client, the monitor and the images see. */
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { startDaemon, waitUntil } from '../support/daemon.js';
import { MIB, makeImage, patternBytes } from '../support/images.js';
import { untilListens } from '../support/listening.js';
import { runPeer, spawnTracked, tryPeer } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 8 * MIB;
const SEED = 3;
const DATA = { offset: 0, length: 5 * MIB };

interface Served {
  readonly scope: Scope;
  readonly qmp: QmpClient;
  readonly uri: string;
  readonly path: (name: string) => string;
  connect(): Promise<NbdClient>;
  stop(): Promise<unknown>;
}

/** A daemon that exports quorum `q` over images `a`, `b` and `c`; `fresh` is an empty image besides. */
async function serve(options: string, copies?: readonly string[]): Promise<Served> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = (name: string) => join(dir, `${name}.img`);
  for (const name of ['a', 'b', 'c']) {
    await makeImage(path(name), { size: SIZE, data: [DATA], seed: SEED });
  }
  await makeImage(path('fresh'), { size: SIZE });
  const socketPath = join(dir, 'nbd.sock');
  const inPlace = ['a', 'b', 'c'].map(
    (name, at) =>
      `children.${at}.driver=file,children.${at}.node-name=${name},` +
      `children.${at}.filename=${path(name)}`,
  );
  const daemon = await startDaemon(scope, [
    ...['--blockdev', `driver=file,node-name=fresh,filename=${path('fresh')},discard=unmap`],
    '--blockdev',
    `driver=quorum,node-name=q,discard=unmap,${options},${(copies ?? inPlace).join(',')}`.replaceAll(
      '$DIR',
      dir,
    ),
    ...['--nbd-server', `addr.type=unix,addr.path=${socketPath}`],
    ...['--export', 'type=nbd,id=e,node-name=q,name=q,writable=on'],
  ]);
  const address = { type: 'unix', path: socketPath } as const;
  return {
    ...{ scope, path, qmp: await daemon.qmp(scope) },
    uri: `nbd+unix:///q?socket=${socketPath}`,
    async connect() {
      const client = await NbdClient.connect({ address, exportName: 'q' });
      scope.defer(() => client.close());
      return client;
    },
    stop: () => daemon.stop(),
  };
}

const block = (byte: number): Buffer => Buffer.alloc(4096, byte);

async function readBytes(client: NbdClient, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  await client.read(offset, bytes);
  return bytes;
}

async function damage(path: string, offset: number, text: string): Promise<void> {
  const file = await open(path, 'r+');
  await file.write(text, offset);
  await file.close();
}

/** The image that all copies had at the start. */
function model(): Buffer {
  const bytes = Buffer.alloc(SIZE);
  patternBytes(DATA.length, SEED * 1000).copy(bytes, DATA.offset);
  return bytes;
}

/** Edges below `q`: key and name of the node. */
async function children(qmp: QmpClient): Promise<string[]> {
  interface Graph {
    readonly nodes: readonly { readonly id: number; readonly name: string }[];
    readonly edges: readonly { parent: number; child: number; name: string }[];
  }
  const { nodes, edges } = await qmp.execute<Graph>('x-debug-query-block-graph');
  const nameOf = (id: number) => nodes.find((node) => node.id === id)?.name;
  return edges
    .filter(({ parent }) => nameOf(parent) === 'q')
    .map(({ name, child }) => `${name} ${nameOf(child)}`)
    .sort();
}

async function hasWritten(qmp: QmpClient, node: string): Promise<boolean> {
  type Stats = { 'node-name': string; stats: { wr_operations: number } };
  const all = await qmp.execute<Stats[]>('query-blockstats', { 'query-nodes': true });
  return all.some((one) => one['node-name'] === node && one.stats.wr_operations > 0);
}

/** Writes random-looking blocks until told to stop, and keeps `bytes` as the disk should be. */
function writeAlong(client: NbdClient, bytes: Buffer): { stop(): Promise<void> } {
  let stopping = false;
  const writing = (async () => {
    for (let turn = 0; !stopping; turn++) {
      const offset = ((turn * 7919) % (SIZE / 4096)) * 4096;
      await client.write(offset, block(turn & 0xff));
      bytes.fill(turn & 0xff, offset, offset + 4096);
      const back = await readBytes(client, offset, 4096);
      if (!back.equals(block(turn & 0xff))) throw new Error(`turn ${turn} did not read back`);
    }
    await client.flush();
  })();
  writing.catch(() => undefined); // `stop` hands it on
  return {
    stop: () => {
      stopping = true;
      return writing;
    },
  };
}

async function expectImages({ path }: Served, names: string[], bytes: Buffer): Promise<void> {
  for (const name of names) {
    expect(`${name} ${(await readFile(path(name))).equals(bytes)}`).toBe(`${name} true`);
  }
}

describe('a quorum behind an export', () => {
  it('keeps all copies equal, whatever the client does', async () => {
    const served = await serve('vote-threshold=2');
    const commands = ['write -P 7 100 5000', 'write -z -u 1M 1M', 'discard 2M 1M', 'write -f 0 4k'];
    await runPeer('qemu-io', [
      ...['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), served.uri],
    ]);
    const seen = (await runPeer('nbdcopy', [served.uri, '-'])).stdoutBytes;
    await served.stop();
    await expectImages(served, ['a', 'b', 'c'], seen);
    expect(seen.subarray(MIB, 2 * MIB).equals(Buffer.alloc(MIB))).toBe(true);
    expect(seen.subarray(3 * MIB).equals(model().subarray(3 * MIB))).toBe(true);
  });

  it('reads around a damaged copy, tells of it, and mends it when asked to', async () => {
    const served = await serve('vote-threshold=2,rewrite-corrupted=on');
    await damage(served.path('b'), 4096 + 700, 'rotten');
    const client = await served.connect();
    const expected = model();
    const got = await readBytes(client, 4096, 4096);
    expect(got.equals(expected.subarray(4096, 8192))).toBe(true);
    expect((await served.qmp.event('QUORUM_REPORT_BAD')).data).toEqual({
      ...{ type: 'read', 'node-name': 'b', 'sector-num': 8, 'sectors-count': 8 },
    });
    await client.close();
    await served.stop();
    await expectImages(served, ['a', 'b', 'c'], expected);
  });

  it('fails a read on which the copies do not agree, and only that', async () => {
    const served = await serve('vote-threshold=2');
    await damage(served.path('a'), 1000, 'aaa');
    await damage(served.path('b'), 1000, 'bbb');
    const io = (command: string) => tryPeer('qemu-io', ['-f', 'raw', '-c', command, served.uri]);
    const { stdout } = await io('read 512 512');
    expect(stdout).toContain('read failed: Input/output error');
    expect((await served.qmp.event('QUORUM_FAILURE')).data).toEqual({
      ...{ reference: 'q', 'sector-num': 1, 'sectors-count': 1 },
    });
    expect((await io('read 1024 512')).stdout).toContain('read 512/512 bytes at offset 1024');
  });

  it('goes on when a copy fails, with the reason in the event', async () => {
    const served = await serve('vote-threshold=2', [
      'children.0.driver=file,children.0.filename=$DIR/a.img,children.0.node-name=a',
      'children.1.driver=file,children.1.filename=$DIR/b.img,children.1.node-name=b',
      'children.2.driver=blkdebug,children.2.node-name=faulty',
      'children.2.image.driver=file,children.2.image.filename=$DIR/c.img',
      'children.2.inject-error.0.event=none,children.2.inject-error.0.iotype=write',
      'children.2.inject-error.0.errno=28',
    ]);
    const client = await served.connect();
    await client.write(0, block(1));
    expect((await served.qmp.event('QUORUM_REPORT_BAD')).data).toEqual({
      ...{ type: 'write', error: 'No space left on device', 'node-name': 'faulty' },
      ...{ 'sector-num': 0, 'sectors-count': 8 },
    });
    expect((await readBytes(client, 0, 4096)).equals(block(1))).toBe(true);
    await client.close();
  });
});

describe('x-blockdev-change', () => {
  it('lets go of a copy whose server is lost, and with it the write that waits for it', async () => {
    const served = await serve('vote-threshold=2');
    const { qmp, scope } = served;
    const path = join(await scope.tempDir(), 'copy.sock');
    const server = spawnTracked('nbdkit', ['-f', '-U', path, 'file', served.path('fresh')]);
    await untilListens(server, path);
    await qmp.execute('blockdev-add', {
      ...{ driver: 'nbd', 'node-name': 'remote', 'reconnect-delay': 3600 },
      server: { type: 'unix', path },
    });
    await qmp.execute('x-blockdev-change', { parent: 'q', node: 'remote' });
    server.kill('SIGKILL');
    await once(server, 'close');
    const client = await served.connect();
    const writing = client.write(0, block(1));
    await waitUntil(() => hasWritten(qmp, 'a'), { what: () => 'the write to reach copy a' });
    await qmp.execute('x-blockdev-change', { parent: 'q', child: 'children.3' });
    await writing;
    expect((await readBytes(client, 0, 4096)).equals(block(1))).toBe(true);
    await qmp.execute('blockdev-del', { 'node-name': 'remote' });
    await client.close();
  });

  it('puts a copy in and takes one out under a client that writes', async () => {
    const served = await serve('vote-threshold=2,rewrite-corrupted=on');
    const { qmp } = served;
    const bytes = model();
    const client = await served.connect();
    const writer = writeAlong(client, bytes);
    await qmp.execute('x-blockdev-change', { parent: 'q', node: 'fresh' });
    await qmp.execute('x-blockdev-change', { parent: 'q', child: 'children.0' });
    expect(await children(qmp)).toEqual(['children.1 b', 'children.2 c', 'children.3 fresh']);
    await writer.stop();
    // The newcomer came empty: reading everything mends it.
    await runPeer('nbdcopy', [served.uri, 'null:']);
    await client.close();
    await served.stop();
    await expectImages(served, ['b', 'c', 'fresh'], bytes);
  });

  it('refuses in the words of QEMU, and changes nothing', async () => {
    const { qmp } = await serve('vote-threshold=3');
    const refused = async (args: object) => (await qmp.refused('x-blockdev-change', args)).desc;
    const before = await children(qmp);
    expect(await refused({ parent: 'q' })).toBe('Either child or node must be specified');
    expect(await refused({ parent: 'q', child: 'children.0', node: 'fresh' })).toBe(
      'The parameters child and node are in conflict',
    );
    expect(await refused({ parent: 'none', node: 'fresh' })).toBe(
      "Cannot find device='none' nor node-name='none'",
    );
    expect(await refused({ parent: 'q', node: 'none' })).toBe("Node 'none' not found");
    expect(await refused({ parent: 'q', child: 'children.9' })).toBe(
      "Node 'q' does not have child 'children.9'",
    );
    expect(await refused({ parent: 'q', child: 'children.0' })).toBe(
      'The number of children cannot be lower than the vote threshold 3',
    );
    expect(await refused({ parent: 'q', node: 'a' })).toBe('The node a already has a parent');
    expect(await refused({ parent: 'a', node: 'fresh' })).toBe(
      'The node a does not support adding a child',
    );
    expect(await children(qmp)).toEqual(before);
  });
});

describe('a mirror that replaces one copy', () => {
  it('is refused for a node that others use, or that is no copy of the source', async () => {
    const { qmp } = await serve('vote-threshold=2');
    await qmp.execute('blockdev-add', { driver: 'raw', 'node-name': 'user', file: 'c' });
    await qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': 'other', size: SIZE });
    for (const replaces of ['c', 'other', 'fresh']) {
      const { desc } = await qmp.refused('blockdev-mirror', {
        ...{ 'job-id': 'repair', device: 'q', target: 'fresh', replaces, sync: 'full' },
      });
      expect(desc).toBe(
        `Cannot replace '${replaces}' by a node mirrored from 'q', because it cannot be ` +
          'guaranteed that doing so would not lead to an abrupt change of visible data',
      );
    }
  });

  it('puts a sound copy in the place of a damaged one under a client that writes', async () => {
    const served = await serve('vote-threshold=2');
    const { qmp, path } = served;
    await damage(path('c'), 3 * MIB, 'rotten');
    const bytes = model();
    const client = await served.connect();
    const writer = writeAlong(client, bytes);
    await qmp.execute('blockdev-mirror', {
      ...{ 'job-id': 'repair', device: 'q', target: 'fresh', replaces: 'c', sync: 'full' },
    });
    await qmp.event('BLOCK_JOB_READY');
    await qmp.execute('block-job-complete', { device: 'repair' });
    const { data } = await qmp.event('BLOCK_JOB_COMPLETED');
    expect(data).not.toHaveProperty('error');
    expect(await children(qmp)).toEqual(['children.0 a', 'children.1 b', 'children.2 fresh']);
    // Made in place, so the monitor has no say in it: the node went with its last user.
    expect(await qmp.refused('blockdev-del', { 'node-name': 'c' })).toMatchObject({
      desc: "Failed to find node with node-name='c'",
    });
    await client.write(6 * MIB, block(0xaa));
    bytes.fill(0xaa, 6 * MIB, 6 * MIB + 4096);
    await writer.stop();
    await client.close();
    await served.stop();
    await expectImages(served, ['a', 'b', 'fresh'], bytes);
  });

  it.each([
    [
      'is no copy of the source any more',
      'x-blockdev-change',
      { parent: 'q', child: 'children.2' },
    ],
    ['has got another user', 'blockdev-add', { driver: 'raw', 'node-name': 'user', file: 'c' }],
  ])('fails when what it is to replace %s', async (_, command, args) => {
    const { qmp } = await serve('vote-threshold=2');
    await qmp.execute('blockdev-mirror', {
      ...{ 'job-id': 'repair', device: 'q', target: 'fresh', replaces: 'c', sync: 'full' },
    });
    await qmp.event('BLOCK_JOB_READY');
    await qmp.execute(command, args);
    const before = await children(qmp);
    await qmp.execute('block-job-complete', { device: 'repair' });
    expect((await qmp.event('BLOCK_JOB_COMPLETED')).data).toMatchObject({
      error:
        "Can no longer replace 'c' by 'fresh', because it can no longer be guaranteed that doing " +
        'so would not lead to an abrupt change of visible data',
    });
    expect(await children(qmp)).toEqual(before);
    await qmp.execute('blockdev-del', { 'node-name': 'fresh' });
  });

  it('leaves a copy to the monitor that has added it', async () => {
    const { qmp } = await serve('vote-threshold=2');
    await qmp.execute('x-blockdev-change', { parent: 'q', node: 'fresh' });
    await qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': 'next', size: SIZE });
    await qmp.execute('blockdev-mirror', {
      ...{ 'job-id': 'repair', device: 'q', target: 'next', replaces: 'fresh', sync: 'none' },
    });
    await qmp.event('BLOCK_JOB_READY');
    await qmp.execute('block-job-complete', { device: 'repair' });
    expect((await qmp.event('BLOCK_JOB_COMPLETED')).data).not.toHaveProperty('error');
    expect((await children(qmp)).at(-1)).toBe('children.3 next');
    await qmp.execute('blockdev-del', { 'node-name': 'fresh' });
  });
});
