// SPDX-License-Identifier: MIT
import { describe, expect, it, vi } from 'vitest';
import { BlockBackend } from '../../../src/block/backend.js';
import type { BlockGraph } from '../../../src/block/graph.js';
import type { BlockNode } from '../../../src/block/node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { JobRegistry } from '../../../src/job/job-registry.js';
import { MirrorJob } from '../../../src/job/mirror.js';
import type { MirrorOptions } from '../../../src/job/mirror-options.js';
import { reached } from '../../support/jobs.js';
import { type MemoryDriver, memoryGraph } from '../../support/memory-driver.js';

const SIZE = 1 << 20;

interface Bench {
  graph: BlockGraph;
  source: BlockNode;
  target: BlockNode;
  sourceData: Buffer;
  targetData: Buffer;
  guest: BlockBackend;
  registry: JobRegistry;
  states: string[];
  add: ReturnType<typeof memoryGraph>['add'];
  mirror(options?: Partial<MirrorOptions>): Promise<MirrorJob>;
}

/** A source full of bytes with a writer's backend on it, and an empty target. */
async function makeBench(): Promise<Bench> {
  const { graph, driverOf, add } = memoryGraph();
  const source = await add('source', SIZE);
  const target = await add('target', SIZE);
  const sourceData = driverOf(source).data;
  for (let at = 0; at < SIZE; at++) sourceData[at] = (at * 31 + (at >> 12)) & 0xff;
  const guest = new BlockBackend("export 'guest'");
  await graph.attach(guest, source, {
    taken: PERM_CONSISTENT_READ | PERM_WRITE,
    shared: PERM_ALL,
  });
  const registry = new JobRegistry();
  const states: string[] = [];
  registry.listen({ stateChanged: (job) => states.push(job.state) });
  return {
    graph,
    source,
    target,
    sourceData,
    targetData: driverOf(target).data,
    guest,
    registry,
    states,
    add,
    mirror: (options = {}) =>
      registry.run(options.id ?? 'j', () =>
        MirrorJob.create(
          graph,
          {
            id: 'j',
            source,
            target,
            sync: 'full',
            granularity: 65536,
            windowLength: 1 << 20,
            unmap: true,
            ...options,
          },
          registry,
        ),
      ),
  };
}

