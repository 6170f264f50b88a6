// SPDX-License-Identifier: MIT
/** A disk, its writer and a target in this process, each of which can be slow, full, broken or gone. */
import { setImmediate as turn } from 'node:timers/promises';
import { BlockError } from '../../src/base/errors.js';
import type { MaybePromise } from '../../src/base/maybe-promise.js';
import { BlockBackend } from '../../src/block/backend.js';
import { addBitmap } from '../../src/block/bitmap/node-bitmaps.js';
import type { BlockNode } from '../../src/block/node.js';
import { openNode } from '../../src/block/open-node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../src/block/permissions.js';
import { JobRegistry } from '../../src/job/job-registry.js';
import { patternBytes } from './images.js';
import { type MemoryDriver, memoryGraph } from './memory-driver.js';

export const FAULTS = [
  'target full',
  'target broken',
  'target flush',
  'target stalled',
  'target gone',
  'source broken',
  'source stalled',
  'drain',
] as const;
export type Fault = (typeof FAULTS)[number];

/** What each request has to pass: it comes late, waits while the peer is away, or fails with it. */
class Gate {
  #late = 0;
  #closed: 'no' | 'stalled' | 'gone' | 'given up' = 'no';
  #waiting: { resolve: () => void; reject: (error: Error) => void }[] = [];

