// SPDX-License-Identifier: MIT
/** Chains that grow and shrink below a connected client, as in QEMU's guide to live block operations. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { type Daemon, startDaemon } from '../support/daemon.js';
import { runPeer, runPeerJson, tryPeer } from '../support/peers.js';
import { expectEqual, expectSound, KIB, MIB, pattern, qemuContent } from '../support/qcow2.js';
import { Random } from '../support/qcow2-model.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 8 * MIB;
const LAYERS = ['A', 'B', 'C', 'D'] as const;

class Bench {
  readonly model = Buffer.alloc(SIZE);
  readonly random: Random;

  private constructor(
    readonly dir: string,
    readonly daemon: Daemon,
    readonly qmp: QmpClient,
    readonly client: NbdClient,
    seed: number,
  ) {
    this.random = new Random(seed);
  }

  /** One qcow2 image, node-A, with a client that writes to it. */
  static async make(scope: Scope, options: { seed?: number; mayFail?: boolean } = {}) {
    const dir = await scope.tempDir();
    await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', join(dir, 'a.qcow2'), `${SIZE}`]);
    const socket = join(dir, 'nbd');
    const daemon = await startDaemon(
      scope,
      [
        ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
        ...['--blockdev', 'qcow2,node-name=node-A,file.driver=file,file.filename=a.qcow2'],
        ...['--export', 'type=nbd,id=e,node-name=node-A,name=disk,writable=on'],
      ],
      { cwd: dir, mayFail: options.mayFail === true },
    );
    const qmp = await daemon.qmp(scope);
    const client = await NbdClient.connect({
      address: { type: 'unix', path: socket },
      exportName: 'disk',
    });
    scope.defer(() => client.close());
    return new Bench(dir, daemon, qmp, client, options.seed ?? 1);
  }

  path(layer: string): string {
    return join(this.dir, `${layer.toLowerCase()}.qcow2`);
  }

  async write(count = 20): Promise<void> {
    for (let i = 0; i < count; i++) {
      const length = 1 + this.random.below(100 * KIB);
      const offset = this.random.below(SIZE - length);
      const bytes = pattern(length, this.random.below(1 << 30));
      await this.client.write(offset, bytes);
      bytes.copy(this.model, offset);
    }
  }

  async check(): Promise<void> {
    const seen = Buffer.alloc(SIZE);
    await this.client.read(0, seen);
    expectEqual(seen, this.model);
  }

  async snapshot(from: string, to: string): Promise<void> {
    await this.qmp.execute('blockdev-snapshot-sync', {
      'node-name': `node-${from}`,
      'snapshot-file': `${to.toLowerCase()}.qcow2`,
      'snapshot-node-name': `node-${to}`,
      format: 'qcow2',
    });
  }

  /** [A] <-- [B] <-- [C] <-- [D], each with data of its own. */
  async chain(): Promise<void> {
    await this.write();
    for (const [at, to] of LAYERS.entries()) {
      const from = LAYERS[at - 1];
      if (from === undefined) continue;
      await this.snapshot(from, to);
      await this.write();
    }
  }

  /** Writes and reads until the job is over; its end. */
  async during(id: string): Promise<Record<string, unknown>> {
    let over = false;
    const ended = this.qmp
      .event('JOB_STATUS_CHANGE', (data) => data.id === id && data.status === 'null')
      .finally(() => {
        over = true;
      });
    while (!over) {
      await this.write(3);
      await this.check();
    }
    await ended;
    const end = this.qmp.events.find(
      ({ event, data }) => event.startsWith('BLOCK_JOB_C') && data?.device === id,
    );
    return { event: end?.event, ...end?.data };
  }

  /** The chain as the nodes show it, from the top. */
  async nodes(): Promise<string[]> {
    const all =
      await this.qmp.execute<{ 'node-name': string; file: string; image: Image }[]>(
        'query-named-block-nodes',
      );
    const exported = await this.qmp.execute<{ 'node-name': string }[]>('query-block-exports');
    const top = all.find((node) => node['node-name'] === exported[0]?.['node-name']);
    const files: string[] = [];
    for (let at = top?.image; at !== undefined; at = at['backing-image']) files.push(at.filename);
    return files;
  }

  /** What the images note, from the top. */
  async images(top: string): Promise<string[]> {
    const chain = await runPeerJson<{ filename: string }[]>('qemu-img', [
      ...['info', '-U', '--backing-chain', '--output=json', this.path(top)],
    ]);
    return chain.map(({ filename }) => filename.slice(filename.lastIndexOf('/') + 1));
  }

  async finish(top: string): Promise<void> {
    await this.check();
    await this.client.flush();
    await this.client.close();
    await this.daemon.stop();
    await expectSound(this.path(top));
    expectEqual(await qemuContent(this.path(top), join(this.dir, 'out')), this.model);
  }
}

