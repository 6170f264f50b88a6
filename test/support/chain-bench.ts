// SPDX-License-Identifier: MIT
/**
 * A daemon in this process with a chain of images, a client that writes to it, and what is known about
 * what each layer holds.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import type { JsonValue } from '../../protocol/qapi/types.js';
import { validate } from '../../protocol/qapi/validate.js';
import { BlockError } from '../../src/base/errors.js';
import { rootLog } from '../../src/base/log.js';
import { BlockBackend } from '../../src/block/backend.js';
import { chainDown, skipFilters } from '../../src/block/chain.js';
import type { BlockNode } from '../../src/block/node.js';
import { openNode } from '../../src/block/open-node.js';
import { PERM_ALL, PERM_CONSISTENT_READ } from '../../src/block/permissions.js';
import { Daemon } from '../../src/daemon/daemon.js';
import type { BlockJob } from '../../src/job/block-job.js';
import { ChainBitmaps } from './chain-bitmaps.js';
import { ChainGuest, Moment } from './chain-guest.js';
import type { SeededRandom } from './seeded-random.js';
import type { Scope } from './temp.js';

const SESSION = { isNegotiating: false, offered: [], negotiate: () => undefined };
const END_TIMEOUT_MS = 60_000;

export interface ImageOptions {
  readonly size: number;
  readonly clusterSize: number;
  /** Name of an image in the same folder. */
  readonly backing?: string | undefined;
  readonly backingFormat?: string | undefined;
}

export class ChainBench {
  readonly daemon: Daemon;
  /** What was done, for whoever has to find out why it failed. */
  readonly trace: string[] = [];
  /** What is wrong. */
  readonly faults: string[] = [];
  /** What nodes hold that nobody changes, by name. */
  readonly contents = new Map<string, Moment>();
  readonly bitmaps = new ChainBitmaps(
    () => this.layers[0]?.name,
    (name) => this.daemon.graph.find(name),
  );
  /** The users have moved to another image since the last check. */
  mayBeLonger = false;
  readonly #names: Iterator<number>;
  #guest: ChainGuest | undefined;

