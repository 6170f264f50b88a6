// SPDX-License-Identifier: MIT
/** Filters that come above an export while its clients are at work, and go again. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { waitUntil } from '../support/daemon.js';
import { firstDifference, MIB, patternBytes } from '../support/images.js';
import { runPeer, spawnTracked } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type ServedImage, serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 32 * MIB;
const BLOCK = 4096;

interface Disk {
  readonly source: ServedImage;
  readonly qmp: QmpClient;
  readonly dir: string;
}

async function makeDisk(scope: Scope, args: readonly string[] = []): Promise<Disk> {
  const data = [{ offset: 0, length: 20 * MIB }];
  const source = await serveImage(scope, { size: SIZE, data, seed: 5, args });
  return { source, qmp: await source.daemon.qmp(scope), dir: await scope.tempDir() };
}

const replace = (next: string, id = 'disk') => ({
  'parent-type': 'export',
  'export-id': id,
  'new-child': next,
});

/** A client that writes one block after the other. */
class Writer {
  /** Blocks that are acknowledged. */
  written = 0;
  #stopping = false;
  readonly #ended: Promise<void>;

  constructor(readonly client: NbdClient) {
    this.#ended = this.#write();
    this.#ended.catch(() => {}); // told where it is waited for
  }

  static async start(scope: Scope, path: string): Promise<Writer> {
    const address = { type: 'unix', path } as const;
    const client = await NbdClient.connect({ address, exportName: 'disk' });
    scope.defer(() => client.close());
    return new Writer(client);
  }

  /** Fulfilled when `count` more blocks are acknowledged. */
  async goesOn(count: number): Promise<void> {
    const goal = this.written + count;
    await waitUntil(() => this.written >= goal, { what: () => `${goal} blocks` });
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#ended;
  }

  async #write(): Promise<void> {
    while (!this.#stopping) {
      const { offset, block } = blockOf(this.written);
      await this.client.write(offset, block);
      this.written++;
    }
    await this.client.flush();
  }
}

function blockOf(index: number): { offset: number; block: Buffer } {
  return {
    offset: ((index * 7919) % (SIZE / BLOCK)) * BLOCK,
    block: patternBytes(BLOCK, index + 1),
  };
}

/** After how many blocks the disk was what `content` is; undefined: never from `first` to `last`. */
function momentOf(
  content: Buffer,
  { atStart, first, last }: { atStart: Buffer; first: number; last: number },
): number | undefined {
  const model = Buffer.from(atStart);
  for (let index = 0; index <= last; index++) {
    if (index >= first && model.equals(content)) return index;
    const { offset, block } = blockOf(index);
    block.copy(model, offset);
  }
  return undefined;
}

/** A server of one image, and the node for it. */
async function serveTarget({ qmp, dir }: Disk, image: string) {
  const path = join(dir, 'target.sock');
  const args = ['-f', 'raw', '-k', path, '-x', 'disk', '-t', image];
  const server = spawnTracked('qemu-nbd', args);
  onTestFinished(() => void server.kill('SIGKILL'));
  const node = { driver: 'nbd', 'node-name': 'target', server: { type: 'unix', path } };
  const add = () => qmp.reply('blockdev-add', { ...node, export: 'disk' });
  await waitUntil(async () => (await add()).error === undefined, { what: () => 'qemu-nbd' });
  return server;
}

async function sparseFile(path: string): Promise<string> {
  await runPeer('truncate', ['-s', String(SIZE), path]);
  return path;
}

