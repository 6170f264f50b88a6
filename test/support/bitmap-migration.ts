// SPDX-License-Identifier: MIT
/** A disk with dirty bitmaps, a full backup and a writer, which moves to another daemon. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { NbdClient } from '../../src/nbd.js';
import type { ShownBitmap } from './bitmap-peer.js';
import { type Daemon, startDaemon, waitUntil } from './daemon.js';
import { KIB, MIB, patternBytes } from './images.js';
import { runPeer } from './peers.js';
import { QmpClient } from './qmp-client.js';
import { SeededRandom } from './seeded-random.js';
import type { Scope } from './temp.js';

export type Program = 'diskferryd' | 'qemu-storage-daemon';

const SIZE = 64 * MIB;
/** Writers, each with a part of the disk of its own. */
const WRITERS = 4;
const SECTOR = 512;
/** Granularity of `fine`. */
const BLOCK = 4 * KIB;
/** Bytes of each writer's part that it writes to again and again. */
const HOT = 512 * KIB;
/** Share of writes to a block that was not written before: few enough for there always to be one. */
const FRESH = 0.15;
/** Dirtied before the migration, in the bitmap that does not record any more. */
const OLD_MARKS = { offset: 3 * MIB, length: 300 * KIB };

/** A daemon with the qcow2 image `disk`, its export `disk`, and two monitors. */
export interface Side {
  readonly daemon: Daemon;
  readonly dir: string;
  readonly image: string;
  readonly uri: string;
  readonly socketPath: string;
  /** The monitor that the command does not use. */
  readonly qmp: QmpClient;
}

export interface SideOptions {
  readonly program?: Program;
  readonly format?: 'qcow2' | 'raw';
  /** Bytes. */
  readonly size?: number;
  /** No NBD server, and so no export. */
  readonly withoutServer?: boolean;
}

/** Another program than diskferryd ends with another status on a signal. */
async function startSide(scope: Scope, options: SideOptions = {}): Promise<Side> {
  const dir = await scope.tempDir();
  const image = join(dir, 'disk.img');
  const { format = 'qcow2', program = 'diskferryd' } = options;
  const size = String(options.size ?? SIZE);
  await runPeer('qemu-img', ['create', '-q', '-f', format, image, size]);
  return openSide(scope, { dir, image, program, format, served: options.withoutServer !== true });
}

interface OpenOptions {
  readonly dir: string;
  readonly image: string;
  readonly program: Program;
  readonly format: string;
  readonly served: boolean;
}

async function openSide(scope: Scope, options: OpenOptions): Promise<Side> {
  const { dir, image, program, format, served } = options;
  const socketPath = join(dir, 'nbd.sock');
  const watch = join(dir, 'watch.qmp');
  const server = [
    ...['--nbd-server', `addr.type=unix,addr.path=${socketPath},max-connections=0`],
    ...['--export', 'type=nbd,id=disk,node-name=disk,name=disk,writable=on'],
  ];
  const daemon = await startDaemon(
    scope,
    [
      ...['--blockdev', `driver=file,node-name=file,filename=${image},discard=unmap`],
      ...['--blockdev', `driver=${format},node-name=disk,file=file,discard=unmap`],
      ...(served ? server : []),
      ...['--chardev', `socket,id=watch,path=${watch},server=on,wait=off`],
      ...['--monitor', 'chardev=watch'],
    ],
    { ...(program === 'diskferryd' ? {} : { command: [program] }), mayFail: true },
  );
  await waitUntil(() => existsSync(watch), { what: () => watch });
  const qmp = await QmpClient.connect(watch);
  scope.defer(() => qmp.close());
  return { daemon, dir, image, socketPath, qmp, uri: `nbd+unix:///disk?socket=${socketPath}` };
}

/** diskferryd once more with the image of a side that was killed. */
export function reopen(scope: Scope, { dir, image }: Side): Promise<Side> {
  return openSide(scope, { dir, image, program: 'diskferryd', format: 'qcow2', served: true });
}