type Image = { filename: string; 'backing-image'?: Image };

const file = (...layers: string[]): string[] =>
  layers.map((layer) => `${layer.toLowerCase()}.qcow2`);

describe('blockdev-snapshot-sync', () => {
  it('makes [A] <-- [B] <-- [C] <-- [D] below a client', async () => {
    const bench = await Bench.make(testScope());
    await bench.chain();
    expect(await bench.nodes()).toEqual(file('D', 'C', 'B', 'A'));
    expect(await bench.images('D')).toEqual(file('D', 'C', 'B', 'A'));
    await bench.finish('D');
  });
});

describe('block-stream', () => {
  const stream = (bench: Bench, more: object): Promise<unknown> =>
    bench.qmp.execute('block-stream', { 'job-id': 'job0', ...more });

  it('case 1: merges everything into the active layer', async () => {
    const bench = await Bench.make(testScope(), { seed: 2 });
    await bench.chain();
    await stream(bench, { device: 'node-D' });
    const end = await bench.during('job0');
    expect(end).toMatchObject({ event: 'BLOCK_JOB_COMPLETED', len: SIZE, offset: SIZE, speed: 0 });
    expect(end.error).toBeUndefined();
    expect(await bench.nodes()).toEqual(file('D'));
    expect(await bench.images('D')).toEqual(file('D'));
    await bench.finish('D');
  });

  it.each([
    ['base-node', { 'base-node': 'node-A' }],
    ['base', { base: 'a.qcow2' }],
    ['bottom', { bottom: 'node-B' }],
  ])('case 2: merges [B] and [C] into the active layer (%s)', async (_name, base) => {
    const bench = await Bench.make(testScope(), { seed: 3 });
    await bench.chain();
    await stream(bench, { device: 'node-D', ...base });
    expect((await bench.during('job0')).error).toBeUndefined();
    expect(await bench.nodes()).toEqual(file('D', 'A'));
    expect(await bench.images('D')).toEqual(file('D', 'A'));
    await bench.finish('D');
  });

  it('case 3: merges [B] into [C] below the active layer', async () => {
    const bench = await Bench.make(testScope(), { seed: 4 });
    await bench.chain();
    await stream(bench, { device: 'node-C', 'base-node': 'node-A' });
    expect((await bench.during('job0')).error).toBeUndefined();
    expect(await bench.nodes()).toEqual(file('D', 'C', 'A'));
    expect(await bench.images('D')).toEqual(file('D', 'C', 'A'));
    await bench.finish('D');
  });

  it('never undoes what a client writes meanwhile, and takes effect when it is finalized', async () => {
    const bench = await Bench.make(testScope(), { seed: 5 });
    await bench.chain();
    const noted = join(bench.dir, 'a.qcow2');
    await stream(bench, {
      ...{ device: 'node-D', 'base-node': 'node-A', 'backing-file': noted },
      ...{ speed: 2 * MIB, 'filter-node-name': 'cor', 'auto-finalize': false },
    });
    const pending = bench.qmp.event('BLOCK_JOB_PENDING');
    for (let round = 0; round < 20; round++) {
      await bench.write(10);
      await bench.check();
    }
    // On a busy machine the job has nothing left to do by now, and refuses.
    await bench.qmp.reply('block-job-set-speed', { device: 'job0', speed: 0 });
    await pending;
    await bench.write();
    expect(await bench.images('D')).toEqual(file('D', 'C', 'B', 'A'));
    await bench.qmp.execute('job-finalize', { id: 'job0' });
    await bench.qmp.event('BLOCK_JOB_COMPLETED');
    expect(await bench.images('D')).toEqual(file('D', 'A'));
    const nodes = await bench.qmp.execute<{ 'node-name': string; backing_file?: string }[]>(
      'query-named-block-nodes',
      { flat: true },
    );
    const top = nodes.find((node) => node['node-name'] === 'node-D');
    expect(top).toMatchObject({ backing_file: 'a.qcow2', backing_file_depth: 0 });
    expect(nodes.some((node) => node['node-name'] === 'cor')).toBe(false);
    await bench.finish('D');
  });

  it('tells of its life in the order of QEMU', async () => {
    const bench = await Bench.make(testScope());
    await bench.chain();
    await stream(bench, { device: 'node-D' });
    await bench.during('job0');
    const story = bench.qmp.events.map(({ event, data }) => String(data?.status ?? event));
    expect(story).toEqual([
      ...['created', 'running', 'waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null'],
    ]);
  });
});

