// SPDX-License-Identifier: MIT
/** Mirrors that copy what a bitmap marks, and what becomes of its marks. */
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BlockBackend } from '../../../src/block/backend.js';
import { addBitmap } from '../../../src/block/bitmap/node-bitmaps.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { Job } from '../../../src/job/job.js';
import { JobRegistry } from '../../../src/job/job-registry.js';
import { JobTransaction } from '../../../src/job/job-transaction.js';
import { MirrorJob } from '../../../src/job/mirror.js';
import type { MirrorOptions } from '../../../src/job/mirror-options.js';
import type { BitmapSyncMode } from '../../../src/job/sync-bitmap.js';
import { patternBytes } from '../../support/images.js';
import { memoryGraph } from '../../support/memory-driver.js';

const GRANULE = 64 * 1024;
const GRANULES = 16;
const SIZE = GRANULES * GRANULE;

/** A disk and a copy that are equal, and a bitmap that marks what is written from then on. */
async function makeBench() {
  const { graph, driverOf, add } = memoryGraph();
  const source = await add('source', SIZE);
  const target = await add('target', SIZE);
  const disk = driverOf(source);
  const copy = driverOf(target);
  patternBytes(SIZE, 4).copy(disk.data);
  patternBytes(SIZE, 4).copy(copy.data);
  const guest = new BlockBackend("export 'guest'");
  const wanted = { taken: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };
  await graph.attach(guest, source, wanted);
  addBitmap(source, { name: 'b' });
  const registry = new JobRegistry();
  const bitmap = () => {
    const found = source.bitmaps.get('b');
    if (found === undefined) throw new Error('the bitmap is gone');
    return found;
  };
  const mirror = (options: Partial<MirrorOptions> = {}): Promise<MirrorJob> => {
    const base = { id: 'j', source, target, sync: 'bitmap', granularity: GRANULE } as const;
    const how = { windowLength: 4 * GRANULE, unmap: true, autoFinalize: true } as const;
    return registry.run('j', () =>
      MirrorJob.create(graph, { ...base, ...how, bitmap: bitmap(), ...options }, registry),
    );
  };
  return { graph, source, target, disk, copy, guest, registry, bitmap, mirror };
}
type Bench = Awaited<ReturnType<typeof makeBench>>;

const fill = (granule: number, value: number): [number, Buffer] => [
  granule * GRANULE,
  Buffer.alloc(GRANULE, value),
];

/** Granules that the bitmap marks. */
function marks({ bitmap }: Bench): number[] {
  const all = Array.from({ length: GRANULES }, (_, granule) => granule);
  return all.filter((granule) => bitmap().isDirty(granule * GRANULE));
}

async function untilReady(job: MirrorJob): Promise<void> {
  while (!job.ready && job.error === undefined) await turn();
}

/** Does its work, and then can't make it take effect. */
class FailingJob extends Job {
  override readonly type = 'failing';
  protected override async run(): Promise<void> {}
  protected override async prepare(): Promise<void> {
    throw new Error('it can not be done');
  }
}

