// SPDX-License-Identifier: MIT
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { BlockBackend } from '../../../../src/block/backend.js';
import { DirtyBitmap } from '../../../../src/block/bitmap/dirty-bitmap.js';
import { chainStatus } from '../../../../src/block/block-status.js';
import { rawDriver } from '../../../../src/block/driver/raw.js';
import {
  CopyBeforeWriteDriver,
  createCopyBeforeWriteDriver,
} from '../../../../src/block/filter/copy-before-write.js';
import { snapshotAccessDefinition } from '../../../../src/block/filter/snapshot-access.js';
import type { BlockGraph } from '../../../../src/block/graph.js';
import type { BlockNode } from '../../../../src/block/node.js';
import { openNode } from '../../../../src/block/open-node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../../src/block/permissions.js';
import { reopenNodes } from '../../../../src/block/reopen.js';
import { patternBytes } from '../../../support/images.js';
import { type MemoryDriver, memoryGraph } from '../../../support/memory-driver.js';

const KIB = 1024;
const CLUSTER = 64 * KIB;
/** The last cluster is a short one. */
const SIZE = 16 * CLUSTER + 5 * KIB;

interface Bench {
  readonly graph: BlockGraph;
  readonly source: MemoryDriver;
  readonly target: MemoryDriver;
  /** The disk as it was when the filter came. */
  readonly old: Buffer;
  add(options: Record<string, unknown>): Promise<BlockNode>;
  /** A writer above the node, as an export is one. */
  writer(node: BlockNode): Promise<BlockBackend>;
}

async function makeBench(): Promise<Bench> {
  const { graph, add, driverOf } = memoryGraph();
  graph.drivers.register(createCopyBeforeWriteDriver((name) => graph.find(name)));
  graph.drivers.register(snapshotAccessDefinition);
  graph.drivers.register(rawDriver);
  const source = driverOf(await add('source', SIZE, { discard: 'unmap' }));
  const target = driverOf(await add('target', SIZE, { discard: 'unmap' }));
  patternBytes(SIZE, 3).copy(source.data);
  source.data.fill(0, 4 * CLUSTER, 6 * CLUSTER);
  return {
    graph,
    source,
    target,
    old: Buffer.from(source.data),
    add: (options) => openNode(graph, options, { monitorOwned: true }),
    async writer(node) {
      const backend = new BlockBackend("export 'guest'");
      await graph.attach(backend, node, {
        taken: PERM_CONSISTENT_READ | PERM_WRITE,
        shared: PERM_ALL,
      });
      return backend;
    },
  };
}

const FILTER = {
  driver: 'copy-before-write',
  'node-name': 'cbw',
  file: 'source',
  target: 'target',
  discard: 'unmap',
};
const SNAPSHOT = { driver: 'snapshot-access', 'node-name': 'snap', file: 'cbw' };

async function contentOf(node: BlockNode, offset = 0, length = node.size): Promise<Buffer> {
  const buffer = Buffer.alloc(length, 0xee);
  await node.read(offset, buffer);
  return buffer;
}

/** Requests of a driver end only when they are let go. */
function gate(driver: MemoryDriver): () => void {
  let open = (): void => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  driver.delay = () => opened;
  return () => {
    driver.delay = undefined;
    open();
  };
}