/** Leaked clusters (3) are what a kill may leave. */
async function expectNoCorruption(path: string): Promise<void> {
  const { code, stdout } = await tryPeer('qemu-img', ['check', path]);
  expect([0, 3], stdout).toContain(code);
}

describe('a kill at any moment', () => {
  it.each([1, 2, 3, 4, 5, 6])(
    'leaves a chain that reads the same, stream, round %i',
    async (at) => {
      const bench = await Bench.make(testScope(), { seed: at, mayFail: true });
      await bench.chain();
      await bench.client.flush();
      await bench.qmp.execute('block-stream', {
        ...{ 'job-id': 'j', device: 'node-D' },
        ...(at % 2 === 0 ? { 'base-node': 'node-A' } : {}),
      });
      // A different number of round trips each time, so that it dies elsewhere each time.
      for (let i = 0; i < (at - 1) * 4; i++) await bench.qmp.execute('query-jobs');
      await bench.daemon.kill();
      await expectNoCorruption(bench.path('D'));
      expectEqual(await qemuContent(bench.path('D'), join(bench.dir, 'out')), bench.model);
    },
  );

  it.each([1, 2, 3, 4])('leaves images that read the same, snapshot, round %i', async (at) => {
    const bench = await Bench.make(testScope(), { seed: at, mayFail: true });
    await bench.write();
    await bench.client.flush();
    bench.qmp.send(
      `${JSON.stringify({
        execute: 'blockdev-snapshot-sync',
        arguments: { device: 'node-A', 'snapshot-file': 'b.qcow2', 'snapshot-node-name': 'node-B' },
      })}\n`,
    );
    // How far it comes in that time is left open: every moment has to do.
    await sleep((at - 1) * 5);
    await bench.daemon.kill();
    await expectNoCorruption(bench.path('A'));
    expectEqual(await qemuContent(bench.path('A'), join(bench.dir, 'out')), bench.model);
  });
});

