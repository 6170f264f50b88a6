// SPDX-License-Identifier: MIT
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BlockBackend } from '../../../src/block/backend.js';
import { addBitmap } from '../../../src/block/bitmap/node-bitmaps.js';
import { drained } from '../../../src/block/drain.js';
import type { BlockGraph } from '../../../src/block/graph.js';
import type { BlockNode } from '../../../src/block/node.js';
import { openNode } from '../../../src/block/open-node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { BackupJob, type BackupOptions } from '../../../src/job/backup.js';
import { JobRegistry } from '../../../src/job/job-registry.js';
import { patternBytes } from '../../support/images.js';
import { reached } from '../../support/jobs.js';
import { type MemoryDriver, memoryGraph } from '../../support/memory-driver.js';

const KIB = 1024;
const CLUSTER = 64 * KIB;
const SIZE = 16 * CLUSTER + 3 * KIB;

interface Bench {
  readonly graph: BlockGraph;
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly disk: MemoryDriver;
  readonly copy: MemoryDriver;
  /** The disk as it was at the start. */
  readonly old: Buffer;
  readonly guest: BlockBackend;
  readonly registry: JobRegistry;
  /** States and ends of the job, in order. */
  readonly events: string[];
  backup(options?: Partial<BackupOptions>): Promise<BackupJob>;
}

async function makeBench(): Promise<Bench> {
  const { graph, driverOf, add } = memoryGraph();
  const source = await add('source', SIZE, { discard: 'unmap' });
  const target = await add('target', SIZE);
  const disk = driverOf(source);
  patternBytes(SIZE, 1).copy(disk.data);
  disk.data.fill(0, 5 * CLUSTER, 9 * CLUSTER);
  driverOf(target).data.fill(0xee);
  const guest = new BlockBackend("export 'guest'");
  await graph.attach(guest, source, {
    taken: PERM_CONSISTENT_READ | PERM_WRITE,
    shared: PERM_ALL,
  });
  const registry = new JobRegistry();
  const events: string[] = [];
  registry.listen({
    stateChanged: (job) => events.push(job.state),
    finished: (job) => events.push(job.cancelled ? 'CANCELLED' : 'COMPLETED'),
    ioError: (_job, operation, action) => events.push(`${operation} ${action}`),
  });
  return {
    graph,
    source,
    target,
    disk,
    copy: driverOf(target),
    old: Buffer.from(disk.data),
    guest,
    registry,
    events,
    backup: (options = {}) =>
      registry.run('j', () =>
        BackupJob.create(
          graph,
          {
            id: 'j',
            source,
            target,
            sync: 'full',
            bitmapMode: 'on-success',
            clusterLength: CLUSTER,
            requestsMax: 64,
            chunkLengthMax: 0,
            ...options,
          },
          registry,
        ),
      ),
  };
}

/** Everything is as before a job: no filter, no user of the target, no tracker left over. */
function expectNothingLeft({ graph, source, target, guest }: Bench): void {
  expect(graph.nodes.map(({ name }) => name)).toEqual(['source', 'target']);
  expect(guest.root.node).toBe(source);
  expect([target.parents.size, source.parents.size]).toEqual([0, 1]);
  expect([source.quiesced, target.quiesced]).toEqual([false, false]);
  expect([source.inFlight.count, target.inFlight.count]).toEqual([0, 0]);
}