describe('copy-before-write', () => {
  it('saves the clusters that a write touches, once, and nothing else', async () => {
    const { add, writer, source, target, old } = await makeBench();
    const guest = await writer(await add(FILTER));
    await guest.write(CLUSTER - 10, Buffer.alloc(20, 1));
    expect(target.data.subarray(0, 2 * CLUSTER).equals(old.subarray(0, 2 * CLUSTER))).toBe(true);
    expect(target.data.subarray(2 * CLUSTER).every((byte) => byte === 0)).toBe(true);
    expect(source.data.subarray(CLUSTER - 10, CLUSTER + 10).every((byte) => byte === 1)).toBe(true);
    const before = target.calls.length;
    await guest.write(0, Buffer.alloc(2 * CLUSTER, 2));
    expect(target.calls.length).toBe(before);
  });

  it('saves what zeroing and discarding take away', async () => {
    const { add, writer, target, source, old } = await makeBench();
    const guest = await writer(await add(FILTER));
    await guest.writeZeroes(0, 8 * CLUSTER);
    await guest.discard(8 * CLUSTER, SIZE - 8 * CLUSTER);
    expect(source.data.every((byte) => byte === 0)).toBe(true);
    expect(target.data.equals(old)).toBe(true);
  });

  it('shows the point in time to readers, whatever is written and wherever copies lie', async () => {
    const { add, writer, source, target, old } = await makeBench();
    const guest = await writer(await add(FILTER));
    const snapshot = await add(SNAPSHOT);
    source.delay = () => sleep(0);
    target.delay = () => sleep(0);
    const reads: Promise<Buffer>[] = [];
    const writes: (void | Promise<void>)[] = [];
    const places: number[] = [];
    for (let i = 0; i < 300; i++) {
      const offset = (i * 7919 * 613) % (SIZE - 9000);
      writes.push(guest.write(offset, Buffer.alloc(1 + ((i * 31) % 9000), i)));
      places.push((i * 104729) % (SIZE - 2 * CLUSTER));
      reads.push(contentOf(snapshot, places.at(-1), 2 * CLUSTER));
      if (i % 3 === 0) await sleep(0);
    }
    await Promise.all(writes);
    for (const [i, data] of (await Promise.all(reads)).entries()) {
      const at = places[i] ?? 0;
      expect(data.equals(old.subarray(at, at + data.byteLength))).toBe(true);
    }
    expect((await contentOf(snapshot)).equals(old)).toBe(true);
    expect(source.data.equals(old)).toBe(false);
  });

  it('tells the status of the point in time, not of what came after it', async () => {
    const { add, writer } = await makeBench();
    const guest = await writer(await add(FILTER));
    const snapshot = await add(SNAPSHOT);
    await guest.write(4 * CLUSTER, Buffer.alloc(CLUSTER, 9));
    await guest.writeZeroes(0, CLUSTER);
    const zero: boolean[] = [];
    for (const at of [0, 4 * CLUSTER, 5 * CLUSTER]) {
      zero.push(((await chainStatus(snapshot, at, 512)).flags & 2) !== 0);
    }
    expect(zero).toEqual([false, true, true]);
  });

  it('lets a write wait for a reader of the bytes that it changes', async () => {
    const { add, writer, source, old } = await makeBench();
    const guest = await writer(await add(FILTER));
    const snapshot = await add(SNAPSHOT);
    const release = gate(source);
    const reading = contentOf(snapshot, 0, 512);
    await sleep(0);
    source.delay = undefined;
    const order: string[] = [];
    const writing = Promise.resolve(guest.write(0, Buffer.alloc(512, 7))).then(() =>
      order.push('write'),
    );
    await sleep(5);
    expect(order).toEqual([]);
    release();
    expect((await reading).equals(old.subarray(0, 512))).toBe(true);
    await writing;
    expect(source.data[0]).toBe(7);
  });

  it('fails a write whose old content cannot be saved, and leaves the disk alone', async () => {
    const { add, writer, source, target, old } = await makeBench();
    const guest = await writer(await add(FILTER));
    const snapshot = await add(SNAPSHOT);
    target.fail.write = new Error('no more');
    await expect(guest.write(0, Buffer.alloc(512, 7))).rejects.toThrow('no more');
    expect(source.data.equals(old)).toBe(true);
    delete target.fail.write;
    await guest.write(0, Buffer.alloc(512, 7));
    expect((await contentOf(snapshot)).equals(old)).toBe(true);
  });

  it('gives up the snapshot instead, where it is told to', async () => {
    const { add, writer, source, target } = await makeBench();
    const guest = await writer(await add({ ...FILTER, 'on-cbw-error': 'break-snapshot' }));
    const snapshot = await add(SNAPSHOT);
    target.fail.write = new Error('no more');
    await guest.write(0, Buffer.alloc(512, 7));
    expect(source.data[0]).toBe(7);
    await expect(contentOf(snapshot, 8 * CLUSTER, 512)).rejects.toMatchObject({
      code: 'DF_ACCESS',
    });
    const before = target.calls.length;
    await guest.write(9 * CLUSTER, Buffer.alloc(512, 7));
    expect(target.calls.length).toBe(before);
  });

  it('takes a copy that lasts too long as failed', async () => {
    const { add, writer, source, target } = await makeBench();
    const node = await add({ ...FILTER, 'on-cbw-error': 'break-snapshot', 'cbw-timeout': 1 });
    const guest = await writer(node);
    const release = gate(target);
    await guest.write(0, Buffer.alloc(512, 7));
    expect(source.data[0]).toBe(7);
    release();
    await target.delay;
  });

  it('waits longer than a timer of Node can, if told to', async () => {
    const { add, writer, source, target } = await makeBench();
    const node = await add({
      ...FILTER,
      'on-cbw-error': 'break-snapshot',
      'cbw-timeout': 2 ** 32 - 1,
    });
    const guest = await writer(node);
    const release = gate(target);
    const writing = guest.write(0, Buffer.alloc(512, 7));
    await sleep(20);
    expect(source.data[0]).not.toBe(7);
    release();
    await writing;
    expect(source.data[0]).toBe(7);
  });

  it('keeps to the marks of a bitmap, and refuses to read the rest', async () => {
    const { add, writer, graph, target, old } = await makeBench();
    const bitmap = new DirtyBitmap({ name: 'b', size: SIZE, granularity: CLUSTER, disabled: true });
    bitmap.attach(graph.get('source'));
    bitmap.setDirty(2 * CLUSTER, CLUSTER);
    const guest = await writer(await add({ ...FILTER, bitmap: { node: 'source', name: 'b' } }));
    const snapshot = await add(SNAPSHOT);
    await guest.write(0, Buffer.alloc(4 * CLUSTER, 5));
    expect(target.calls.filter((call) => call.startsWith('write'))).toEqual([
      `write ${2 * CLUSTER} ${CLUSTER}`,
    ]);
    expect(
      (await contentOf(snapshot, 2 * CLUSTER, CLUSTER)).equals(
        old.subarray(2 * CLUSTER, 3 * CLUSTER),
      ),
    ).toBe(true);
    await expect(contentOf(snapshot, 2 * CLUSTER, CLUSTER + 1)).rejects.toMatchObject({
      code: 'DF_ACCESS',
    });
  });

  it('is slipped in below a writer by a reopen of the node above, and taken out again', async () => {
    const { add, writer, graph, target, old } = await makeBench();
    const disk = { driver: 'raw', 'node-name': 'disk' };
    const guest = await writer(await add({ ...disk, file: 'source' }));
    await guest.write(0, Buffer.alloc(512, 1));
    const first = Buffer.from(old);
    first.fill(1, 0, 512);
    await add(FILTER);
    await reopenNodes(graph, [{ ...disk, file: 'cbw' }]);
    const snapshot = await add(SNAPSHOT);
    await guest.write(0, Buffer.alloc(512, 2));
    expect((await contentOf(snapshot)).equals(first)).toBe(true);
    expect(target.data.subarray(0, CLUSTER).equals(first.subarray(0, CLUSTER))).toBe(true);
    await graph.remove('snap');
    await reopenNodes(graph, [{ ...disk, file: 'source' }]);
    await graph.remove('cbw');
    await guest.write(4096, Buffer.alloc(512, 3));
    expect(target.data.subarray(4096, 4608).equals(first.subarray(4096, 4608))).toBe(true);
  });

  it('is not to be used beside a writer that goes past it', async () => {
    const { add, writer, graph } = await makeBench();
    await writer(graph.get('source'));
    await add(FILTER);
    await expect(add(SNAPSHOT)).rejects.toThrow(
      "Permission conflict on node 'source': permissions 'write' are both required by " +
        "export 'guest' (uses node 'source' as 'root' child) and unshared by node 'cbw' " +
        "(uses node 'source' as 'file' child).",
    );
    expect(graph.find('snap')).toBeUndefined();
  });

  it('keeps its children and options when it is reopened', async () => {
    const { add, graph } = await makeBench();
    await add(FILTER);
    await reopenNodes(graph, [FILTER]);
    await expect(reopenNodes(graph, [{ ...FILTER, target: 'source' }])).rejects.toThrow(
      "Block format 'copy-before-write' used by node",
    );
    for (const [key, value] of [
      ['cbw-timeout', 3],
      ['on-cbw-error', 'break-snapshot'],
      ['min-cluster-size', 1 << 20],
    ]) {
      await expect(reopenNodes(graph, [{ ...FILTER, [String(key)]: value }])).rejects.toThrow(
        `Cannot change the option '${key}'`,
      );
    }
  });

  it('refuses a target that is too small, and clusters of odd sizes', async () => {
    const { add, graph } = await makeBench();
    await openNode(graph, { driver: 'memory', 'node-name': 'small', size: 512 });
    const small = { driver: 'memory', 'node-name': 'tiny', size: 512 };
    await expect(add({ ...FILTER, target: small })).rejects.toThrow(
      'Source and target image have different sizes',
    );
    await expect(add({ ...FILTER, 'min-cluster-size': 100_000 })).rejects.toThrow(
      'min-cluster-size needs to be a power of 2',
    );
    await expect(add({ ...FILTER, 'min-cluster-size': 2 ** 25 })).rejects.toThrow(
      'min-cluster-size too large',
    );
    await expect(add({ ...FILTER, bitmap: { node: 'source', name: 'x' } })).rejects.toThrow(
      "Dirty bitmap 'x' not found",
    );
  });
});