  readonly pass = async (): Promise<void> => {
    for (let turns = [0, 1, 0, 0, 2, 0, 1][this.#late++ % 7] ?? 0; turns > 0; turns--) await turn();
    if (this.#closed === 'given up') throw lost();
    if (this.#closed === 'no') return;
    await new Promise<void>((resolve, reject) => this.#waiting.push({ resolve, reject }));
  };

  /** `stalled`: a peer that is silent. `gone`: one that is waited for, until somebody gives it up. */
  close(how: 'stalled' | 'gone'): void {
    if (this.#closed === 'no') this.#closed = how;
  }

  open(): void {
    this.#closed = 'no';
    for (const { resolve } of this.#waiting.splice(0)) resolve();
  }

  giveUp(): void {
    if (this.#closed !== 'gone') return;
    this.#closed = 'given up';
    for (const { reject } of this.#waiting.splice(0)) reject(lost());
  }
}

const lost = (): BlockError => new BlockError('DF_DISCONNECTED', 'the peer is gone');
const failure = (code: string): Error =>
  Object.assign(new Error(`made to fail: ${code}`), { code });

export class FaultBench {
  /** What the writer has written and was told to be written. */
  readonly model: Buffer;
  /** Writes that were refused, with the error. */
  readonly refused: unknown[] = [];
  /** Contents of the source since `record`, oldest first. */
  readonly #history: Buffer[] = [];
  #recording = false;
  readonly #writing = new Set<{ offset: number; length: number; done: Promise<void> }>();
  #value = 0;

  private constructor(
    readonly graph: ReturnType<typeof memoryGraph>['graph'],
    readonly source: BlockNode,
    readonly target: BlockNode,
    /** Between the writer and the source. */
    readonly top: BlockNode,
    readonly disk: MemoryDriver,
    readonly copy: MemoryDriver,
    readonly guest: BlockBackend,
    readonly registry: JobRegistry,
    readonly gates: { readonly disk: Gate; readonly copy: Gate },
  ) {
    this.model = Buffer.from(disk.data);
  }

  /** @param equal the target is a copy already; else it holds other bytes */
  static async make(size: number, { equal }: { readonly equal: boolean }): Promise<FaultBench> {
    const { graph, driverOf, add } = memoryGraph();
    const source = await add('source', size, { discard: 'unmap' });
    const target = await add('target', size, { discard: 'unmap' });
    const top = await openNode(
      graph,
      { driver: 'pass', 'node-name': 'top', file: 'source', discard: 'unmap' },
      { monitorOwned: true },
    );
    const disk = driverOf(source);
    const copy = driverOf(target);
    patternBytes(size, 4).copy(disk.data);
    if (equal) disk.data.copy(copy.data);
    else copy.data.fill(0xa5);
    const guest = new BlockBackend("export 'guest'");
    const wanted = { taken: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };
    await graph.attach(guest, top, wanted);
    addBitmap(source, { name: 'b' });
    const gates = { disk: new Gate(), copy: new Gate() };
    disk.delay = gates.disk.pass;
    copy.delay = gates.copy.pass;
    Object.assign(copy, { cancelInFlight: () => gates.copy.giveUp() });
    const registry = new JobRegistry();
    const made = [disk, copy, guest, registry, gates] as const;
    const bench = new FaultBench(graph, source, target, top, ...made);
    bench.#watchSource();
    return bench;
  }

  get bitmap() {
    const bitmap = this.source.bitmaps.get('b');
    if (bitmap === undefined) throw new Error('the bitmap is gone');
    return bitmap;
  }

  /** Remembers each content of the source from now on. */
  record(): void {
    this.#recording = true;
    this.#history.push(Buffer.from(this.disk.data));
  }

  /** Whether the source was like that at some moment since `record`. */
  wasSource(content: Buffer): boolean {
    return this.#history.some((moment) => moment.equals(content));
  }

  /** Writes without waiting; leaves out what would overlap a write that is under way. */
  write(act: 'write' | 'zero' | 'discard', offset: number, length: number): Promise<void> {
    for (const other of this.#writing) {
      const apart = other.offset + other.length <= offset || offset + length <= other.offset;
      if (!apart) return other.done;
    }
    this.#value = (this.#value % 255) + 1;
    const value = act === 'write' ? this.#value : 0;
    const submit = (): MaybePromise<void> => {
      if (act === 'write') return this.guest.write(offset, Buffer.alloc(length, value));
      if (act === 'zero') return this.guest.writeZeroes(offset, length);
      return this.guest.discard(offset, length);
    };
    const done = (async () => submit())().then(
      () => {
        this.model.fill(value, offset, offset + length);
      },
      (error: unknown) => {
        this.refused.push(error);
      },
    );
    const entry = { offset, length, done };
    this.#writing.add(entry);
    return done.finally(() => this.#writing.delete(entry));
  }

  /** Waits for the writes that are under way. */
  async settled(): Promise<void> {
    await Promise.all([...this.#writing].map(({ done }) => done));
  }

  break(fault: Fault): void {
    const { disk, copy, gates } = this;
    if (fault === 'target full') copy.fail.write = failure('ENOSPC');
    else if (fault === 'target broken') copy.fail.write = failure('EIO');
    else if (fault === 'target flush') copy.fail.flush = failure('EIO');
    else if (fault === 'source broken') disk.fail.read = failure('EIO');
    else if (fault === 'source stalled') gates.disk.close('stalled');
    else gates.copy.close(fault === 'target gone' ? 'gone' : 'stalled');
  }

  heal(): void {
    const { disk, copy, gates } = this;
    for (const { fail } of [disk, copy]) {
      delete fail.read;
      delete fail.write;
      delete fail.flush;
    }
    gates.disk.open();
    gates.copy.open();
  }

  /** What the guest reads, all of the disk. */
  async readByGuest(): Promise<Buffer> {
    const buffer = Buffer.alloc(this.model.length);
    await this.guest.read(0, buffer);
    return buffer;
  }

  /** Granules in which source and target differ, without a mark in the bitmap. */
  unmarked(): number[] {
    const { bitmap, disk, copy } = this;
    const found: number[] = [];
    for (let at = 0; at < disk.size; at += bitmap.granularity) {
      const end = Math.min(at + bitmap.granularity, disk.size);
      const equal = disk.data.subarray(at, end).equals(copy.data.subarray(at, end));
      if (!equal && !bitmap.isDirty(at)) found.push(at);
    }
    return found;
  }

  /** Offsets of the granules of a length that hold a mark. */
  marks(granule: number): Set<number> {
    const found = new Set<number>();
    for (let at = 0; at < this.disk.size; at += granule) {
      if (this.bitmap.nextDirty(at, Math.min(granule, this.disk.size - at)) >= 0) found.add(at);
    }
    return found;
  }

  #watchSource(): void {
    const { disk } = this;
    for (const method of ['write', 'writeZeroes', 'discard'] as const) {
      const original = disk[method].bind(disk) as (offset: number, what: never) => unknown;
      disk[method] = (offset: number, what: Buffer | number): MaybePromise<void> => {
        const pending = original(offset, what as never) as MaybePromise<void>;
        return Promise.resolve(pending).then(() => {
          if (this.#recording) this.#history.push(Buffer.from(disk.data));
        });
      };
    }
  }
}