describe('mirror with a bitmap', () => {
  it('copies only what is marked', async () => {
    const bench = await makeBench();
    const { guest, copy, disk, mirror } = bench;
    await guest.write(...fill(3, 1));
    copy.data.fill(0xee, 8 * GRANULE, 9 * GRANULE); // differs, but is not marked
    const job = await mirror();
    await untilReady(job);
    await guest.write(...fill(5, 2));
    job.cancel({ force: false });
    await job.concluded;
    expect(job.error).toBeUndefined();
    const end = 8 * GRANULE;
    expect(copy.data.subarray(0, end).equals(disk.data.subarray(0, end))).toBe(true);
    expect(copy.data[8 * GRANULE]).toBe(0xee);
  });

  it.each<[BitmapSyncMode, number[]]>([
    ['on-success', [9]],
    ['always', [9]],
    ['never', [3, 5, 9]],
  ])('leaves, after success with mode %s, the marks %j', async (bitmapMode, expected) => {
    const bench = await makeBench();
    const { guest, mirror, bitmap } = bench;
    await guest.write(...fill(3, 1));
    const job = await mirror({ bitmapMode });
    await untilReady(job);
    expect(bitmap().busy).toBe(true);
    await guest.write(...fill(5, 2));
    job.cancel({ force: false });
    await job.concluded;
    await guest.write(...fill(9, 3));
    expect(marks(bench)).toEqual(expected);
    expect([bitmap().busy, bitmap().recording]).toEqual([false, true]);
  });

  it('keeps all marks when it has done its work, but another job of its transaction fails', async () => {
    const bench = await makeBench();
    const { guest, mirror, registry } = bench;
    await guest.write(...fill(3, 1));
    const transaction = new JobTransaction();
    const job = await mirror({ transaction });
    const other = new FailingJob({ id: 'other', transaction }, registry);
    other.announce();
    other.start();
    await untilReady(job);
    job.cancel({ force: false });
    await Promise.all([job.concluded, other.concluded]);
    await guest.write(...fill(9, 3));
    expect(job.error?.message).toBe('Operation canceled');
    expect(marks(bench)).toEqual([3, 9]);
  });

  it('refuses a bitmap that something else uses, and changes nothing', async () => {
    const { mirror, bitmap, source, graph, target, guest } = await makeBench();
    bitmap().createSuccessor();
    const before = { nodes: graph.nodes.length, trackers: [...source.trackers] };
    await expect(mirror()).rejects.toThrow("Bitmap 'b' is currently in use by another operation");
    expect({ nodes: graph.nodes.length, trackers: source.trackers }).toEqual(before);
    bitmap().reclaim();
    const job = await mirror();
    await untilReady(job);
    job.complete();
    await job.concluded;
    expect(guest.root.node).toBe(target);
    expect(source.trackers.length).toBe(1);
  });

  it('marks each difference when the target fails, whatever the mode', async () => {
    const schedule = fc.array(fc.tuple(fc.nat(GRANULES - 1), fc.nat(6)), { maxLength: 20 });
    const mode = fc.constantFrom<BitmapSyncMode>('on-success', 'always', 'never');
    const run = async (bitmapMode: BitmapSyncMode, failAt: number, steps: [number, number][]) => {
      const bench = await makeBench();
      const { guest, copy, disk, mirror } = bench;
      for (const [granule] of steps) await guest.write(...fill(granule, 0x21));
      copy.delay = () => turn();
      const job = await mirror({ bitmapMode, granularity: 512 });
      for (const [i, [granule, pause]] of steps.entries()) {
        if (i === failAt) copy.fail.write = Object.assign(new Error('gone'), { code: 'EIO' });
        await guest.write(granule * GRANULE + 512 * i, Buffer.alloc(512, i + 1));
        for (let n = 0; n < pause; n++) await turn();
      }
      if (job.state === 'running' || job.state === 'ready') job.cancel({ force: failAt % 2 === 0 });
      await job.concluded;
      for (let granule = 0; granule < GRANULES; granule++) {
        const [from, to] = [granule * GRANULE, (granule + 1) * GRANULE];
        const same = disk.data.subarray(from, to).equals(copy.data.subarray(from, to));
        expect(same || bench.bitmap().isDirty(from)).toBe(true);
      }
      expect([bench.bitmap().busy, bench.bitmap().recording]).toEqual([false, true]);
      expect([guest.root.node, bench.source.trackers.length]).toEqual([bench.source, 1]);
    };
    await fc.assert(fc.asyncProperty(mode, fc.nat(20), schedule, run), { numRuns: 80 });
  });
});

describe('mirror into a target that is zero', () => {
  it('writes no zeroes at the start, and all that come later', async () => {
    const { graph, driverOf, add } = memoryGraph();
    const source = await add('source', SIZE);
    const target = await add('target', SIZE);
    driverOf(source).data.fill(7, 0, GRANULE);
    const guest = new BlockBackend("export 'guest'");
    const wanted = { taken: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };
    await graph.attach(guest, source, wanted);
    const registry = new JobRegistry();
    const job = await registry.run('j', () =>
      MirrorJob.create(
        graph,
        {
          ...{ id: 'j', source, target, sync: 'full', targetIsZero: true },
          ...{ granularity: GRANULE, windowLength: GRANULE, unmap: true },
        },
        registry,
      ),
    );
    await untilReady(job);
    await guest.writeZeroes(0, 512);
    job.complete();
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(driverOf(target).data.equals(driverOf(source).data)).toBe(true);
  });
});