describe('a snapshot of which parts are not needed any more', () => {
  /** The filter's driver, through which a backup discards. */
  async function withSnapshot() {
    const bench = await makeBench();
    const node = await bench.add(FILTER);
    const { driver } = node;
    if (!(driver instanceof CopyBeforeWriteDriver)) throw new Error('no filter');
    const guest = await bench.writer(node);
    return { ...bench, driver, guest, snapshot: await bench.add(SNAPSHOT) };
  }

  it('gives back what was saved of them, and saves nothing of them again', async () => {
    const { driver, guest, target, snapshot, old } = await withSnapshot();
    await guest.write(0, Buffer.alloc(4 * CLUSTER, 1));
    await driver.discardSnapshot(CLUSTER, 2 * CLUSTER);
    expect(target.data.subarray(CLUSTER, 3 * CLUSTER).every((byte) => byte === 0)).toBe(true);
    await driver.discardSnapshot(8 * CLUSTER, CLUSTER);
    const before = target.calls.length;
    await guest.write(8 * CLUSTER, Buffer.alloc(CLUSTER, 2));
    await guest.write(CLUSTER, Buffer.alloc(CLUSTER, 2));
    expect(target.calls.length).toBe(before);
    for (const at of [0, 3 * CLUSTER, 7 * CLUSTER, 9 * CLUSTER]) {
      const kept = await contentOf(snapshot, at, CLUSTER);
      expect(kept.equals(old.subarray(at, at + CLUSTER)), String(at)).toBe(true);
    }
    for (const at of [CLUSTER, 2 * CLUSTER, 8 * CLUSTER]) {
      await expect(contentOf(snapshot, at, 512)).rejects.toMatchObject({ code: 'DF_ACCESS' });
    }
  });

  it('keeps clusters that are not needed in part only', async () => {
    const { driver, guest, snapshot, old } = await withSnapshot();
    await driver.discardSnapshot(CLUSTER - 1, CLUSTER);
    await driver.discardSnapshot(15 * CLUSTER + 1, CLUSTER);
    await guest.write(0, Buffer.alloc(SIZE, 1));
    expect((await contentOf(snapshot)).equals(old)).toBe(true);
  });

  it('takes the short cluster at the end as a whole one', async () => {
    const { driver, snapshot } = await withSnapshot();
    await driver.discardSnapshot(16 * CLUSTER, 5 * KIB);
    await expect(contentOf(snapshot, SIZE - 1, 1)).rejects.toMatchObject({ code: 'DF_ACCESS' });
  });

  it('waits for a copy that is under way, so that its room is given back as well', async () => {
    const { driver, guest, target } = await withSnapshot();
    const open = gate(target);
    const writing = Promise.resolve(guest.write(0, Buffer.alloc(CLUSTER, 1)));
    await Promise.resolve();
    const discarding = driver.discardSnapshot(0, CLUSTER);
    open();
    await Promise.all([writing, discarding]);
    expect(target.data.every((byte) => byte === 0)).toBe(true);
  });

  it('waits for who reads them from the target', async () => {
    const { driver, guest, target, snapshot, old } = await withSnapshot();
    await guest.write(0, Buffer.alloc(CLUSTER, 1));
    const open = gate(target);
    const reading = contentOf(snapshot, 0, CLUSTER);
    await sleep(1);
    const discarding = driver.discardSnapshot(0, CLUSTER);
    await sleep(1);
    open();
    expect((await reading).equals(old.subarray(0, CLUSTER))).toBe(true);
    await discarding;
    expect(target.data.every((byte) => byte === 0)).toBe(true);
  });
});