/** The bitmaps with a name, in its order. */
export async function bitmapsOf({ qmp }: Side, node = 'disk'): Promise<ShownBitmap[]> {
  const nodes = await qmp.execute<{ 'node-name': string; 'dirty-bitmaps'?: ShownBitmap[] }[]>(
    'query-named-block-nodes',
    { flat: true },
  );
  const shown = nodes.find((each) => each['node-name'] === node)?.['dirty-bitmaps'] ?? [];
  return shown
    .filter(({ name }) => name !== undefined)
    .toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

export async function digest({ qmp }: Side, name: string): Promise<string> {
  const named = { node: 'disk', name };
  return (await qmp.execute<{ sha256: string }>('x-debug-block-dirty-bitmap-sha256', named)).sha256;
}

/** Nodes and exports by name, which a migration that came to nothing leaves as they were. */
export async function inventory({ qmp }: Side): Promise<unknown> {
  const nodes = await qmp.execute<{ 'node-name': string }[]>('query-named-block-nodes');
  const exports = await qmp.execute<{ id: string }[]>('query-block-exports');
  return {
    nodes: nodes.map((node) => node['node-name']).sort(),
    exports: exports.map(({ id }) => id).sort(),
  };
}

export class BitmapMigration {
  /** What the disk holds: what its users were told to be written. */
  readonly model: Buffer;
  /** Backup of the moment since which the bitmap `daily` records; qcow2. */
  readonly fullBackup: string;
  /** Set when a write failed: nothing is known of what that range holds. */
  writeError: unknown;
  /** Blocks to which a write was acknowledged since the bitmaps record: 1 for each. */
  readonly touched = Buffer.alloc(SIZE / BLOCK);
  /** Writes that were acknowledged. */
  #written = 0;
  readonly #random: SeededRandom;
  #writers: Promise<void>[] = [];
  #stopped = false;
  #restored = 0;

  private constructor(
    readonly source: Side,
    readonly target: Side,
    readonly seed: number,
    model: Buffer,
  ) {
    this.model = model;
    this.fullBackup = join(source.dir, 'full.qcow2');
    this.#random = new SeededRandom(seed);
  }

  /**
   * Bitmaps: `daily` is persistent and records, `fine` records with small granules and is not
   * persistent, `old` is persistent and does not record any more.
   */
  static async start(
    scope: Scope,
    options: {
      readonly seed: number;
      readonly source?: SideOptions;
      readonly target?: SideOptions;
    },
  ): Promise<BitmapMigration> {
    const source = await startSide(scope, options.source);
    const target = await startSide(scope, options.target);
    const bench = new BitmapMigration(source, target, options.seed, Buffer.alloc(SIZE));
    await bench.#fill();
    await bench.#makeBitmaps();
    return bench;
  }

  async #fill(): Promise<void> {
    const { qmp } = this.source;
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'old', persistent: true });
    const client = await this.#connect(this.source);
    const bytes = patternBytes(6 * MIB, this.seed);
    const write = async (offset: number, length: number): Promise<void> => {
      await client.write(offset, bytes.subarray(0, length));
      bytes.copy(this.model, offset, 0, length);
    };
    await write(OLD_MARKS.offset, OLD_MARKS.length);
    await qmp.execute('block-dirty-bitmap-disable', { node: 'disk', name: 'old' });
    await write(8 * MIB, bytes.byteLength);
    await client.close();
  }

  async #makeBitmaps(): Promise<void> {
    const { qmp } = this.source;
    await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', this.fullBackup, String(SIZE)]);
    await this.#backup(this.source, this.fullBackup, [
      { type: 'block-dirty-bitmap-add', data: { node: 'disk', name: 'daily', persistent: true } },
    ]);
    await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'fine', granularity: 4096 });
  }

  /** The disk as a client of a side, which has no more writers. */
  async #connect({ socketPath }: Side): Promise<NbdClient> {
    const address = { type: 'unix', path: socketPath } as const;
    return NbdClient.connect({ address, exportName: 'disk', connections: 1 });
  }

  /** Users of the source write until `stopWriting`, or until they can't. */
  async startWriting(): Promise<void> {
    const part = SIZE / WRITERS;
    for (let index = 0; index < WRITERS; index++) {
      const client = await this.#connect(this.source);
      const random = new SeededRandom(this.#random.int(2 ** 31));
      this.#writers.push(this.#write(client, random, { start: index * part, length: part }));
    }
  }

  async #write(
    client: NbdClient,
    random: SeededRandom,
    { start, length: part }: { start: number; length: number },
  ): Promise<void> {
    let fresh = start + HOT;
    try {
      while (!this.#stopped) {
        // Only a mark of a block that is written to once can be missed.
        const isFresh = fresh < start + part && random.chance(FRESH);
        const length = SECTOR * (1 + random.int(isFresh ? BLOCK / SECTOR : 200));
        const offset = isFresh ? fresh : start + SECTOR * random.int((HOT - length) / SECTOR);
        if (isFresh) fresh += BLOCK;
        const zero = !isFresh && random.chance(0.2);
        const bytes = zero ? Buffer.alloc(length) : patternBytes(length, random.int(2 ** 30));
        if (zero) await client.writeZeroes(offset, length);
        else await client.write(offset, bytes);
        bytes.copy(this.model, offset);
        const last = Math.floor((offset + length - 1) / BLOCK);
        this.touched.fill(1, Math.floor(offset / BLOCK), last + 1);
        this.#written++;
      }
    } catch (error) {
      this.writeError ??= error;
    } finally {
      await client.close();
    }
  }

  /** Waits until so many writes more have been acknowledged, or no more will be. */
  async wroteMore(count: number): Promise<void> {
    const enough = this.#written + count;
    await waitUntil(() => this.#written >= enough || this.writeError !== undefined, {
      what: () => `write ${enough}`,
    });
  }

  async stopWriting(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#writers);
  }

  /** Words of the command. */
  words(...more: string[]): string[] {
    return this.wordsFrom(this.source.daemon.qmpPath, ...more);
  }

  /** The same with another way to the source's monitor. */
  wordsFrom(monitor: string, ...more: string[]): string[] {
    const { target } = this;
    return [
      ...['migrate', '--from', monitor, '--node', 'disk', '--to', target.uri],
      ...['--bitmaps', '--to-monitor', target.daemon.qmpPath, ...more],
    ];
  }

  /** What the node `disk` of a side holds. */
  content(side: Side): Promise<Buffer> {
    return this.#look(side, {}, async (client) => {
      const content = Buffer.alloc(SIZE);
      await client.read(0, content);
      return content;
    });
  }

  /** Blocks that the bitmap `fine` of a side marks: 1 for each. */
  marked(side: Side): Promise<Buffer> {
    const context = 'qemu:dirty-bitmap:fine';
    // QEMU shows what records only where it may be written.
    return this.#look(side, { bitmaps: ['fine'], writable: true }, async (client) => {
      const marked = Buffer.alloc(SIZE / BLOCK);
      for (let at = 0; at < SIZE; ) {
        for (const { length, flags } of await client.blockStatus(at, SIZE - at, { context })) {
          marked.fill(flags & 1, at / BLOCK, (at + length) / BLOCK);
          at += length;
        }
      }
      return marked;
    });
  }

  async #look(
    { qmp, socketPath }: Side,
    how: { readonly bitmaps?: readonly string[]; readonly writable?: boolean },
    look: (client: NbdClient) => Promise<Buffer>,
  ): Promise<Buffer> {
    const shown = { type: 'nbd', id: 'check', name: 'check', 'node-name': 'disk', ...how };
    await qmp.execute('block-export-add', shown);
    const metaContexts = (how.bitmaps ?? []).map((name) => `qemu:dirty-bitmap:${name}`);
    const client = await NbdClient.connect({
      address: { type: 'unix', path: socketPath },
      ...{ exportName: 'check', connections: 1, metaContexts },
    });
    const content = await look(client);
    await client.close();
    await qmp.execute('block-export-del', { id: 'check', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED', ({ id }) => id === 'check');
    return content;
  }

  /** The full backup with an incremental one by the bitmap `daily` of a side on top. */
  async restore(side: Side): Promise<Buffer> {
    const path = join(side.dir, `increment-${this.#restored++}.qcow2`);
    await runPeer('qemu-img', [
      ...['create', '-q', '-f', 'qcow2', '-b', this.fullBackup, '-F', 'qcow2', path],
    ]);
    await this.#backup(side, path, [], { sync: 'incremental', bitmap: 'daily' });
    await runPeer('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', path, `${path}.raw`]);
    return readFile(`${path}.raw`);
  }

  async #backup(
    { qmp }: Side,
    path: string,
    before: readonly object[],
    how: object = { sync: 'full' },
  ): Promise<void> {
    const file = { driver: 'file', filename: path };
    const image = { driver: 'qcow2', 'node-name': 'backup', file, backing: null };
    await qmp.execute('blockdev-add', image);
    const job = { 'job-id': 'backup', device: 'disk', target: 'backup', 'auto-dismiss': false };
    const action = { type: 'blockdev-backup', data: { ...job, ...how } };
    await qmp.execute('transaction', { actions: [...before, action] });
    await this.concluded(qmp, 'backup');
    await qmp.execute('blockdev-del', { 'node-name': 'backup' });
  }

  /** Waits for the end of a job. @throws Error what it failed with */
  async concluded(qmp: QmpClient, id: string): Promise<void> {
    let error: unknown;
    const ended = async (): Promise<boolean> => {
      const jobs =
        await qmp.execute<{ id: string; status: string; error?: string }[]>('query-jobs');
      const job = jobs.find((each) => each.id === id);
      error = job?.error;
      return job?.status === 'concluded';
    };
    await waitUntil(ended, { what: () => `the end of the job ${id}` });
    await qmp.execute('job-dismiss', { id });
    if (error !== undefined) throw new Error(`the job ${id} failed: ${error}`);
  }
}

/** Offset of the first byte that differs. */
export function differsAt(left: Buffer, right: Buffer): number | undefined {
  if (left.equals(right)) return undefined;
  return left.findIndex((byte, at) => byte !== right[at]);
}

/** First block that was written to and is not marked. */
export function missingMark(marked: Buffer, touched: Buffer): number | undefined {
  const at = touched.findIndex((is, block) => is === 1 && marked[block] !== 1);
  return at < 0 ? undefined : at;
}