  private constructor(
    readonly dir: string,
    readonly random: SeededRandom,
  ) {
    this.daemon = new Daemon({
      logger: rootLog(),
      stdio: { input: process.stdin, output: process.stdout },
      onQuit: () => undefined,
    });
    this.#names = (function* () {
      for (let next = 1; ; next++) yield next;
    })();
  }

  static async make(scope: Scope, random: SeededRandom): Promise<ChainBench> {
    const bench = new ChainBench(await scope.tempDir(), random);
    scope.defer(() => bench.daemon.shutDown());
    return bench;
  }

  get guest(): ChainGuest {
    if (this.#guest === undefined) throw new Error('no client yet');
    return this.#guest;
  }

  next(prefix: string): string {
    return `${prefix}${this.#names.next().value}`;
  }

  path(name: string): string {
    return join(this.dir, name);
  }

  /** As a monitor would. @throws what the command says */
  async execute(command: string, args: object = {}): Promise<unknown> {
    const registered = this.daemon.registry.get(command);
    if (registered === undefined) throw new Error(`no command ${command}`);
    const checked = validate(registered.definition.arguments, args as JsonValue);
    return registered.run(checked, { session: SESSION });
  }

  /** Makes a qcow2 image without opening it. */
  async createImage(name: string, options: ImageOptions): Promise<void> {
    const filename = this.path(name);
    const create = async (image: object): Promise<void> => {
      const id = this.next('create');
      await this.execute('blockdev-create', { 'job-id': id, options: image });
      const job = this.daemon.jobs.get(id);
      await job.concluded;
      if (job.error !== undefined) throw job.error;
      await this.execute('job-dismiss', { id });
    };
    await create({ driver: 'file', filename, size: 0 });
    await this.execute('blockdev-add', { driver: 'file', 'node-name': `${name}-made`, filename });
    const { backing, backingFormat, clusterSize, size } = options;
    await create({
      ...{ driver: 'qcow2', file: `${name}-made`, size, 'cluster-size': clusterSize },
      ...(backing === undefined ? {} : { 'backing-file': backing }),
      ...(backingFormat === undefined ? {} : { 'backing-fmt': backingFormat }),
    });
    await this.execute('blockdev-del', { 'node-name': `${name}-made` });
  }

  /** Options of a node on an image; its name is that of the file. */
  layer(name: string, driver: string, backing: string | null): object {
    return {
      ...{ driver, 'node-name': name, discard: 'unmap', cache: { 'no-flush': true } },
      ...(driver === 'qcow2' ? { backing } : {}),
      file: { driver: 'file', filename: this.path(name), discard: 'unmap' },
    };
  }

  /** Exports a node, and connects the client to it. */
  async connect(node: string, content: Buffer): Promise<void> {
    const socket = this.path('nbd');
    await this.execute('nbd-server-start', {
      addr: { type: 'unix', data: { path: socket } },
    });
    await this.execute('block-export-add', {
      ...{ type: 'nbd', id: 'e', 'node-name': node, name: 'disk', writable: true },
    });
    this.#guest = await ChainGuest.connect(socket, content, this.random);
    this.#guest.watch = (offset, length) => this.bitmaps.begin(offset, length);
  }

  /** What is exported now: a layer, or a job's filter above it. */
  get exported(): BlockNode {
    const { nodeName } = this.daemon.nbd.exports.get('e');
    return this.daemon.graph.get(nodeName);
  }

  /** The layers of the chain from the top, without filters. */
  get layers(): BlockNode[] {
    return chainDown(this.exported).filter(({ kind }) => kind !== 'filter');
  }

  get jobs(): readonly BlockJob[] {
    return this.daemon.jobs.blockJobs;
  }

  /** All bytes of a node; undefined while a job keeps readers away. */
  async read(node: BlockNode): Promise<Buffer | undefined> {
    const { graph } = this.daemon;
    const reader = new BlockBackend('the reader');
    try {
      await graph.attach(reader, node, { taken: PERM_CONSISTENT_READ, shared: PERM_ALL });
    } catch (error) {
      if (error instanceof BlockError && error.code === 'DF_PERMISSION_CONFLICT') return undefined;
      throw error;
    }
    try {
      const seen = Buffer.alloc(reader.size, 0xee);
      await reader.read(0, seen);
      return seen;
    } finally {
      await graph.detach(reader);
    }
  }

  /** Compares everything that is known with what is there. */
  async check(): Promise<void> {
    const { guest } = this;
    await guest.settle();
    await guest.check();
    const whole = await this.read(this.exported);
    if (whole === undefined) this.faults.push('nobody may read what is exported');
    else this.#expectTop(whole);
    for (const [name, moment] of this.contents) {
      const node = this.daemon.graph.find(name);
      const seen = node === undefined ? undefined : await this.read(node);
      if (node === undefined) this.contents.delete(name);
      if (seen !== undefined) this.#expect(name, moment, seen);
    }
    this.faults.push(...guest.faults.splice(0), ...this.bitmaps.check());
  }

  #expectTop(seen: Buffer): void {
    const { guest } = this;
    const known = guest.model.byteLength;
    if (seen.byteLength > known && this.mayBeLonger) {
      // The base of an active commit was longer: nobody said what it has there.
      guest.resize(seen.byteLength);
      seen.copy(guest.model, known, known);
    }
    this.mayBeLonger = false;
    this.#expect('the top', new Moment(guest.model), seen);
  }

  #expect(what: string, moment: Moment, seen: Buffer): void {
    const difference = moment.difference(seen);
    if (difference !== undefined) this.faults.push(`${what} holds ${difference}`);
  }

  /** A node's content is not what it was, nor that of those above it that don't show `through`. */
  forget(changed: BlockNode, through: BlockNode): void {
    for (const name of [...this.contents.keys()]) {
      const node = this.daemon.graph.find(name);
      const chain = node === undefined ? [] : chainDown(node);
      if (chain.includes(changed) && !chain.includes(through)) this.contents.delete(name);
    }
  }

  /** Brings all jobs to their ends. */
  async endJobs(): Promise<void> {
    const deadline = performance.now() + END_TIMEOUT_MS;
    for (let round = 0; this.jobs.length > 0; round++) {
      for (const job of this.jobs) await this.#push(job);
      await (round < 50 ? turn() : sleep(1));
      if (performance.now() < deadline) continue;
      const left = this.jobs.map(({ id, type, state }) => `${id} (${type}) is ${state}`);
      throw new Error(`jobs that do not end: ${left.join(', ')}`);
    }
  }

  async #push(job: BlockJob): Promise<void> {
    const { id } = job;
    const say = (command: string, more: object = {}): Promise<unknown> =>
      this.execute(command, { ...more }).catch(() => undefined);
    if (Number(job.speed) !== 0) await say('block-job-set-speed', { device: id, speed: 0 });
    if (job.userPaused) await say('job-resume', { id });
    if (job.state === 'ready') await say('job-complete', { id });
    if (job.state === 'pending') await say('job-finalize', { id });
    if (job.state === 'concluded') await say('job-dismiss', { id });
  }

  /** File names of the chain as the images note it, and what it shows to who opens it anew. */
  async reopen(): Promise<{ files: string[]; content: Buffer }> {
    const names = this.layers.map((layer) => layer.name);
    const top = this.layers[0];
    if (top === undefined) throw new Error('no chain');
    const { name } = top;
    const driver = top.driver.name;
    await this.guest.close();
    await this.daemon.shutDown();
    const left = this.daemon.graph.nodes.map((node) => node.name);
    if (left.length > 0 || !this.daemon.clean) this.faults.push(`still open: ${left}`);
    const fresh = new Daemon({
      logger: rootLog(),
      stdio: { input: process.stdin, output: process.stdout },
      onQuit: () => undefined,
    });
    try {
      const file = { driver: 'file', filename: this.path(name) };
      const options = { driver, 'node-name': 'again', 'read-only': true, file };
      const node = await openNode(fresh.graph, options, { monitorOwned: true });
      const content = Buffer.alloc(node.size);
      await node.read(0, content);
      const layers = chainDown(node).map((one) => skipFilters(one));
      const files = layers.map((one) => one.driver.filename);
      this.faults.push(...this.bitmaps.checkStored(names, layers));
      return { files, content };
    } finally {
      await fresh.shutDown();
    }
  }

  remove(name: string): Promise<void> {
    return rm(this.path(name), { force: true });
  }
}