describe('chains under jobs and transactions', () => {
  const start = async (seed: number): Promise<Bench> => {
    const bench = await Bench.make(testScope(), { seed });
    await bench.chain();
    return bench;
  };
  const reason = async (bench: Bench, command: string, args: object): Promise<string> =>
    (await bench.qmp.refused(command, args)).desc;

  it('refuses what conflicts with a stream, and allows what does not', async () => {
    const bench = await start(7);
    const busy = (node: string): string =>
      `Node '${node}' is busy: block device is in use by block job: stream`;
    await bench.qmp.execute('block-stream', {
      ...{ 'job-id': 'one', device: 'node-D', bottom: 'node-C', speed: 1 },
    });
    const again = { 'job-id': 'two', device: 'node-C', speed: 1 };
    expect(await reason(bench, 'block-stream', again)).toBe(busy('node-C'));
    const overlay = { 'snapshot-file': 'x.qcow2', 'snapshot-node-name': 'x' };
    expect(
      await reason(bench, 'blockdev-snapshot-sync', { 'node-name': 'node-D', ...overlay }),
    ).toBe(busy('node-D'));
    expect(
      await reason(bench, 'change-backing-file', {
        ...{ device: 'node-D', 'image-node-name': 'node-D', 'backing-file': 'c.qcow2' },
      }),
    ).toContain('Need a root block node');
    await bench.qmp.execute('block-stream', { ...again, device: 'node-B' });
    for (const id of ['one', 'two']) {
      await bench.qmp.execute('block-job-set-speed', { device: id, speed: 0 });
    }
    await bench.write();
    for (const id of ['one', 'two']) {
      await bench.qmp.event('BLOCK_JOB_COMPLETED', (data) => data.device === id);
    }
    await bench.check();
    expect(await bench.nodes()).toEqual(file('D', 'B'));
    expect(await bench.images('D')).toEqual(file('D', 'B'));
    await bench.finish('D');
  });

  it('a stream that is cancelled leaves the chain as it was', async () => {
    const bench = await start(8);
    await bench.qmp.execute('block-stream', { 'job-id': 'j', device: 'node-D', speed: 1 });
    await bench.write();
    await bench.qmp.execute('block-job-cancel', { device: 'j' });
    expect((await bench.during('j')).event).toBe('BLOCK_JOB_CANCELLED');
    expect(await bench.nodes()).toEqual(file('D', 'C', 'B', 'A'));
    await bench.finish('D');
  });

  it('takes snapshots back when the transaction fails, the last first', async () => {
    const bench = await start(9);
    const sync = (from: string, to: string): object => ({
      type: 'blockdev-snapshot-sync',
      data: {
        ...{ 'node-name': from, 'snapshot-file': `${to}.qcow2`, 'snapshot-node-name': to },
      },
    });
    const actions = [sync('node-D', 'e'), sync('e', 'f'), { type: 'abort', data: {} }];
    expect(await reason(bench, 'transaction', { actions })).toBe(
      'Transaction aborted using Abort action',
    );
    expect(await bench.nodes()).toEqual(file('D', 'C', 'B', 'A'));
    await bench.write();
    await bench.check();
    await bench.qmp.execute('transaction', { actions: [sync('node-D', 'g'), sync('g', 'h')] });
    expect(await bench.nodes()).toEqual(file('H', 'G', 'D', 'C', 'B', 'A'));
    await bench.write();
    await bench.finish('H');
  });

  it('a snapshot with an open overlay, refused with the reason where it is none', async () => {
    const bench = await start(10);
    const create = ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', 'd.qcow2'];
    await runPeer('qemu-img', [...create, 'e.qcow2', `${SIZE}`], { cwd: bench.dir });
    const add = (name: string, more: object): Promise<unknown> =>
      bench.qmp.execute('blockdev-add', {
        ...{ driver: 'qcow2', 'node-name': name, ...more },
        file: { driver: 'file', filename: 'e.qcow2' },
      });
    await bench.qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': 'none' });
    const snap = (overlay: string): object => ({ node: 'node-D', overlay });
    const command = 'blockdev-snapshot';
    expect(await reason(bench, command, snap('none'))).toBe(
      'The overlay does not support backing images',
    );
    expect(await reason(bench, command, snap('node-C'))).toBe('The overlay is already in use');
    expect(await reason(bench, command, snap('nowhere'))).toBe(
      "Cannot find device='nowhere' nor node-name='nowhere'",
    );
    await add('node-E', { backing: null });
    await bench.qmp.execute(command, snap('node-E'));
    expect(await bench.nodes()).toEqual(file('E', 'D', 'C', 'B', 'A'));
    await bench.write();
    await bench.finish('E');
  });

  it('an overlay that was named stays without users, and can be deleted', async () => {
    const bench = await start(11);
    await bench.qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
    await bench.qmp.event('BLOCK_EXPORT_DELETED');
    await bench.snapshot('D', 'E');
    await bench.qmp.execute('blockdev-del', { 'node-name': 'node-E' });
  });

  it('changes what an image notes as its backing file', async () => {
    const bench = await start(12);
    await bench.qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
    await bench.qmp.event('BLOCK_EXPORT_DELETED');
    const link = join(bench.dir, 'a.qcow2');
    for (const node of ['node-B', 'node-D']) {
      await bench.qmp.execute('change-backing-file', {
        ...{ device: 'node-D', 'image-node-name': node, 'backing-file': link },
      });
    }
    expect(await bench.images('D')).toEqual(file('D', 'A'));
    expect(await bench.images('B')).toEqual(file('B', 'A'));
  });

  it('a backup of a node goes on while a snapshot is taken of it', async () => {
    const bench = await start(13);
    const before = Buffer.from(bench.model);
    await runPeer('qemu-img', ['create', '-q', '-f', 'raw', join(bench.dir, 't'), `${SIZE}`]);
    await bench.qmp.execute('blockdev-add', { driver: 'file', 'node-name': 't', filename: 't' });
    await bench.qmp.execute('blockdev-backup', {
      ...{ 'job-id': 'b', device: 'node-D', target: 't', sync: 'full', speed: 65536 },
    });
    await bench.write();
    await bench.snapshot('D', 'E');
    await bench.write();
    await bench.qmp.execute('block-job-set-speed', { device: 'b', speed: 0 });
    expect((await bench.during('b')).error).toBeUndefined();
    expectEqual(await readFile(join(bench.dir, 't')), before);
    await bench.finish('E');
  });
});

