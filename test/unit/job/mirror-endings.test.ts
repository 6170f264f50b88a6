// SPDX-License-Identifier: MIT
/** What is said to a mirror, or goes wrong, while its end takes effect. */
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { BlockBackend } from '../../../src/block/backend.js';
import { addBitmap } from '../../../src/block/bitmap/node-bitmaps.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { JobRegistry } from '../../../src/job/job-registry.js';
import { MirrorJob } from '../../../src/job/mirror.js';
import type { MirrorOptions } from '../../../src/job/mirror-options.js';
import { patternBytes } from '../../support/images.js';
import { reached } from '../../support/jobs.js';
import { memoryGraph } from '../../support/memory-driver.js';

const SIZE = 1 << 20;
const GRANULE = 1 << 16;

/** A disk with a writer; requests to the target end when `release` is called, once held. */
async function makeBench() {
  const { graph, driverOf, add } = memoryGraph();
  const source = await add('source', SIZE);
  const target = await add('target', SIZE);
  patternBytes(SIZE, 3).copy(driverOf(source).data);
  const guest = new BlockBackend("export 'guest'");
  const wanted = { taken: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };
  await graph.attach(guest, source, wanted);
  const registry = new JobRegistry();
  const heard: string[] = [];
  registry.listen({
    stateChanged: ({ state }) => heard.push(state),
    finished: () => heard.push('end'),
    ioError: (_job, operation, action) => heard.push(`${operation} ${action}`),
  });
  let release = (): void => {};
  let entered = (): void => {};
  const copy = driverOf(target);
  /** Fulfilled when the next request to the target has come, which waits then. */
  const holdTarget = (): Promise<void> => {
    const gate = new Promise<void>((resolve) => {
      release = resolve;
    });
    return new Promise((resolve) => {
      entered = resolve;
      copy.delay = () => {
        entered();
        return gate;
      };
    });
  };
  const mirror = (options: Partial<MirrorOptions> = {}): Promise<MirrorJob> => {
    const base = { id: 'j', source, target, sync: 'full', granularity: GRANULE } as const;
    const how = { windowLength: SIZE, unmap: true, autoDismiss: false, ...options };
    return registry.run('j', () => MirrorJob.create(graph, { ...base, ...how }, registry));
  };
  const data = { source: driverOf(source).data, target: copy.data };
  const letGo = () => release();
  const disk = driverOf(source);
  return {
    graph,
    source,
    target,
    disk,
    copy,
    data,
    guest,
    registry,
    heard,
    mirror,
    holdTarget,
    letGo,
  };
}

describe('a mirror whose end takes effect', () => {
  it('is not finalized a second time', async () => {
    const { registry, mirror, guest, holdTarget, letGo, heard } = await makeBench();
    const job = await mirror({ autoFinalize: false });
    await reached(registry, job, 'ready');
    job.cancel({ force: false });
    await reached(registry, job, 'pending');
    await guest.write(0, Buffer.alloc(GRANULE, 1));
    const held = holdTarget();
    const finalized = job.finalize();
    await held;
    expect(() => job.finalize()).toThrow("Job 'j' is being finalized already");
    letGo();
    await finalized;
    expect(heard.slice(-3)).toEqual(['pending', 'end', 'concluded']);
    expect(job.error).toBeUndefined();
  });

  it('can be cancelled, with one end, and its writer stays where it was', async () => {
    const { registry, mirror, source, guest, graph, holdTarget, letGo, heard } = await makeBench();
    const job = await mirror({ autoFinalize: false });
    await reached(registry, job, 'ready');
    job.complete();
    await reached(registry, job, 'pending');
    await guest.write(0, Buffer.alloc(GRANULE, 1));
    const held = holdTarget();
    const finalized = job.finalize();
    await held;
    job.cancel({ force: true });
    letGo();
    await finalized;
    await job.concluded;
    for (let turns = 0; turns < 20; turns++) await turn();
    expect(heard.slice(-4)).toEqual(['pending', 'aborting', 'end', 'concluded']);
    expect(job.error?.message).toBe('Operation canceled');
    expect(guest.root.node).toBe(source);
    expect([graph.nodes.length, source.trackers.length]).toEqual([2, 0]);
  });
});

describe('a mirror whose target is silent while its users wait', () => {
  it('fails after a while, and the users go on with the source', async () => {
    const { registry, mirror, guest, copy, source } = await makeBench();
    const job = await mirror({ autoFinalize: false });
    await reached(registry, job, 'ready');
    job.complete();
    await reached(registry, job, 'pending');
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    onTestFinished(() => void vi.useRealTimers());
    await guest.write(0, Buffer.alloc(GRANULE, 1));
    let calls = 0;
    const copied = new Promise<void>((entered) => {
      const silent = new Promise<void>((_, reject) => {
        Object.assign(copy, { cancelInFlight: () => reject(new Error('given up')) });
      });
      // The flush before is answered still.
      copy.delay = async () => {
        if (calls++ === 0) return;
        entered();
        await silent;
      };
    });
    const finalized = job.finalize();
    await copied;
    const written = guest.write(GRANULE, Buffer.alloc(GRANULE, 2));
    vi.advanceTimersByTime(30_000);
    await finalized;
    await job.concluded;
    await written;
    expect(job.error?.message).toBe('given up');
    expect(guest.root.node).toBe(source);
  });
});

