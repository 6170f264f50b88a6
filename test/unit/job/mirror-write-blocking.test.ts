// SPDX-License-Identifier: MIT
/** Mirrors whose writes are done when source and target have them. */
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BlockBackend } from '../../../src/block/backend.js';
import { drained } from '../../../src/block/drain.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { JobRegistry } from '../../../src/job/job-registry.js';
import { MirrorJob } from '../../../src/job/mirror.js';
import type { MirrorOptions } from '../../../src/job/mirror-options.js';
import type { MirrorCopyMode } from '../../../src/job/mirror-writes.js';
import { patternBytes } from '../../support/images.js';
import { reached } from '../../support/jobs.js';
import { memoryGraph } from '../../support/memory-driver.js';

const GRANULE = 64 * 1024;
const GRANULES = 16;
/** Not a whole number of granules. */
const SIZE = GRANULES * GRANULE - 512;

const WRITER = { taken: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };

async function makeBench(size = SIZE) {
  const { graph, driverOf, add } = memoryGraph();
  const source = await add('source', size);
  const target = await add('target', size);
  const disk = driverOf(source);
  const copy = driverOf(target);
  patternBytes(size, 4).copy(disk.data);
  const guest = new BlockBackend("export 'guest'");
  await graph.attach(guest, source, WRITER);
  const registry = new JobRegistry();
  const mirror = (options: Partial<MirrorOptions> = {}): Promise<MirrorJob> => {
    const base = { id: 'j', source, target, sync: 'full', granularity: GRANULE } as const;
    const how = { windowLength: 4 * GRANULE, unmap: true } as const;
    return registry.run('j', () =>
      MirrorJob.create(
        graph,
        { ...base, ...how, copyMode: 'write-blocking', ...options },
        registry,
      ),
    );
  };
  return { graph, source, target, disk, copy, guest, registry, mirror };
}

/** Holds requests until it is opened. */
function gate(): { wait: () => Promise<void>; open: () => void; waiting: () => number } {
  let open = (): void => {};
  let waiting = 0;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const wait = (): Promise<void> => {
    waiting++;
    return opened;
  };
  return { wait, open, waiting: () => waiting };
}

async function turns(count: number): Promise<void> {
  for (let turnsLeft = count; turnsLeft > 0; turnsLeft--) await turn();
}

async function untilReady(job: MirrorJob): Promise<void> {
  while (!job.ready && job.error === undefined) await turn();
}

