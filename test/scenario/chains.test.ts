// SPDX-License-Identifier: MIT
/** Chains that grow and shrink below a connected client, as in QEMU's guide to live block operations. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { type Daemon, startDaemon } from '../support/daemon.js';
import { runPeer, runPeerJson } from '../support/peers.js';
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