describe('a mirror that is broken off', () => {
  it('keeps all marks of its bitmap when it does not know yet what there is to copy', async () => {
    const { mirror, source, heard } = await makeBench();
    const bitmap = addBitmap(source, { name: 'b' });
    bitmap.setDirty(0, SIZE);
    const job = await mirror({ sync: 'top', bitmap, bitmapMode: 'always' });
    job.cancel({ force: true });
    await job.concluded;
    expect(heard).toEqual(['created', 'running', 'aborting', 'end', 'concluded']);
    expect(source.bitmaps.get('b')?.count).toBe(SIZE);
  });

  it('reports no errors of what it broke off itself', async () => {
    const { mirror, copy, heard, holdTarget, letGo } = await makeBench();
    const held = holdTarget();
    const job = await mirror({ onTargetError: 'stop' });
    await held;
    copy.fail.write = new Error('given up');
    job.cancel({ force: true });
    letGo();
    await job.concluded;
    expect(heard).toEqual(['created', 'running', 'aborting', 'end', 'concluded']);
  });
});

describe('a mirror whose target fails when it is told to end', () => {
  it('stops, goes on when it is resumed, and loses nothing', async () => {
    const { registry, mirror, guest, copy, data, heard } = await makeBench();
    const job = await mirror({ onTargetError: 'stop' });
    await reached(registry, job, 'ready');
    copy.fail.write = Object.assign(new Error('full'), { code: 'ENOSPC' });
    const written = guest.write(0, Buffer.alloc(GRANULE, 1));
    job.complete();
    await written;
    await reached(registry, job, 'standby');
    expect([job.ioStatus, job.userPaused]).toEqual(['nospace', true]);
    delete copy.fail.write;
    job.resume();
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(heard.slice(-4)).toEqual(['waiting', 'pending', 'end', 'concluded']);
    expect(data.target.equals(data.source)).toBe(true);
  });

  it('is ready when what it has copied is on stable storage', async () => {
    const { registry, mirror, copy } = await makeBench();
    copy.fail.flush = new Error('broken');
    const job = await mirror({ onTargetError: 'stop' });
    await reached(registry, job, 'paused');
    expect(job.wasReady).toBe(false);
    delete copy.fail.flush;
    job.resume();
    await reached(registry, job, 'ready');
    expect(copy.flushes).toBe(1);
    job.cancel({ force: false });
    await job.concluded;
  });

  it('treats a flush that fails as the policy says', async () => {
    const { registry, mirror, copy, guest, heard } = await makeBench();
    const job = await mirror({ onTargetError: 'stop' });
    await reached(registry, job, 'ready');
    copy.fail.flush = new Error('broken');
    await guest.write(0, Buffer.alloc(GRANULE, 1));
    job.cancel({ force: false });
    await reached(registry, job, 'standby');
    delete copy.fail.flush;
    job.resume();
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(heard).toContain('write stop');
  });

  it('fails after an error that it reported, also one of a write for both', async () => {
    const { registry, mirror, guest, copy, source } = await makeBench();
    const job = await mirror({ copyMode: 'write-blocking' });
    await reached(registry, job, 'ready');
    copy.fail.write = new Error('broken');
    await guest.write(0, Buffer.alloc(GRANULE, 1));
    delete copy.fail.write;
    job.complete();
    await job.concluded;
    expect(job.error?.message).toBe('broken');
    expect(guest.root.node).toBe(source);
  });
});

describe('a mirror that looks for what there is to copy', () => {
  it('copies all of a granule of which a part is written to both meanwhile', async () => {
    const { registry, mirror, guest, data, disk } = await makeBench();
    const ticks = async (count: number): Promise<void> => {
      for (let n = 0; n < count; n++) await Promise.resolve();
    };
    // The look takes a while: it asks for each run of data. The write takes longer.
    for (let at = 0; at < SIZE; at++) data.source[at] = at % 2048 === 0 ? 0 : 1;
    disk.delay = () => ticks(20_000);
    const job = await mirror({ sync: 'top', copyMode: 'write-blocking' });
    await guest.write(SIZE - GRANULE + 512, Buffer.alloc(512, 1));
    disk.delay = undefined;
    await reached(registry, job, 'ready');
    job.cancel({ force: false });
    await job.concluded;
    expect(data.target.equals(data.source)).toBe(true);
  });
});
