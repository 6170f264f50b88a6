// SPDX-License-Identifier: MIT
/** block-commit through the daemon, on chains that QEMU's tools made and judge. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { type Daemon, startDaemon } from '../support/daemon.js';
import { runPeer, runPeerJson } from '../support/peers.js';
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
import { Random } from '../support/qcow2-model.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 8 * MIB;
const KILLS = Number(process.env.QCOW2_KILLS ?? 4);

interface Chain {
  readonly dir: string;
  /** Deepest first. */
  readonly images: readonly string[];
  /** What the topmost image reads. */
  readonly content: Buffer;
}

/** Four images with data of their own, zeroes, and ranges that only one has. */
async function makeChain(scope: Scope, sizes: readonly number[] = [SIZE, SIZE, SIZE, SIZE]) {
  const dir = await scope.tempDir();
  const images = sizes.map((_, index) => join(dir, `image${index}`));
  for (const [index, path] of images.entries()) {
    const below = index === 0 ? '' : `backing_file=image${index - 1},backing_fmt=qcow2`;
    await createImage(path, sizes[index] ?? SIZE, below);
    await qemuIo(path, [
      `write -P ${index + 1} ${index * 640}k 1M`,
      `write -P ${index + 65} ${4096 + index * 256}k 64k`,
      `write -z ${index * 640 + 900}k 100k`,
    ]);
  }
  const content = await qemuContent(images.at(-1) ?? '', join(dir, 'raw'));
  return { dir, images, content };
}

interface Bench extends Chain {
  readonly daemon: Daemon;
  readonly qmp: QmpClient;
  readonly client: NbdClient;
}

/** The chain, opened by its topmost image with nodes n3, n2, n1, n0, and a client that writes to it. */
async function serve(scope: Scope, chain: Chain): Promise<Bench> {
  const socket = join(chain.dir, 'nbd');
  const daemon = await startDaemon(scope, ['--nbd-server', `addr.type=unix,addr.path=${socket}`]);
  const qmp = await daemon.qmp(scope);
  let backing: object | null = null;
  for (const [index, filename] of chain.images.entries()) {
    backing = {
      ...{ driver: 'qcow2', 'node-name': `n${index}`, discard: 'unmap', backing },
      file: { driver: 'file', filename },
    };
  }
  await qmp.execute('blockdev-add', backing ?? {});
  const id = `n${chain.images.length - 1}`;
  const exported = { type: 'nbd', id: 'e', 'node-name': id, name: 'disk', writable: true };
  await qmp.execute('block-export-add', exported);
  const client = await NbdClient.connect({
    address: { type: 'unix', path: socket },
    exportName: 'disk',
  });
  scope.defer(() => client.close());
  return { ...chain, daemon, qmp, client };
}

async function write(bench: Bench, random: Random): Promise<void> {
  const at = random.below(SIZE - 200_000);
  const bytes = pattern(1 + random.below(200_000), random.below(255));
  await bench.client.write(at, bytes);
  bytes.copy(bench.content, at);
}

async function expectContent({ client, content }: Bench): Promise<void> {
  const got = Buffer.alloc(content.byteLength);
  await client.read(0, got);
  expectEqual(got, content);
}

const status = (qmp: QmpClient, wanted: string): Promise<unknown> =>
  qmp.event('JOB_STATUS_CHANGE', (data) => data.id === 'j' && data.status === wanted);

/** Names of the job's events and states, in their order. */
function story(qmp: QmpClient): unknown[] {
  return qmp.events
    .filter(({ data }) => data?.id === 'j' || data?.device === 'j')
    .map(({ event, data }) => (event === 'JOB_STATUS_CHANGE' ? data?.status : event));
}

async function nodeNames(qmp: QmpClient): Promise<unknown[]> {
  const nodes = await qmp.execute<Record<string, unknown>[]>('query-named-block-nodes');
  return nodes.flatMap((node) => (node.drv === 'qcow2' ? [node['node-name']] : [])).sort();
}

async function backingNames(path: string): Promise<unknown[]> {
  const images = await runPeerJson<Record<string, unknown>[]>('qemu-img', [
    ...['info', '--backing-chain', '--output=json', path],
  ]);
  return images.map((image) => image.filename);
}