async function addFleece({ qmp, dir }: Disk): Promise<void> {
  const filename = await sparseFile(join(dir, 'fleece.img'));
  const fleece = { driver: 'file', 'node-name': 'fleece', filename, discard: 'unmap' };
  await qmp.execute('blockdev-add', fleece);
  await qmp.execute('blockdev-add', {
    ...{ driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk', target: 'fleece' },
  });
}

async function addSnapshot(qmp: QmpClient): Promise<void> {
  const snapshot = { driver: 'snapshot-access', 'node-name': 'snap', file: 'cbw' };
  await qmp.execute('blockdev-add', snapshot);
  await qmp.execute('block-export-add', { type: 'nbd', id: 'snap', 'node-name': 'snap' });
}

async function removeFleece(qmp: QmpClient): Promise<void> {
  await qmp.execute('block-export-del', { id: 'snap', mode: 'hard' });
  await qmp.event('BLOCK_EXPORT_DELETED');
  await qmp.execute('blockdev-del', { 'node-name': 'snap' });
  await qmp.execute('blockdev-replace', replace('disk'));
  await qmp.execute('blockdev-del', { 'node-name': 'cbw' });
  await qmp.execute('blockdev-del', { 'node-name': 'fleece' });
}

describe('blockdev-replace', () => {
  it('lets a slow server have the disk of one moment, while a writer goes on', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, source, dir } = disk;
    const atStart = await readFile(source.path);
    const image = await sparseFile(join(dir, 'copy.img'));
    const server = await serveTarget(disk, image);
    const writer = await Writer.start(scope, source.socketPath);
    await addFleece(disk);
    await writer.goesOn(50);
    const first = writer.written;
    await qmp.execute('blockdev-replace', replace('cbw'));
    const last = writer.written + 1;
    await addSnapshot(qmp);
    server.kill('SIGSTOP');
    const backup = { 'job-id': 'job', device: 'snap', target: 'target', sync: 'full' };
    await qmp.execute('blockdev-backup', { ...backup, 'auto-dismiss': false });
    await writer.goesOn(500);
    const other = join(dir, 'other.img');
    await runPeer('nbdcopy', [`nbd+unix:///snap?socket=${source.socketPath}`, other]);
    server.kill('SIGCONT');
    const concluded = ({ status }: Record<string, unknown>) => status === 'concluded';
    await qmp.event('JOB_STATUS_CHANGE', concluded);
    const [job] = await qmp.execute<{ error?: string }[]>('query-jobs');
    expect(job?.error).toBeUndefined();
    await qmp.execute('job-dismiss', { id: 'job' });
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    await removeFleece(qmp);
    await writer.goesOn(50);
    await writer.stop();
    expect(await firstDifference(image, other)).toBeUndefined();
    expect(momentOf(await readFile(image), { atStart, first, last })).toBeDefined();
    const now = { atStart, first: writer.written, last: writer.written };
    expect(momentOf(await readFile(source.path), now)).toBe(writer.written);
  });

  it('begins, in one transaction, the snapshot and the bitmap of what comes after it', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, source, dir } = disk;
    const image = await sparseFile(join(dir, 'copy.img'));
    await serveTarget(disk, image);
    const writer = await Writer.start(scope, source.socketPath);
    await addFleece(disk);
    const bitmap = { node: 'disk', name: 'since' };
    const actions = [
      { type: 'block-dirty-bitmap-add', data: bitmap },
      { type: 'blockdev-replace', data: replace('cbw') },
    ];
    const abort = { actions: [...actions, { type: 'abort', data: {} }] };
    expect((await qmp.refused('transaction', abort)).desc).toContain('Abort action');
    await writer.goesOn(50);
    await qmp.execute('transaction', { actions });
    await addSnapshot(qmp);
    await writer.goesOn(50);
    const copy = async (args: object) => {
      await qmp.execute('blockdev-backup', { 'job-id': 'job', target: 'target', ...args });
      await qmp.event('BLOCK_JOB_COMPLETED');
    };
    await copy({ device: 'snap', sync: 'full' });
    await removeFleece(qmp);
    await writer.stop();
    qmp.events.length = 0;
    await copy({ device: 'disk', sync: 'incremental', bitmap: 'since' });
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
    expect(await firstDifference(image, source.path)).toBeUndefined();
  });

  it('moves filters in and out below fio, which finds every block that it wrote', async () => {
    const group = ['--object', 'throttle-group,id=group,limits.iops-total=1000000'];
    const disk = await makeDisk(testScope(), group);
    const { qmp, source } = disk;
    const settings = {
      ...{ name: 'verify', ioengine: 'nbd', uri: source.uri, size: '32m', rw: 'randwrite' },
      ...{ bsrange: '4k-64k', iodepth: 16, verify: 'crc32c', verify_fatal: 1, do_verify: 1 },
      ...{ verify_state_save: 0, randseed: 7, loops: 3 },
    };
    let running = true;
    const options = Object.entries(settings).map(([name, value]) => `--${name}=${value}`);
    const fio = runPeer('fio', options).finally(() => {
      running = false;
    });
    await addFleece(disk);
    const filters = [
      { driver: 'throttle', 'throttle-group': 'group', file: 'disk' },
      { driver: 'copy-on-read', file: 'disk' },
    ];
    let rounds = 0;
    while (running) {
      for (const filter of filters) {
        await qmp.execute('blockdev-add', { ...filter, 'node-name': 'filter' });
        await qmp.execute('blockdev-replace', replace('filter'));
        await qmp.execute('blockdev-replace', replace('disk'));
        await qmp.execute('blockdev-del', { 'node-name': 'filter' });
      }
      await qmp.execute('blockdev-replace', replace('cbw'));
      await qmp.execute('blockdev-replace', replace('disk'));
      rounds++;
    }
    await fio;
    expect(rounds).toBeGreaterThan(1);
  });

  it('leaves a mirror to find the writes above which a filter comes', async () => {
    const scope = testScope();
    const disk = await makeDisk(scope);
    const { qmp, source, dir } = disk;
    const atStart = await readFile(source.path);
    const image = await sparseFile(join(dir, 'copy.img'));
    await serveTarget(disk, image);
    const writer = await Writer.start(scope, source.socketPath);
    await qmp.execute('blockdev-add', { driver: 'copy-on-read', 'node-name': 'cor', file: 'disk' });
    const mirror = { 'job-id': 'job', device: 'disk', target: 'target', sync: 'full' };
    await qmp.execute('blockdev-mirror', { ...mirror, 'filter-node-name': 'mirror' });
    expect((await qmp.refused('blockdev-replace', replace('disk'))).desc).toContain(
      "Node 'disk' is not above 'mirror'",
    );
    await qmp.execute('blockdev-replace', replace('cor'));
    await qmp.event('BLOCK_JOB_READY');
    await writer.goesOn(50);
    await qmp.execute('block-job-complete', { device: 'job' });
    await qmp.event('BLOCK_JOB_COMPLETED');
    await writer.goesOn(50);
    await qmp.execute('blockdev-replace', replace('target'));
    await writer.goesOn(50);
    await writer.stop();
    await qmp.execute('block-export-del', { id: 'disk', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    const now = { atStart, first: writer.written, last: writer.written };
    expect(momentOf(await readFile(image), now)).toBe(writer.written);
  });

  it('says what is wrong, and changes nothing', async () => {
    const { qmp, source } = await makeDisk(testScope());
    const refused = async (args: object) => (await qmp.refused('blockdev-replace', args)).desc;
    expect(await refused(replace('nope'))).toBe("Node 'nope' not found");
    expect(await refused(replace('disk', 'nope'))).toBe("Export 'nope' is not found");
    expect(await refused({ ...replace('disk'), 'parent-type': 'qdev' })).toContain('qdev');
    const driver = { 'parent-type': 'driver', 'new-child': 'file' };
    expect(await refused({ ...driver, 'node-name': 'nope', child: 'file' })).toBe(
      "Failed to find node with node-name='nope'",
    );
    expect(await refused({ ...driver, 'node-name': 'disk', child: 'backing' })).toBe(
      "Node 'disk' does not have child 'backing'",
    );
    await runPeer('qemu-io', ['-f', 'raw', '-c', 'write -P 3 0 64k', source.uri]);
    expect((await readFile(source.path))[0]).toBe(3);
  });

  it('keeps the bitmaps in sight that an export shows', async () => {
    const { qmp, source } = await makeDisk(testScope());
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'b', disabled: true });
    const shown = { type: 'nbd', id: 'e', 'node-name': 'disk', name: 'e', bitmaps: ['b'] };
    await qmp.execute('block-export-add', shown);
    await qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': 'null', size: SIZE });
    expect((await qmp.refused('blockdev-replace', replace('null', 'e'))).desc).toBe(
      "Export 'e' shows bitmap 'b', which neither node 'null' nor one below it has",
    );
    await qmp.execute('blockdev-add', { driver: 'copy-on-read', 'node-name': 'cor', file: 'disk' });
    await qmp.execute('blockdev-replace', replace('cor'));
    await qmp.execute('blockdev-replace', replace('cor', 'e'));
    const uri = `nbd+unix:///e?socket=${source.socketPath}`;
    const { stdout } = await runPeer('nbdinfo', ['--map=qemu:dirty-bitmap:b', uri]);
    expect(stdout).toContain('33554432');
  });
});
