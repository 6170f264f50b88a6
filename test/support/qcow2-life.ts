// SPDX-License-Identifier: MIT
/**
 * The life of a qcow2 image: random requests, sizes, snapshots, bitmaps, reopening, and turns of qemu-io.
 * A model in memory tells what the image must hold, its snapshots too, and which granules a bitmap must have.
 */
import { expect } from 'vitest';
import {
  addingBitmap,
  clearingBitmap,
  removingBitmap,
} from '../../src/block/bitmap/bitmap-changes.js';
import type { InternalSnapshots } from '../../src/block/block-driver.js';
import { reopenNodes } from '../../src/block/reopen.js';
import { applyChanges, type Change } from '../../src/block/transaction.js';
import { RESIZER, type UsedNode } from '../unit/block/driver/test-graph.js';
import type { PeerShell } from './peer-shell.js';
import { KIB, MIB, openImage } from './qcow2.js';
import { ImageModel, type Random } from './qcow2-model.js';
import { type MadeImage, type Parameters, randomNodeOptions } from './qcow2-parameters.js';

const SECTOR = 512;
/** The largest disk that the model follows, bytes. */
const SIZE_MAX = 6 * MIB;

export interface Moment {
  readonly name: string;
  readonly content: Buffer;
}

interface Bitmap {
  readonly granularity: number;
  /** Sectors that were written since it was made or emptied: 1 for each. */
  marks: Buffer;
  /** While the image was open here. */
  sha256: string | undefined;
}

export class ImageLife {
  readonly #random: Random;
  readonly #parameters: Parameters;
  readonly path: string;
  readonly model: ImageModel;
  readonly moments: Moment[] = [];
  readonly #bitmaps = new Map<string, Bitmap>();
  #names = 0;
  #nodeOptions: object = {};
  /** What was done, for who looks for the cause of a failure. */
  readonly story: string[] = [];

  constructor(random: Random, parameters: Parameters, { path, content }: MadeImage) {
    this.#random = random;
    this.#parameters = parameters;
    this.path = path;
    const discards = parameters.version === 3 || parameters.below.length === 0;
    this.model = new ImageModel({
      ...{ random, content, clusterSize: parameters.clusterSize, discards },
      compresses: parameters.dataFile === 'none' && parameters.refcountBits >= 16,
      changed: (offset, length) => this.#mark(offset, length),
      story: this.story,
    });
  }