describe('block-commit', () => {
  it('takes intermediate layers out under a client that writes', async () => {
    const scope = testScope();
    const bench = await serve(scope, await makeChain(scope));
    const { qmp, images, daemon } = bench;
    const random = new Random(1);
    await write(bench, random);
    await qmp.execute('block-commit', {
      ...{ 'job-id': 'j', device: 'n3', 'top-node': 'n2', 'base-node': 'n0' },
      'auto-finalize': false,
    });
    await expectContent(bench);
    const busy = {
      class: 'GenericError',
      desc: "Node 'n3' is busy: block device is in use by block job: commit",
    };
    for (const other of [{ 'top-node': 'n2' }, { 'base-node': 'n2' }]) {
      const args = { 'job-id': 'k', device: 'n3', ...other };
      expect((await qmp.reply('block-commit', args)).error).toEqual(busy);
    }
    for (let writes = 0; writes < 10; writes++) await write(bench, random);
    await status(qmp, 'pending');
    const reopened = {
      ...{ driver: 'qcow2', 'node-name': 'n1', 'read-only': true, backing: null },
      file: { driver: 'file', filename: images[1] },
    };
    expect((await qmp.reply('blockdev-reopen', { options: [reopened] })).error?.desc).toMatch(
      /Cannot change/,
    );
    await write(bench, random);
    await expectContent(bench);
    await qmp.execute('job-finalize', { id: 'j' });
    await status(qmp, 'null');
    await write(bench, random);
    await expectContent(bench);
    expect(await nodeNames(qmp)).toEqual(['n0', 'n3']);
    expect(story(qmp)).toEqual([
      ...['created', 'running', 'waiting', 'pending', 'BLOCK_JOB_PENDING'],
      ...['BLOCK_JOB_COMPLETED', 'concluded', 'null'],
    ]);
    await qmp.execute('quit');
    await daemon.exited;
    expect(await backingNames(images[3] ?? '')).toEqual([images[3], images[0]]);
    for (const at of [0, 3]) await expectSound(images[at] ?? '');
    expectEqual(await qemuContent(images[3] ?? '', join(bench.dir, 'after')), bench.content);
  });

  it.each([
    ['the whole chain', {}, 0],
    ['the upper layers', { 'base-node': 'n2' }, 2],
  ])('moves clients of the active layer to the base: %s', async (_, args, base) => {
    const scope = testScope();
    const bench = await serve(scope, await makeChain(scope));
    const { qmp, images, daemon } = bench;
    const random = new Random(2);
    await write(bench, random);
    await qmp.execute('block-commit', { 'job-id': 'j', device: 'n3', ...args });
    for (let writes = 0; writes < 10; writes++) await write(bench, random);
    await status(qmp, 'ready');
    await expectContent(bench);
    await write(bench, random);
    await qmp.execute('job-complete', { id: 'j' });
    await write(bench, random);
    await status(qmp, 'null');
    await write(bench, random);
    await expectContent(bench);
    expect(story(qmp)).toEqual([
      ...['created', 'running', 'ready', 'BLOCK_JOB_READY', 'waiting', 'pending'],
      ...['BLOCK_JOB_COMPLETED', 'concluded', 'null'],
    ]);
    await bench.client.flush();
    await qmp.execute('quit');
    await daemon.exited;
    await expectSound(images[base] ?? '');
    expectEqual(await qemuContent(images[base] ?? '', join(bench.dir, 'after')), bench.content);
  });

  it('keeps the image above open and as long as it is, until that has noted the base', async () => {
    const scope = testScope();
    const bench = await serve(scope, await makeChain(scope));
    const { qmp, dir, images } = bench;
    const ends = { 'top-node': 'n2', 'base-node': 'n1' };
    const slow = { speed: 1, 'auto-finalize': false };
    await qmp.execute('block-commit', { 'job-id': 'j', device: 'n3', ...ends, ...slow });
    await bench.client.close();
    await qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    await qmp.refused('blockdev-del', { 'node-name': 'n3' });
    await qmp.refused('block_resize', { 'node-name': 'n3', size: 2 * SIZE });
    await qmp.execute('block-job-set-speed', { device: 'j', speed: 0 });
    await status(qmp, 'pending');
    await qmp.execute('job-finalize', { id: 'j' });
    expect((await qmp.event('BLOCK_JOB_COMPLETED')).data).not.toHaveProperty('error');
    await qmp.execute('blockdev-del', { 'node-name': 'n3' });
    expect(await backingNames(images[3] ?? '')).toEqual([images[3], images[1], images[0]]);
    expectEqual(await qemuContent(images[3] ?? '', join(dir, 'raw')), bench.content);
  });

  it('keeps an overlay that only an export had, until that has noted the base', async () => {
    const scope = testScope();
    const bench = await serve(scope, await makeChain(scope));
    const { qmp, dir, images } = bench;
    const overlay = join(dir, 'overlay');
    await qmp.execute('blockdev-snapshot-sync', { device: 'n3', 'snapshot-file': overlay });
    const nodes = await qmp.execute<{ file: string; 'node-name': string }[]>(
      'query-named-block-nodes',
      { flat: true },
    );
    const device = nodes.find((node) => node.file === overlay && 'backing_file' in node);
    const ends = { 'top-node': 'n3', 'base-node': 'n1', 'auto-finalize': false };
    const commit = { 'job-id': 'j', device: device?.['node-name'], ...ends };
    await qmp.execute('block-commit', commit);
    await status(qmp, 'pending');
    await bench.client.close();
    await qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    await qmp.execute('job-finalize', { id: 'j' });
    expect((await qmp.event('BLOCK_JOB_COMPLETED')).data).not.toHaveProperty('error');
    await qmp.execute('quit');
    await qmp.closedByPeer();
    expect(await backingNames(overlay)).toEqual([overlay, images[1], images[0]]);
    expectEqual(await qemuContent(overlay, join(dir, 'raw')), bench.content);
  });

  it('leaves all as it was when it is cancelled', async () => {
    const scope = testScope();
    const bench = await serve(scope, await makeChain(scope));
    const { qmp, images, daemon } = bench;
    const random = new Random(3);
    for (const top of ['n3', 'n2']) {
      const args = { 'job-id': 'j', device: 'n3', 'top-node': top, speed: 65536 };
      await qmp.execute('block-commit', args);
      await write(bench, random);
      await qmp.execute('block-job-cancel', { device: 'j', force: true });
      await status(qmp, 'null');
      await write(bench, random);
      await expectContent(bench);
      expect(await nodeNames(qmp)).toEqual(['n0', 'n1', 'n2', 'n3']);
      const nodes = await qmp.execute<Record<string, unknown>[]>('query-named-block-nodes');
      expect(nodes.find((node) => node['node-name'] === 'n0')?.ro).toBe(true);
    }
    await qmp.execute('quit');
    await daemon.exited;
    for (const image of images) await expectSound(image);
    expectEqual(await qemuContent(images[3] ?? '', join(bench.dir, 'after')), bench.content);
  });

  it.each([
    ['a base that is shorter', [2 * MIB, SIZE, SIZE, SIZE]],
    ['a base that is longer', [2 * SIZE, SIZE, SIZE, SIZE]],
    ['a layer between that is shorter', [SIZE, 2 * MIB, SIZE, SIZE]],
    ['a top that is shorter', [SIZE, SIZE, 3 * MIB, SIZE]],
  ])('takes %s', async (_, sizes) => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const images = sizes.map((_, index) => join(dir, `image${index}`));
    for (const [index, path] of images.entries()) {
      const below = index === 0 ? '' : `backing_file=image${index - 1},backing_fmt=qcow2`;
      const size = sizes[index] ?? SIZE;
      await createImage(path, size, below);
      await qemuIo(path, [
        `write -P ${index + 1} ${index * 100}k ${size / KIB - index * 100 - 512}k`,
      ]);
      if (index === 3) break;
    }
    await createImage(images[3] ?? '', SIZE, 'backing_file=image2,backing_fmt=qcow2');
    const content = await qemuContent(images[3] ?? '', join(dir, 'raw'));
    const bench = await serve(scope, { dir, images, content });
    const args = { 'job-id': 'j', device: 'n3', 'top-node': 'n2', 'base-node': 'n0' };
    await bench.qmp.execute('block-commit', args);
    await status(bench.qmp, 'null');
    await expectContent(bench);
    expect(story(bench.qmp)).toContain('BLOCK_JOB_COMPLETED');
    await bench.qmp.execute('quit');
    await bench.daemon.exited;
    await expectSound(images[0] ?? '');
    expectEqual(await qemuContent(images[3] ?? '', join(dir, 'after')), content);
  });

  it('finds layers by file name, and notes the backing file that is asked for', async () => {
    const scope = testScope();
    const bench = await serve(scope, await makeChain(scope));
    const { qmp, images, daemon } = bench;
    const files = { top: images[2], base: images[1], 'backing-file': 'image1' };
    await qmp.execute('block-commit', { 'job-id': 'j', device: 'n3', ...files });
    await status(qmp, 'null');
    await qmp.execute('quit');
    await daemon.exited;
    const [info] = await runPeerJson<Record<string, unknown>[]>('qemu-img', [
      ...['info', '--backing-chain', '--output=json', images[3] ?? ''],
    ]);
    expect(info).toMatchObject({
      'backing-filename': 'image1',
      'backing-filename-format': 'qcow2',
    });
    expectEqual(await qemuContent(images[3] ?? '', join(bench.dir, 'after')), bench.content);
  });

  it.each(['n3', 'n2'])(
    'killed at any moment leaves a chain that reads the same: %s',
    async (top) => {
      const scope = testScope();
      const random = new Random(5);
      for (let kill = 0; kill < KILLS; kill++) {
        const chain = await makeChain(scope);
        const { qmp, daemon, images } = await serve(scope, chain);
        await qmp.execute('block-commit', {
          ...{ 'job-id': 'j', device: 'n3', 'top-node': top, 'base-node': 'n0' },
          speed: kill % 2 === 0 ? 0 : 4 * MIB,
        });
        for (let turns = random.below(12); turns > 0; turns--) await qmp.execute('query-jobs');
        await daemon.kill();
        const path = images[3] ?? '';
        expectEqual(await qemuContent(path, join(chain.dir, `after${kill}`)), chain.content);
        for (const image of images) {
          await runPeer('qemu-img', ['check', '-q', '-r', 'leaks', image]);
        }
      }
    },
  );
});