describe('mirror', () => {
  it.each([
    ['fills the way to a target that is far away from the start', 'background', 16],
    ['does not, while writes would wait behind that', 'write-blocking', 4],
  ] as const)('%s', async (_, copyMode, expected) => {
    const { graph, target, registry, mirror } = await makeBench();
    const driver = target.driver as MemoryDriver;
    let release = (): void => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    Object.assign(driver, { roundTripMs: 40, delay: () => released });
    const job = await mirror({ windowLength: 1 << 18, windowLengthMax: SIZE, copyMode });
    await vi.waitFor(() => expect(driver.calls).toHaveLength(expected));
    await new Promise((resolve) => setImmediate(resolve));
    expect(driver.calls).toHaveLength(expected);
    release();
    await reached(registry, job, 'ready');
    await graph.closeAll();
  });

  it('copies all, pivots the writer, and leaves nothing on the source', async () => {
    const { graph, source, target, sourceData, targetData, guest, registry, states, mirror } =
      await makeBench();
    const job = await mirror();
    await reached(registry, job, 'ready');
    await guest.write(4096, Buffer.alloc(512, 0xaa));
    job.complete();
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(targetData.equals(sourceData)).toBe(true);
    expect(states).toEqual([
      'created',
      'running',
      'ready',
      'waiting',
      'pending',
      'concluded',
      'null',
    ]);
    expect(guest.root.node).toBe(target);
    await guest.write(0, Buffer.alloc(512, 0x55));
    expect([targetData[0], sourceData[0] === 0x55]).toEqual([0x55, false]);
    expect([source.trackers.length, source.parents.size, graph.nodes.length]).toEqual([0, 0, 2]);
  });

  it('loses no write that lands while it copies', async () => {
    const { sourceData, targetData, guest, registry, mirror } = await makeBench();
    const job = await mirror({ granularity: 512 });
    for (let i = 0; i < 2000; i++) {
      await guest.write(((i * 7919) % 2048) * 512, Buffer.alloc(512, i & 0xff));
      if (i % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await reached(registry, job, 'ready');
    job.complete();
    await job.concluded;
    expect(targetData.equals(sourceData)).toBe(true);
  });

  it('leaves a consistent copy when it is cancelled after READY, and the writer on the source', async () => {
    const { sourceData, targetData, guest, source, registry, states, mirror } = await makeBench();
    const job = await mirror();
    await reached(registry, job, 'ready');
    job.cancel({ force: false });
    await job.concluded;
    const then = Buffer.from(sourceData);
    await guest.write(0, Buffer.alloc(512, 1));
    expect(targetData.equals(then)).toBe(true);
    expect(guest.root.node).toBe(source);
    expect(states.slice(2)).toEqual(['ready', 'waiting', 'pending', 'concluded', 'null']);
  });

  it('is cancelled before READY as if it had never been', async () => {
    const { graph, guest, source, target, states, mirror } = await makeBench();
    const job = await mirror({ speed: 1 });
    job.cancel({ force: false });
    await job.concluded;
    expect(job.error?.message).toBe('Operation canceled');
    expect(states).toEqual(['created', 'running', 'aborting', 'concluded', 'null']);
    expect(guest.root.node).toBe(source);
    expect([target.parents.size, graph.nodes.length, source.trackers.length]).toEqual([0, 2, 0]);
  });

  it('pauses and resumes, in standby once it is ready', async () => {
    const { registry, states, mirror } = await makeBench();
    const job = await mirror();
    await reached(registry, job, 'ready');
    job.pause();
    await reached(registry, job, 'standby');
    job.resume();
    await reached(registry, job, 'ready');
    job.cancel({ force: true });
    await job.concluded;
    expect(states.slice(2)).toEqual(['ready', 'standby', 'ready', 'aborting', 'concluded', 'null']);
  });

  it('fails when the target fails, and gives the writer back to the source', async () => {
    const { graph, guest, source, target, mirror } = await makeBench();
    const driver = target.driver as unknown as { fail: { write?: Error } };
    driver.fail.write = new Error('no more');
    const job = await mirror({ autoDismiss: false });
    await job.concluded;
    expect(job.error?.message).toBe('no more');
    expect(job.state).toBe('concluded');
    expect(guest.root.node).toBe(source);
    expect(graph.nodes.length).toBe(2);
  });

  it('keeps the writer going while it waits to be finalized', async () => {
    const { sourceData, targetData, guest, registry, mirror } = await makeBench();
    const job = await mirror({ autoFinalize: false });
    await reached(registry, job, 'ready');
    job.complete();
    await reached(registry, job, 'pending');
    await guest.write(8192, Buffer.alloc(4096, 9));
    await job.finalize();
    await job.concluded;
    expect(targetData.equals(sourceData)).toBe(true);
    expect(targetData[8192]).toBe(9);
  });

  it('refuses itself as target, and another size, by name', async () => {
    const { graph, source, mirror } = await makeBench();
    await expect(mirror({ target: source })).rejects.toThrow("Can't mirror node into itself");
    expect(graph.nodes.length).toBe(2);
  });
});

describe('two mirrors of one disk', () => {
  it('are refused: when one has pivoted, the other would miss what is written', async () => {
    const { graph, source, registry, mirror, add } = await makeBench();
    const first = await mirror();
    await reached(registry, first, 'ready');
    const filter = [...graph.nodes].find(({ driver }) => driver.name === 'mirror_top');
    if (filter === undefined) throw new Error('no filter');
    const other = await add('other', SIZE);
    const second = (options: Partial<MirrorOptions>): Promise<MirrorJob> =>
      mirror({ id: 'k', target: other, ...options });
    await expect(second({})).rejects.toThrow(
      "Node 'source' is busy: block device is in use by block job: mirror",
    );
    await expect(second({ source: filter })).rejects.toThrow(/ is busy: .* by block job: mirror$/);
    first.cancel({ force: true });
    await first.concluded;
    const third = await second({});
    await reached(registry, third, 'ready');
    third.cancel({ force: true });
    await third.concluded;
    expect(source.parents.size).toBe(1);
  });

  it('can not be begun at the same time', async () => {
    const { mirror, add } = await makeBench();
    const other = await add('other', SIZE);
    const begun = await Promise.allSettled([mirror(), mirror({ id: 'k', target: other })]);
    expect(begun.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
    for (const result of begun) {
      if (result.status !== 'fulfilled') continue;
      result.value.cancel({ force: true });
      await result.value.concluded;
    }
  });
});

describe('a mirror that is held', () => {
  it('takes the word to complete, and does it when it is let go', async () => {
    const { registry, states, mirror, sourceData, targetData } = await makeBench();
    const job = await mirror();
    await reached(registry, job, 'ready');
    job.pause();
    await reached(registry, job, 'standby');
    job.complete();
    expect(job.state).toBe('standby');
    job.resume();
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(states.slice(2, 7)).toEqual(['ready', 'standby', 'ready', 'waiting', 'pending']);
    expect(targetData.equals(sourceData)).toBe(true);
  });

  it('refuses a speed below nothing', async () => {
    const { mirror } = await makeBench();
    const job = await mirror();
    expect(() => job.setSpeed(-1)).toThrow("Parameter 'speed' expects a non-negative value");
    expect(job.speed).toBe(0);
    job.cancel({ force: true });
    await job.concluded;
  });
});