describe('mirror in the mode write-blocking', () => {
  it('has each write in both when it is done, and is actively synced', async () => {
    const { guest, disk, copy, mirror } = await makeBench();
    const job = await mirror();
    expect(job.activelySynced).toBe(false);
    await untilReady(job);
    expect(job.activelySynced).toBe(true);
    await guest.write(3 * GRANULE + 512, Buffer.alloc(1024, 1));
    expect(copy.data.equals(disk.data)).toBe(true);
    await guest.writeZeroes(5 * GRANULE, GRANULE);
    expect(copy.data.equals(disk.data)).toBe(true);
    expect(job.activelySynced).toBe(true);
    job.cancel({ force: true });
    await job.concluded;
  });

  it('acknowledges no write before the target has it', async () => {
    const { guest, disk, copy, mirror } = await makeBench();
    const job = await mirror();
    await untilReady(job);
    const { wait, open, waiting } = gate();
    copy.delay = wait;
    let done = false;
    const write = Promise.resolve(guest.write(0, Buffer.alloc(512, 1))).then(() => {
      done = true;
    });
    while (waiting() === 0) await turn();
    await turns(5);
    expect([disk.data[0], done]).toEqual([1, false]);
    copy.delay = undefined;
    open();
    await write;
    expect(copy.data[0]).toBe(1);
    job.cancel({ force: false });
    await job.concluded;
  });

  it('copies what a discard leaves', async () => {
    const { guest, source, disk, copy, mirror } = await makeBench();
    source.options = { ...source.options, discard: 'unmap' };
    const job = await mirror();
    await untilReady(job);
    await guest.discard(2 * GRANULE, GRANULE);
    job.cancel({ force: false });
    await job.concluded;
    expect(disk.data[2 * GRANULE]).toBe(0);
    expect(copy.data.equals(disk.data)).toBe(true);
  });

  it('keeps a write out of the target that the source refuses', async () => {
    const { guest, disk, copy, mirror } = await makeBench();
    const job = await mirror();
    await untilReady(job);
    disk.fail.write = new Error('no');
    await expect(
      Promise.resolve().then(() => guest.write(0, Buffer.alloc(512, 1))),
    ).rejects.toThrow('no');
    disk.fail = {};
    job.cancel({ force: false });
    await job.concluded;
    expect(copy.data.equals(disk.data)).toBe(true);
  });

  it('fails by its policy, and no guest notices, when the target does not take a write', async () => {
    const { guest, disk, copy, registry, mirror } = await makeBench();
    const errors: string[] = [];
    registry.listen({
      ioError: (_job, operation, action) => errors.push(`${operation} ${action}`),
    });
    const job = await mirror();
    await untilReady(job);
    copy.fail.write = new Error('the target is gone');
    await guest.write(0, Buffer.alloc(512, 1));
    await guest.write(GRANULE, Buffer.alloc(512, 2));
    await job.concluded;
    expect(job.error?.message).toBe('the target is gone');
    expect(errors).toEqual(['write report']);
    expect([disk.data[0], disk.data[GRANULE]]).toEqual([1, 2]);
  });

  it('is held with the policy stop, leaves the target alone meanwhile, and catches up', async () => {
    const { guest, disk, copy, registry, mirror } = await makeBench();
    const job = await mirror({ onTargetError: 'stop' });
    await untilReady(job);
    copy.fail.write = new Error('full');
    await guest.write(0, Buffer.alloc(512, 1));
    await reached(registry, job, 'standby');
    const before = copy.calls.length;
    await guest.write(GRANULE, Buffer.alloc(512, 2));
    expect(copy.calls.length).toBe(before);
    expect(job.activelySynced).toBe(false);
    copy.fail = {};
    job.resume();
    while (!job.activelySynced) await turn();
    expect(copy.data.equals(disk.data)).toBe(true);
    job.cancel({ force: false });
    await job.concluded;
    expect(job.error).toBeUndefined();
  });

  it('lets a write wait for a copy of its granule, and no copy overtake it', async () => {
    const { guest, disk, copy, mirror } = await makeBench();
    const { wait, open, waiting } = gate();
    copy.delay = wait;
    const job = await mirror();
    while (waiting() === 0) await turn(); // the copy of the first granules has been read
    const write = Promise.resolve(guest.write(100, Buffer.alloc(512, 7)));
    await turns(5);
    expect(disk.data[100]).not.toBe(7);
    copy.delay = undefined;
    open();
    await write;
    await untilReady(job);
    expect(copy.data.equals(disk.data)).toBe(true);
    job.cancel({ force: false });
    await job.concluded;
  });

  it('pivots under load and loses nothing', async () => {
    const { guest, copy, mirror } = await makeBench();
    const job = await mirror();
    await untilReady(job);
    const random = () => new Promise<void>((resolve) => setTimeout(resolve, Math.random() * 2));
    copy.delay = random;
    const model = Buffer.from(copy.data);
    let stop = false;
    const writer = async (slot: number): Promise<void> => {
      for (let n = 1; !stop; n++) {
        const data = Buffer.alloc(700, n);
        data.copy(model, slot * 5000);
        await guest.write(slot * 5000, data);
      }
    };
    const writers = [0, 1, 2, 3, 4, 5].map(writer);
    await turns(50);
    job.complete();
    await job.concluded;
    await turns(50);
    stop = true;
    await Promise.all(writers);
    expect(job.error).toBeUndefined();
    expect(guest.root.node.name).toBe('target');
    expect(copy.data.equals(model)).toBe(true);
  });
});