describe('backup', () => {
  it('copies all, tells what it does, and leaves nothing behind', async () => {
    const bench = await makeBench();
    const job = await bench.backup();
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(bench.copy.data.equals(bench.old)).toBe(true);
    expect(bench.events).toEqual(
      'created running waiting pending COMPLETED concluded null'.split(' '),
    );
    expect([job.progressCurrent, job.progressTotal]).toEqual([SIZE, SIZE]);
    expect(bench.copy.flushes).toBe(1);
    expectNothingLeft(bench);
  });

  it('is paused while its nodes are drained, from the start if need be', async () => {
    const bench = await makeBench();
    const job = await drained([bench.source], async () => {
      const made = await bench.backup();
      await sleep(1);
      expect(bench.copy.calls).toEqual([]);
      return made;
    });
    await job.concluded;
    expect(bench.events).toEqual(
      'created running paused running waiting pending COMPLETED concluded null'.split(' '),
    );
    expect(bench.copy.data.equals(bench.old)).toBe(true);
  });

  it('has the disk as it was at its start, whatever is written meanwhile, in any order', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(SIZE - 1), fc.integer({ min: 1, max: 200_000 }), fc.nat(2)), {
          minLength: 20,
          maxLength: 60,
        }),
        fc.constantFrom(0, 2_000_000),
        fc.constantFrom(1, 3, 64),
        async (requests, speed, requestsMax) => {
          const bench = await makeBench();
          const { disk, copy, guest, old } = bench;
          const lag = [0, 1, 0, 2, 0, 0, 3];
          let turn = 0;
          const delay = async (): Promise<void> => {
            for (let n = lag[turn++ % lag.length] ?? 0; n > 0; n--) await sleep(0);
          };
          disk.delay = delay;
          copy.delay = delay;
          disk.statusDelay = delay;
          const job = await bench.backup({ speed, requestsMax });
          const writes: (void | Promise<void>)[] = [];
          for (const [offset, wanted, kind] of requests) {
            const length = Math.min(wanted, SIZE - offset);
            if (kind === 0) writes.push(guest.write(offset, Buffer.alloc(length, 0xa5)));
            else if (kind === 1) writes.push(guest.writeZeroes(offset, length));
            else writes.push(guest.discard(offset, length));
            if (writes.length % 4 === 0) await delay();
          }
          await Promise.all(writes);
          if (job.state === 'running') job.setSpeed(0);
          await job.concluded;
          expect(job.error).toBeUndefined();
          expect(copy.data.equals(old)).toBe(true);
          expect(job.progressCurrent).toBe(job.progressTotal);
          expectNothingLeft(bench);
        },
      ),
      { numRuns: 40 },
    );
  });

  it('leaves alone what a write has saved while it asked for the status there', async () => {
    const bench = await makeBench();
    const { disk, copy, guest, old } = bench;
    let asked = 0;
    disk.statusDelay = async () => {
      asked++;
      if (asked > 1) return;
      await guest.write(CLUSTER + 1, Buffer.alloc(2 * CLUSTER, 0xa5));
    };
    const job = await bench.backup();
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(asked).toBeGreaterThan(0);
    expect(disk.data[2 * CLUSTER]).toBe(0xa5);
    expect(copy.data.equals(old)).toBe(true);
    expect(job.progressCurrent).toBe(SIZE);
  });

  it('saves only what is overwritten with sync none, until it is cancelled', async () => {
    const bench = await makeBench();
    const job = await bench.backup({ sync: 'none' });
    await bench.guest.write(2 * CLUSTER, Buffer.alloc(10, 1));
    expect(bench.copy.data.subarray(2 * CLUSTER, 3 * CLUSTER)).toEqual(
      bench.old.subarray(2 * CLUSTER, 3 * CLUSTER),
    );
    expect(bench.copy.data.subarray(0, 2 * CLUSTER).every((byte) => byte === 0xee)).toBe(true);
    expect([job.progressCurrent, job.progressTotal]).toEqual([CLUSTER, SIZE]);
    job.cancel({ force: false });
    await job.concluded;
    expect(bench.events).toEqual('created running aborting CANCELLED concluded null'.split(' '));
    expectNothingLeft(bench);
  });

  it('copies what a bitmap marks, and the bitmap then marks what came after its start', async () => {
    const bench = await makeBench();
    const bitmap = addBitmap(bench.source, { name: 'b' });
    await bench.guest.write(3 * CLUSTER, Buffer.alloc(CLUSTER + 1, 7));
    const then = Buffer.from(bench.disk.data);
    const job = await bench.backup({ sync: 'bitmap', bitmap, speed: 1 });
    expect([bitmap.busy, bitmap.count]).toEqual([true, 2 * CLUSTER]);
    await bench.guest.write(10 * CLUSTER, Buffer.alloc(1, 8));
    await bench.guest.write(4 * CLUSTER, Buffer.alloc(1, 9));
    await job.concluded;
    const marked = [3 * CLUSTER, 5 * CLUSTER] as const;
    expect(bench.copy.data.subarray(...marked).equals(then.subarray(...marked))).toBe(true);
    expect(bench.copy.data.subarray(5 * CLUSTER).every((byte) => byte === 0xee)).toBe(true);
    const after = bench.source.bitmaps.get('b');
    expect([after?.count, after?.busy, after?.recording]).toEqual([2 * CLUSTER, false, true]);
    expect([after?.isDirty(4 * CLUSTER), after?.isDirty(3 * CLUSTER)]).toEqual([true, false]);
    expect([job.progressCurrent, job.progressTotal]).toEqual([2 * CLUSTER, 2 * CLUSTER]);
    expect(bench.source.trackers).toEqual([after]);
  });

  it.each([
    ['on-success', 'done', 1],
    ['never', 'done', 3],
    ['always', 'done', 1],
    ['on-success', 'cancelled', 3],
    ['never', 'cancelled', 3],
    ['always', 'cancelled', 3],
  ] as const)('with bitmap mode %s, %s, leaves %i clusters marked', async (mode, end, clusters) => {
    const bench = await makeBench();
    const bitmap = addBitmap(bench.source, { name: 'b' });
    await bench.guest.write(0, Buffer.alloc(2 * CLUSTER, 7));
    const job = await bench.backup({
      sync: 'bitmap',
      bitmap,
      bitmapMode: mode,
      autoFinalize: false,
      speed: end === 'cancelled' ? 1 : 0,
    });
    await bench.guest.write(12 * CLUSTER, Buffer.alloc(1, 8));
    if (end === 'cancelled') job.cancel({ force: true });
    else {
      await reached(bench.registry, job, 'pending');
      await job.finalize();
    }
    await job.concluded;
    // Cancelled at a byte a second, one cluster may have been copied.
    const count = (bench.source.bitmaps.get('b')?.count ?? 0) / CLUSTER;
    if (mode === 'always' && end === 'cancelled') expect([2, 3]).toContain(count);
    else expect(count).toBe(clusters);
    expect(bench.source.bitmaps.get('b')?.busy).toBe(false);
    expectNothingLeft(bench);
  });

  it('makes a bitmap start anew with a full backup', async () => {
    const bench = await makeBench();
    const bitmap = addBitmap(bench.source, { name: 'b' });
    await bench.guest.write(0, Buffer.alloc(2 * CLUSTER, 7));
    const job = await bench.backup({ bitmap });
    await job.concluded;
    expect(bench.source.bitmaps.get('b')?.count).toBe(0);
    expect(bench.copy.data.equals(bench.disk.data)).toBe(true);
  });

  it('fails with its target, hands its bitmap back, and disturbs nobody', async () => {
    const bench = await makeBench();
    const bitmap = addBitmap(bench.source, { name: 'b' });
    await bench.guest.write(0, Buffer.alloc(CLUSTER, 7));
    bench.copy.fail.write = new Error('no more');
    const job = await bench.backup({ sync: 'bitmap', bitmap, autoDismiss: false });
    await job.concluded;
    expect(job.error?.message).toBe('no more');
    expect(bench.events.join(', ')).toBe(
      'created, running, write report, aborting, COMPLETED, concluded',
    );
    await bench.guest.write(5 * CLUSTER, Buffer.alloc(1, 1));
    expect(bench.source.bitmaps.get('b')?.count).toBe(2 * CLUSTER);
    expectNothingLeft(bench);
  });

  it('stops and goes on, or ignores, as its error policy says', async () => {
    const bench = await makeBench();
    const error = Object.assign(new Error('full'), { code: 'ENOSPC' });
    bench.copy.fail.write = error;
    const job = await bench.backup({ onTargetError: 'enospc' });
    await reached(bench.registry, job, 'paused');
    expect(job.ioStatus).toBe('nospace');
    delete bench.copy.fail.write;
    job.resume();
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(bench.copy.data.equals(bench.old)).toBe(true);
    bench.disk.fail.read = new Error('unreadable');
    const second = await bench.backup({ onSourceError: 'ignore' });
    await sleep(10);
    delete bench.disk.fail.read;
    await second.concluded;
    expect(second.error).toBeUndefined();
  });

  it('lets writes go that wait for a dead target when it is cancelled', async () => {
    const bench = await makeBench();
    bench.copy.delay = () => new Promise(() => {});
    const job = await bench.backup({ sync: 'none' });
    const writing = Promise.resolve(bench.guest.write(0, Buffer.alloc(512, 7)));
    await sleep(1);
    job.cancel({ force: true });
    await writing;
    expect(bench.disk.data[0]).toBe(7);
  });

  it('fails when a write breaks its snapshot, which the writer does not notice', async () => {
    const bench = await makeBench();
    const job = await bench.backup({ sync: 'none', onCbwError: 'break-snapshot' });
    bench.copy.fail.write = new Error('gone');
    await bench.guest.write(0, Buffer.alloc(512, 7));
    await job.concluded;
    expect(job.error?.message).toBe('gone');
    expectNothingLeft(bench);
  });

  it('ends when a write breaks its snapshot while the target says nothing', async () => {
    const bench = await makeBench();
    const waiting = new Set<(error: Error) => void>();
    bench.copy.delay = () => new Promise((_, reject) => waiting.add(reject));
    const cancelInFlight = (): void => waiting.forEach((reject) => void reject(new Error('over')));
    Object.assign(bench.copy, { cancelInFlight });
    const job = await bench.backup({ sync: 'full', onCbwError: 'break-snapshot', cbwTimeoutMs: 1 });
    await bench.guest.write(0, Buffer.alloc(512, 7));
    await job.concluded;
    expect(job.error?.message).toContain('saving the old content before a write took more than');
    expectNothingLeft(bench);
  });

  it.each(['paused', 'pending', 'created'] as const)('is cancelled when %s', async (state) => {
    const bench = await makeBench();
    const bitmap = addBitmap(bench.source, { name: 'b' });
    await bench.guest.write(0, Buffer.alloc(CLUSTER, 7));
    const options = { bitmap, sync: 'bitmap', speed: state === 'paused' ? 1 : 0 } as const;
    if (state === 'created') {
      const job = await bench.registry.create('j', () =>
        BackupJob.create(
          bench.graph,
          {
            ...{ id: 'j', source: bench.source, target: bench.target, clusterLength: CLUSTER },
            ...{ bitmapMode: 'always', requestsMax: 64, chunkLengthMax: 0 },
            ...options,
          },
          bench.registry,
        ),
      );
      await job.abandon();
      expect(bench.events).toEqual(['created', 'aborting', 'concluded', 'null']);
    } else {
      const job = await bench.backup({ ...options, autoFinalize: false });
      if (state === 'paused') job.pause();
      await reached(bench.registry, job, state);
      job.cancel({ force: true });
      await job.concluded;
      expect(bench.events.slice(-3)).toEqual(['CANCELLED', 'concluded', 'null']);
    }
    expect(bench.source.bitmaps.get('b')?.count).toBe(CLUSTER);
    expect(bench.source.bitmaps.get('b')?.busy).toBe(false);
    expectNothingLeft(bench);
  });

  it('runs beside another of the same disk, each with its own point in time', async () => {
    const bench = await makeBench();
    const third = await memoryTarget(bench);
    const first = await bench.backup({ speed: 1 });
    await bench.guest.write(0, Buffer.alloc(CLUSTER, 1));
    const middle = Buffer.from(bench.disk.data);
    const second = await bench.registry.run('k', () =>
      BackupJob.create(
        bench.graph,
        {
          ...{ id: 'k', source: bench.source, target: third.node, sync: 'full', speed: 1 },
          ...{ bitmapMode: 'on-success', clusterLength: CLUSTER },
          ...{ requestsMax: 64, chunkLengthMax: 0 },
        },
        bench.registry,
      ),
    );
    await bench.guest.write(3 * CLUSTER, Buffer.alloc(8 * CLUSTER, 2));
    first.setSpeed(0);
    await first.concluded;
    await bench.guest.write(12 * CLUSTER, Buffer.alloc(CLUSTER, 3));
    second.setSpeed(0);
    await second.concluded;
    expect(bench.copy.data.equals(bench.old)).toBe(true);
    expect(third.driver.data.equals(middle)).toBe(true);
  });

  it('refuses itself, other sizes and requests below a cluster, and changes nothing then', async () => {
    const bench = await makeBench();
    const bitmap = addBitmap(bench.source, { name: 'b' });
    await expect(bench.backup({ target: bench.source })).rejects.toThrow(
      'Source and target cannot be the same',
    );
    await expect(bench.backup({ chunkLengthMax: 4096 })).rejects.toThrow(
      'Required max-chunk (4096) is less than backup cluster size (65536)',
    );
    const { node } = await memoryTarget(bench, 512);
    await expect(bench.backup({ target: node })).rejects.toThrow(
      'Source and target image have different sizes',
    );
    await bench.graph.remove('third');
    await expect(bench.backup({ bitmap, filterNodeName: 'target' })).rejects.toThrow(
      "Duplicate nodes with node-name='target'",
    );
    expect(bitmap.busy).toBe(false);
    expect(bench.events).toEqual([]);
    expectNothingLeft(bench);
  });
});

/** One more node like the target. */
async function memoryTarget(
  { graph, copy }: Bench,
  size = SIZE,
): Promise<{ node: BlockNode; driver: MemoryDriver }> {
  const node = await openNode(
    graph,
    { driver: 'memory', 'node-name': 'third', size },
    { monitorOwned: true },
  );
  return { node, driver: node.driver as typeof copy };
}