describe('block-stream of images made by qemu-img', () => {
  /** base.qcow2 full of data; mid above it, half as long; top above that. */
  const make = async (scope: Scope) => {
    const dir = await scope.tempDir();
    const img = (...args: string[]): Promise<unknown> => runPeer('qemu-img', args, { cwd: dir });
    const create = ['create', '-q', '-f', 'qcow2'];
    await img(...create, 'base', `${SIZE}`);
    await runPeer('qemu-io', ['-c', `write -P 7 0 ${SIZE}`, join(dir, 'base')]);
    await img(...create, '-b', 'base', '-F', 'qcow2', 'mid', `${SIZE / 2}`);
    await runPeer('qemu-io', ['-c', 'write -P 8 1M 1M', join(dir, 'mid')]);
    await img(...create, '-b', 'mid', '-F', 'qcow2', 'top', `${SIZE}`);
    await runPeer('qemu-io', ['-c', 'write -P 9 0 64k', join(dir, 'top')]);
    const before = await qemuContent(join(dir, 'top'), join(dir, 'out'));
    return { dir, before };
  };
  const layer = (name: string, more: object): object => ({
    driver: 'qcow2',
    'node-name': name,
    file: { driver: 'file', filename: name },
    ...more,
  });

  it('keeps the zeroes after the end of a short layer that goes', async () => {
    const scope = testScope();
    const { dir, before } = await make(scope);
    const daemon = await startDaemon(scope, [], { cwd: dir });
    const qmp = await daemon.qmp(scope);
    await qmp.execute('blockdev-add', layer('base', { 'read-only': true }));
    await qmp.execute('blockdev-add', layer('mid', { 'read-only': true, backing: 'base' }));
    await qmp.execute('blockdev-add', layer('top', { backing: 'mid' }));
    await qmp.execute('block-stream', { device: 'top', 'base-node': 'base' });
    const { data } = await qmp.event('BLOCK_JOB_COMPLETED');
    expect(data).toMatchObject({ device: 'top', type: 'stream', len: SIZE, offset: SIZE });
    await daemon.stop();
    await expectSound(join(dir, 'top'));
    expectEqual(await qemuContent(join(dir, 'top'), join(dir, 'out')), before);
  });

  it.each(['report', 'ignore', 'stop'])(
    'does about errors what on-error says: %s',
    async (policy) => {
      const scope = testScope();
      const { dir, before } = await make(scope);
      const daemon = await startDaemon(scope, [], { cwd: dir });
      const qmp = await daemon.qmp(scope);
      const error = { event: 'none', iotype: 'read', errno: 5, sector: (3 * MIB) / 512 };
      await qmp.execute('blockdev-add', layer('base', { 'read-only': true }));
      await qmp.execute('blockdev-add', {
        ...{ driver: 'blkdebug', 'node-name': 'bad', image: 'base', 'read-only': true },
        'inject-error': [{ ...error, once: policy === 'stop' }],
      });
      await qmp.execute('blockdev-add', layer('mid', { backing: 'bad', 'read-only': true }));
      await qmp.execute('blockdev-add', layer('top', { backing: 'mid' }));
      await qmp.execute('block-stream', { 'job-id': 'j', device: 'top', 'on-error': policy });
      const failed = await qmp.event('BLOCK_JOB_ERROR');
      expect(failed.data).toEqual({ device: 'j', operation: 'read', action: policy });
      if (policy === 'stop') {
        await qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === 'paused');
        await qmp.execute('job-resume', { id: 'j' });
      }
      const { data } = await qmp.event('BLOCK_JOB_COMPLETED');
      expect(String(data?.error)).toContain(policy === 'stop' ? 'undefined' : 'injected EIO');
      const chain = await runPeerJson<unknown[]>('qemu-img', [
        ...['info', '-U', '--backing-chain', '--output=json', join(dir, 'top')],
      ]);
      expect(chain.length).toBe(policy === 'stop' ? 1 : 3);
      await daemon.stop();
      expectEqual(await qemuContent(join(dir, 'top'), join(dir, 'out')), before);
    },
  );
});