describe('changing the mode of a mirror', () => {
  it('waits for the writes of the old mode', async () => {
    const { guest, disk, copy, mirror } = await makeBench();
    const job = await mirror({ copyMode: 'background' });
    await untilReady(job);
    const { wait, open } = gate();
    disk.delay = wait;
    const write = guest.write(0, Buffer.alloc(512, 1));
    let changed = false;
    const change = job.changeCopyMode('write-blocking').then(() => {
      changed = true;
    });
    await turns(5);
    expect(changed).toBe(false);
    disk.delay = undefined;
    open();
    await write;
    await change;
    expect(job.copyMode).toBe('write-blocking');
    while (!job.activelySynced) await turn();
    await guest.write(0, Buffer.alloc(512, 2));
    expect(copy.data[0]).toBe(2);
    await job.changeCopyMode('background');
    expect(job.activelySynced).toBe(false);
    job.cancel({ force: false });
    await job.concluded;
    expect(copy.data.equals(disk.data)).toBe(true);
  });

  it('is refused while somebody writes to the source past the job, and says who', async () => {
    const { graph, source, mirror, guest } = await makeBench();
    const job = await mirror({ copyMode: 'background' });
    const other = new BlockBackend("export 'other'");
    await graph.attach(other, source, WRITER);
    await expect(job.changeCopyMode('write-blocking')).rejects.toThrow("export 'other'");
    expect(job.copyMode).toBe('background');
    await graph.detach(other);
    await job.changeCopyMode('write-blocking');
    await expect(graph.attach(other, source, WRITER)).rejects.toThrow('Permission conflict');
    await guest.write(0, Buffer.alloc(512, 2));
    job.cancel({ force: true });
    await job.concluded;
    await graph.attach(other, source, WRITER);
  });

  it('is refused when the job is over', async () => {
    const { mirror } = await makeBench();
    const job = await mirror({ autoDismiss: false });
    await untilReady(job);
    job.cancel({ force: false });
    await job.concluded;
    await expect(job.changeCopyMode('background')).rejects.toThrow(
      "cannot accept command verb 'change'",
    );
  });

  it('happens by itself with auto, when writers keep up with the copy', async () => {
    const { guest, registry, mirror, disk, copy } = await makeBench(64 * GRANULE);
    const told: { mode: string; remaining: number }[] = [];
    registry.listen({
      notConverging: (_job, { remaining }, mode) => void told.push({ mode, remaining }),
    });
    // The job copies next to nothing; what is written meanwhile is far more.
    const job = await mirror({ copyMode: 'auto', sync: 'none', speed: 1000 });
    expect(job.copyMode).toBe('auto');
    for (let at = 0; told.length === 0; at = (at + GRANULE) % (60 * GRANULE)) {
      await guest.write(at, Buffer.alloc(GRANULE, 1 + (at % 251)));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    expect(told).toEqual([{ mode: 'write-blocking', remaining: expect.any(Number) }]);
    await guest.write(62 * GRANULE, Buffer.alloc(512, 9));
    expect(copy.data[62 * GRANULE]).toBe(9);
    job.setSpeed(0);
    while (!job.activelySynced) await turn();
    expect(copy.data.subarray(0, 60 * GRANULE).equals(disk.data.subarray(0, 60 * GRANULE))).toBe(
      true,
    );
    job.cancel({ force: true });
    await job.concluded;
  });

  it('is only told of, without auto', async () => {
    const { guest, registry, mirror } = await makeBench(64 * GRANULE);
    const told: string[] = [];
    registry.listen({ notConverging: (_job, _rates, mode) => void told.push(mode) });
    const job = await mirror({ copyMode: 'background', sync: 'none', speed: 1000 });
    for (let at = 0; told.length === 0; at = (at + GRANULE) % (60 * GRANULE)) {
      await guest.write(at, Buffer.alloc(GRANULE, 1 + (at % 251)));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    expect(told).toEqual(['background']);
    job.cancel({ force: true });
    await job.concluded;
  });
});

type Step =
  | { readonly kind: 'write'; readonly offset: number; readonly length: number }
  | { readonly kind: 'zero'; readonly offset: number; readonly length: number }
  | { readonly kind: 'discard'; readonly offset: number; readonly length: number }
  | { readonly kind: 'mode'; readonly mode: MirrorCopyMode }
  | { readonly kind: 'drain'; readonly which: 'source' | 'target' }
  | { readonly kind: 'fail'; readonly which: 'source' | 'target' }
  | { readonly kind: 'heal' }
  | { readonly kind: 'pause' }
  | { readonly kind: 'wait'; readonly turns: number };

const anyRange = fc
  .tuple(fc.nat(SIZE - 1), fc.integer({ min: 1, max: 3 * GRANULE }))
  .map(([offset, length]) => ({ offset, length: Math.min(length, SIZE - offset) }));
const anyStep: fc.Arbitrary<Step> = fc.oneof(
  { weight: 12, arbitrary: anyRange.map((range) => ({ kind: 'write' as const, ...range })) },
  { weight: 2, arbitrary: anyRange.map((range) => ({ kind: 'zero' as const, ...range })) },
  { weight: 1, arbitrary: anyRange.map((range) => ({ kind: 'discard' as const, ...range })) },
  {
    weight: 2,
    arbitrary: fc.constantFrom<Step>(
      { kind: 'mode', mode: 'background' },
      { kind: 'mode', mode: 'write-blocking' },
      { kind: 'mode', mode: 'auto' },
    ),
  },
  {
    weight: 2,
    arbitrary: fc.constantFrom<Step>(
      { kind: 'drain', which: 'source' },
      { kind: 'drain', which: 'target' },
      { kind: 'fail', which: 'source' },
      { kind: 'fail', which: 'target' },
      { kind: 'heal' },
      { kind: 'pause' },
    ),
  },
  { weight: 6, arbitrary: fc.nat(6).map((count) => ({ kind: 'wait' as const, turns: count })) },
);

async function play(steps: readonly Step[], seed: number, ending: 'cancel' | 'complete') {
  const bench = await makeBench();
  const { graph, source, target, disk, copy, guest, mirror } = bench;
  source.options = { ...source.options, discard: 'unmap' };
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >> 8) % below;
  };
  const later = () => turns(random(4));
  disk.delay = later;
  copy.delay = later;
  const job = await mirror({
    onTargetError: 'ignore',
    onSourceError: 'ignore',
    autoDismiss: false,
  });
  const pending: Promise<unknown>[] = [];
  /** Requests that came in a drained section. */
  let disturbances = 0;
  const act = (step: Step): void => {
    const settled = (work: () => unknown): void => {
      pending.push(
        Promise.resolve()
          .then(work)
          .catch(() => undefined),
      );
    };
    if (step.kind === 'write') {
      const data = Buffer.alloc(step.length, 1 + random(255));
      settled(() => guest.write(step.offset, data));
    } else if (step.kind === 'zero') settled(() => guest.writeZeroes(step.offset, step.length));
    else if (step.kind === 'discard') settled(() => guest.discard(step.offset, step.length));
    else if (step.kind === 'mode') settled(() => job.changeCopyMode(step.mode));
    else if (step.kind === 'drain') {
      const [node, driver] = step.which === 'source' ? [source, disk] : [target, copy];
      const watch = async (): Promise<void> => {
        const before = driver.calls.length;
        await turns(8);
        disturbances += driver.calls.length - before;
      };
      settled(() => graph.exclusive(() => drained([node], watch)));
    } else if (step.kind === 'fail') {
      (step.which === 'source' ? disk : copy).fail = { write: new Error('broken') };
    } else if (step.kind === 'heal') {
      disk.fail = {};
      copy.fail = {};
    } else if (step.kind === 'pause' && !job.userPaused) {
      job.pause();
      pending.push(turns(3).then(() => job.resume()));
    }
  };
  for (const step of steps) {
    if (step.kind === 'wait') await turns(step.turns);
    else act(step);
  }
  disk.fail = {};
  copy.fail = {};
  await Promise.all(pending);
  await untilReady(job);
  const last = guest.write(random(SIZE - 600), Buffer.alloc(600, 0xaa));
  if (ending === 'cancel') job.cancel({ force: false });
  else job.complete();
  await job.concluded;
  await last;
  return { ...bench, job, disturbances };
}

describe('mirror under random writers, mode changes, drained sections and faults', () => {
  it('ends with a target that is equal to the source', { timeout: 120_000 }, async () => {
    const ending = fc.constantFrom<'cancel' | 'complete'>('cancel', 'complete');
    const property = fc.asyncProperty(
      fc.array(anyStep, { minLength: 5, maxLength: 40 }),
      fc.nat(),
      ending,
      async (steps, seed, end) => {
        const { job, disk, copy, guest, disturbances } = await play(steps, seed, end);
        expect(disturbances).toBe(0);
        expect(job.error).toBeUndefined();
        // The last write may have come after the end, and so be in the one that the guest has now.
        const [used, left] = end === 'complete' ? [copy, disk] : [disk, copy];
        expect(guest.root.node.name).toBe(end === 'complete' ? 'target' : 'source');
        const differs = used.data.filter((byte, at) => left.data[at] !== byte);
        expect(differs.every((byte) => byte === 0xaa) && differs.byteLength <= 600).toBe(true);
      },
    );
    await fc.assert(property, { numRuns: 150 });
  });
});
