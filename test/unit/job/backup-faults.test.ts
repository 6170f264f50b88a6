// SPDX-License-Identifier: MIT
/**
 * Incremental backups under random writers, faults and verbs. Whatever happens: each place where disk
 * and copy differ is marked in the bitmap, and a job that succeeds has brought the disk as it was.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.js';
import { BlockBackend } from '../../../src/block/backend.js';
import { addBitmap } from '../../../src/block/bitmap/node-bitmaps.js';
import { drained } from '../../../src/block/drain.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { BackupJob } from '../../../src/job/backup.js';
import type { Job } from '../../../src/job/job.js';
import { JobRegistry } from '../../../src/job/job-registry.js';
import type { BitmapSyncMode } from '../../../src/job/sync-bitmap.js';
import { patternBytes } from '../../support/images.js';
import { memoryGraph } from '../../support/memory-driver.js';

const CLUSTER = 64 * 1024;
const SIZE = 12 * CLUSTER + 1024;

const VERBS = [
  'pause',
  'resume',
  'cancel',
  'finalize',
  'slow',
  'fast',
  'drain',
  'target fails',
  'source fails',
  'all is well',
] as const;
type Verb = (typeof VERBS)[number];

async function makeBench() {
  const { graph, driverOf, add } = memoryGraph();
  const source = await add('source', SIZE, { discard: 'unmap' });
  const target = await add('target', SIZE);
  const disk = driverOf(source);
  const copy = driverOf(target);
  patternBytes(SIZE, 4).copy(disk.data);
  patternBytes(SIZE, 4).copy(copy.data);
  const guest = new BlockBackend("export 'guest'");
  await graph.attach(guest, source, {
    taken: PERM_CONSISTENT_READ | PERM_WRITE,
    shared: PERM_ALL,
  });
  addBitmap(source, { name: 'b' });
  const lag = [0, 1, 0, 0, 2, 0, 1];
  let turn = 0;
  const delay = async (): Promise<void> => {
    for (let n = lag[turn++ % lag.length] ?? 0; n > 0; n--) await sleep(0);
  };
  disk.delay = delay;
  copy.delay = delay;
  const registry = new JobRegistry();
  return { graph, source, target, disk, copy, guest, delay, registry };
}
type Bench = Awaited<ReturnType<typeof makeBench>>;

/** Clusters in which disk and copy differ, and the bitmap does not say so. */
function lost({ source, disk, copy }: Bench): number[] {
  const bitmap = source.bitmaps.get('b');
  const found: number[] = [];
  for (let at = 0; at < SIZE; at += CLUSTER) {
    const end = Math.min(at + CLUSTER, SIZE);
    const equal = disk.data.subarray(at, end).equals(copy.data.subarray(at, end));
    if (!equal && bitmap?.isDirty(at) !== true) found.push(at / CLUSTER);
  }
  return found;
}

/** Says it to the job; a state in which it can't be said is fine. */
async function say(bench: Bench, job: Job, verb: Verb): Promise<void> {
  const { copy, disk, source, target } = bench;
  const failure = Object.assign(new Error('full'), { code: 'ENOSPC' });
  try {
    if (verb === 'pause') job.pause();
    else if (verb === 'resume') job.resume();
    else if (verb === 'cancel') job.cancel({ force: false });
    else if (verb === 'finalize') await job.finalize();
    else if (verb === 'slow' && job instanceof BackupJob) job.setSpeed(1_000_000);
    else if (verb === 'fast' && job instanceof BackupJob) job.setSpeed(0);
    else if (verb === 'drain') await drained([source, target], () => sleep(1));
    else if (verb === 'target fails') copy.fail.write = failure;
    else if (verb === 'source fails') disk.fail.read = failure;
    else heal(bench);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}

function heal({ copy, disk }: Bench): void {
  delete copy.fail.write;
  delete disk.fail.read;
}

/** Ends the job by whatever it takes. */
async function finish(bench: Bench, job: Job): Promise<void> {
  heal(bench);
  for (;;) {
    const over = await Promise.race([job.concluded.then(() => true), sleep(2).then(() => false)]);
    if (over) return;
    for (const verb of ['resume', 'fast', 'finalize'] as const) await say(bench, job, verb);
  }
}

const schedule = fc.array(
  fc.oneof(
    fc.record({ verb: fc.constantFrom(...VERBS) }),
    fc.record({ offset: fc.nat(SIZE - 1), length: fc.integer({ min: 1, max: 2 * CLUSTER }) }),
  ),
  { minLength: 10, maxLength: 40 },
);

async function runJob(
  bench: Bench,
  mode: BitmapSyncMode,
  policy: 'report' | 'ignore' | 'enospc',
  steps: typeof schedule extends fc.Arbitrary<infer T> ? T : never,
): Promise<void> {
  const { graph, source, target, guest, registry, delay } = bench;
  const bitmap = source.bitmaps.get('b');
  const atStart = Buffer.from(bench.disk.data);
  const job = await registry.run('j', () =>
    BackupJob.create(
      graph,
      {
        ...{ id: 'j', source, target, sync: 'bitmap', bitmap, bitmapMode: mode },
        ...{ onSourceError: policy, onTargetError: policy, autoFinalize: false },
        ...{ clusterLength: CLUSTER, requestsMax: 3, chunkLengthMax: 0 },
        ...{ onCbwError: 'break-guest-write', autoDismiss: false },
      },
      registry,
    ),
  );
  const writes: Promise<unknown>[] = [];
  for (const [i, step] of steps.entries()) {
    if ('verb' in step) await say(bench, job, step.verb);
    else {
      const data = Buffer.alloc(Math.min(step.length, SIZE - step.offset), i + 1);
      // Old content that can't be saved makes it fail, which is as it should be.
      writes.push(Promise.allSettled([(async () => guest.write(step.offset, data))()]));
    }
    await delay();
  }
  await finish(bench, job);
  await Promise.all(writes);
  if (job.error === undefined) {
    // What was copied is what was there; the rest was the same before.
    expect(bench.copy.data.equals(atStart)).toBe(true);
  }
  job.dismiss();
}

it('loses no mark and no user, whatever fails and whoever says what', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.tuple(
          fc.constantFrom<BitmapSyncMode>('on-success', 'never', 'always'),
          fc.constantFrom('report', 'ignore', 'enospc'),
          schedule,
        ),
        { minLength: 2, maxLength: 4 },
      ),
      async (jobs) => {
        const bench = await makeBench();
        for (const [mode, policy, steps] of jobs) {
          await runJob(bench, mode, policy, steps);
          expect(lost(bench)).toEqual([]);
          expect(bench.guest.root.node).toBe(bench.source);
          expect(bench.graph.nodes.length).toBe(2);
          const { busy, recording } = bench.source.bitmaps.get('b') ?? {};
          expect([busy, recording]).toEqual([false, true]);
          expect(bench.source.trackers.length).toBe(1);
        }
        // A last run brings the copy to what the disk is.
        await runJob(bench, 'on-success', 'report', [{ verb: 'fast' }]);
        expect(bench.copy.data.equals(bench.disk.data)).toBe(true);
      },
    ),
    { numRuns: 60 },
  );
});