  /** Opens the image, does so many steps, closes it. */
  async round(steps: number): Promise<void> {
    const used = await this.#open();
    try {
      this.#checkBitmaps(used);
      for (let step = 0; step < steps; step++) await this.#step(used);
      await this.model.compare(used.node);
      this.#checkBitmaps(used);
      for (const [name, bitmap] of this.#bitmaps)
        bitmap.sha256 = used.node.bitmaps.get(name)?.sha256();
    } finally {
      await used.close();
    }
  }

  /** The same kind of things, done by qemu-io. */
  async peersTurn(shell: PeerShell): Promise<void> {
    const commands: string[] = [];
    const { clusterSize } = this.#parameters;
    const { content } = this.model;
    for (let nth = 1 + this.#random.below(4); nth > 0; nth--) {
      const kind = this.#random.below(4);
      // Compressed clusters come last: after them qemu-io 7.2 may put two things in one cluster.
      const whole = nth === 1 && kind === 0 && this.#canCompress();
      const unit = whole ? clusterSize : SECTOR;
      const at = this.#random.below(Math.ceil(content.byteLength / unit)) * unit;
      const wanted = unit * (1 + this.#random.below(whole ? 6 : 60));
      const length = Math.min(wanted, content.byteLength - at);
      const byte = kind === 1 ? 0 : 1 + this.#random.below(255);
      const how = kind === 1 ? '-z' : `${whole ? '-c ' : ''}-P ${byte}`;
      // QEMU compresses only into clusters that are not there.
      if (whole) commands.push(`discard ${at} ${length}`);
      commands.push(`write ${how} ${at} ${length}`);
      content.fill(byte, at, at + length);
      this.#mark(at, length);
    }
    for (const bitmap of this.#bitmaps.values()) bitmap.sha256 = undefined;
    this.story.push(`qemu-io: ${commands.join('; ')}`);
    const args = commands.flatMap((command) => ['-c', command]);
    await shell.expect('qemu-io', ['-f', 'qcow2', '-d', 'unmap', ...args, this.path]);
  }

  #canCompress(): boolean {
    const { clusterSize, dataFile, version, below, refcountBits } = this.#parameters;
    // Several compressed clusters share one of the file, and each snapshot counts them all.
    const roomy = dataFile === 'none' && refcountBits >= 8;
    return roomy && clusterSize <= 64 * KIB && (version === 3 || below.length === 0);
  }

  async #open(): Promise<UsedNode> {
    this.#nodeOptions = {
      'node-name': 'disk',
      ...randomNodeOptions(this.#random, this.#parameters),
    };
    this.story.push(`open ${JSON.stringify(this.#nodeOptions)}`);
    return openImage(this.path, this.#nodeOptions, RESIZER);
  }

  async #step(used: UsedNode): Promise<void> {
    const kind = this.#random.below(100);
    if (kind < 78) return this.model.step(used.node);
    if (kind < 86) {
      this.story.push('flush');
      await used.node.flush();
    } else if (kind < 90) await this.#resize(used);
    else if (kind < 94) await this.#snapshot(used);
    else if (kind < 97) await this.#bitmap(used);
    else await this.#reopen(used);
  }

  async #resize({ node }: UsedNode): Promise<void> {
    const { version, below, dataFile } = this.#parameters;
    if (version === 2 && (below.length > 0 || this.moments.length > 0)) return;
    const now = this.model.content.byteLength;
    const changed = Math.max(now + (this.#random.below(600) - 300) * SECTOR, 16 * KIB);
    const size = Math.min(changed, SIZE_MAX);
    const mode =
      size <= now || below.length > 0 || this.moments.length > 0
        ? 'off'
        : this.#random.pick(['off', 'off', 'metadata', 'falloc', 'full'] as const);
    const preallocation = dataFile === 'raw' && mode === 'off' && size > now ? 'metadata' : mode;
    this.story.push(`resize ${size} ${preallocation}`);
    await node.truncate(size, { exact: this.#random.below(2) === 0, preallocation });
    this.model.resize(size);
    for (const bitmap of this.#bitmaps.values()) {
      const marks = Buffer.alloc(Math.ceil(size / SECTOR));
      bitmap.marks.copy(marks);
      bitmap.marks = marks;
    }
  }

  #snapshots({ node }: UsedNode): InternalSnapshots {
    const { snapshots } = node.driver;
    if (snapshots === undefined) throw new Error('the driver has no snapshots');
    return snapshots;
  }

  async #snapshot(used: UsedNode): Promise<void> {
    const { dataFile, refcountBits } = this.#parameters;
    if (dataFile !== 'none' || refcountBits < 4) return;
    const snapshots = this.#snapshots(used);
    const wanted = this.#random.below(5);
    if (this.moments.length === 0 || (wanted < 2 && this.moments.length < 6)) {
      this.#names++;
      const name = `s${this.#names}`;
      this.story.push(`snapshot ${name}`);
      await snapshots.create({ name, dateSeconds: 1_700_000_000, dateNanoseconds: 0 });
      this.moments.push({ name, content: Buffer.from(this.model.content) });
      return;
    }
    const nth = this.#random.below(this.moments.length);
    const moment = this.moments[nth];
    if (moment === undefined) return;
    const found = (await snapshots.list()).find(({ name }) => name === moment.name);
    if (found === undefined) throw new Error(`snapshot ${moment.name} is not in the list`);
    if (wanted < 4) {
      this.story.push(`delete snapshot ${moment.name}`);
      await snapshots.delete(found);
      this.moments.splice(nth, 1);
    } else if (used.node.bitmaps.size === 0) {
      this.story.push(`apply snapshot ${moment.name}`);
      await snapshots.apply(found.id);
      this.model.resize(moment.content.byteLength);
      moment.content.copy(this.model.content);
    }
  }

  async #bitmap({ graph }: UsedNode): Promise<void> {
    if (this.#parameters.version === 2) return;
    const change = (one: Change): Promise<void> => applyChanges([one]);
    const [name, bitmap] =
      [...this.#bitmaps][this.#random.below(Math.max(this.#bitmaps.size, 1))] ?? [];
    const wanted = this.#random.below(4);
    if (name === undefined || bitmap === undefined || (wanted < 2 && this.#bitmaps.size < 4)) {
      this.#names++;
      const granularity = this.#random.pick([512, 4 * KIB, 64 * KIB, 1 * MIB]);
      const added = `b${this.#names}`;
      this.story.push(`bitmap ${added} ${granularity}`);
      await change(
        addingBitmap(graph, { node: 'disk', name: added, granularity, persistent: true }),
      );
      this.#bitmaps.set(added, { granularity, marks: this.#noMarks(), sha256: undefined });
    } else if (wanted === 2) {
      this.story.push(`clear bitmap ${name}`);
      await change(clearingBitmap(graph, { node: 'disk', name }));
      bitmap.marks = this.#noMarks();
    } else {
      this.story.push(`remove bitmap ${name}`);
      await change(removingBitmap(graph, { node: 'disk', name }));
      this.#bitmaps.delete(name);
    }
  }

  #noMarks(): Buffer {
    return Buffer.alloc(Math.ceil(this.model.content.byteLength / SECTOR));
  }

  #mark(offset: number, length: number): void {
    if (length === 0) return;
    const first = Math.floor(offset / SECTOR);
    const end = Math.ceil((offset + length) / SECTOR);
    for (const { marks } of this.#bitmaps.values()) marks.fill(1, first, end);
  }

  /** They are those that were left, and each has at least what it must have. */
  #checkBitmaps({ node }: UsedNode): void {
    expect([...node.bitmaps.keys()].sort()).toEqual([...this.#bitmaps.keys()].sort());
    for (const [name, { marks, granularity, sha256 }] of this.#bitmaps) {
      const bitmap = node.bitmaps.get(name);
      if (bitmap === undefined) throw new Error(`bitmap ${name} is gone`);
      expect({ name, inconsistent: bitmap.inconsistent }).toEqual({ name, inconsistent: false });
      if (sha256 !== undefined)
        expect({ name, sha: bitmap.sha256() }).toEqual({ name, sha: sha256 });
      for (let at = marks.indexOf(1); at >= 0; at = marks.indexOf(1, at)) {
        const dirty = bitmap.isDirty(at * SECTOR);
        if (!dirty) expect({ name, at: at * SECTOR, dirty }).toEqual({ name, at, dirty: true });
        at = (Math.floor((at * SECTOR) / granularity) + 1) * (granularity / SECTOR);
      }
    }
    for (const bitmap of this.#bitmaps.values()) bitmap.sha256 = undefined;
  }

  /** As blockdev-reopen does it. */
  async #reopen({ graph, node }: UsedNode): Promise<void> {
    const children = Object.fromEntries(
      [...node.children].map(([key, edge]) => [key, edge.node.name]),
    );
    const options = randomNodeOptions(this.#random, this.#parameters);
    this.story.push(`reopen ${JSON.stringify(options)}`);
    const common = { driver: 'qcow2', 'node-name': 'disk', discard: 'unmap', ...children };
    await reopenNodes(graph, [{ ...common, ...options }]);
  }

  /** Names of the bitmaps that the image has. */
  get bitmaps(): string[] {
    return [...this.#bitmaps.keys()];
  }
}
