// SPDX-License-Identifier: MIT
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.js';
import { isPromise } from '../../../src/base/maybe-promise.js';
import { BlockBackend } from '../../../src/block/backend.js';
import { DirtyBitmap } from '../../../src/block/bitmap/dirty-bitmap.js';
import {
  DEFAULT_LIMITS,
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
} from '../../../src/block/block-driver.js';
import { PassThroughDriver } from '../../../src/block/filter/pass-through.js';
import { insertFilter } from '../../../src/block/insert-filter.js';
import type { BlockNode } from '../../../src/block/node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { resizeNode } from '../../../src/block/resize.js';
import { setActive } from '../../../src/block/set-active.js';
import { type MemoryDriver, memoryGraph } from '../../support/memory-driver.js';

const SIZE = 64 * 1024;

/** A node over memory with the limits; `later` makes every request wait a turn of the loop. */
async function makeNode(
  limits: Partial<typeof DEFAULT_LIMITS> = {},
  options: Record<string, unknown> = {},
): Promise<{ node: BlockNode; driver: MemoryDriver }> {
  const { driverOf, add } = memoryGraph();
  const node = await add('n', SIZE, options);
  const driver = driverOf(node);
  driver.limits = { ...DEFAULT_LIMITS, ...limits };
  node.refreshLimits();
  return { node, driver };
}

describe('a plain request', () => {
  it('completes at once when its driver does', async () => {
    const { node } = await makeNode();
    expect(node.write(3, Buffer.from('abc'))).toBeUndefined();
    const buffer = Buffer.alloc(5);
    expect(node.read(2, buffer)).toBeUndefined();
    expect(buffer.toString('latin1')).toBe('\0abc\0');
    expect(node.inFlight.count).toBe(0);
  });

  it('is refused past the end, before the driver sees it', async () => {
    const { node, driver } = await makeNode();
    expect(() => node.read(SIZE - 1, Buffer.alloc(2))).toThrow(/reaches past the end of node 'n'/);
    expect(() => node.write(SIZE, Buffer.alloc(1))).toThrow(BlockError);
    expect(() => node.read(-1, Buffer.alloc(1))).toThrow(BlockError);
    expect(driver.calls).toEqual([]);
  });

  it('is refused for writing on a read-only node', async () => {
    const { node } = await makeNode({}, { 'read-only': true });
    expect(() => node.write(0, Buffer.alloc(1))).toThrow("Block node 'n' is read-only");
    expect(() => node.writeZeroes(0, 1)).toThrow('read-only');
    expect(() => node.discard(0, 1)).toThrow('read-only');
  });

  it('counts what succeeded and what failed', async () => {
    const { node, driver } = await makeNode();
    node.write(0, Buffer.alloc(10));
    node.read(0, Buffer.alloc(7));
    driver.fail.read = new Error('bad sector');
    expect(() => node.read(0, Buffer.alloc(7))).toThrow('bad sector');
    expect(node.stats.write.bytes).toBe(10);
    expect([node.stats.read.operations, node.stats.read.failed]).toEqual([1, 1]);
  });
});

describe('FUA and flush', () => {
  it('flushes after a write where the driver has no FUA of its own', async () => {
    const { node, driver } = await makeNode();
    await node.write(0, Buffer.alloc(1), REQ_FUA);
    expect(driver.calls).toEqual(['write 0 1', 'flush 0 0']);
  });

  it('flushes only when something was written since', async () => {
    const { node, driver } = await makeNode();
    await node.flush();
    expect(driver.flushes).toBe(0);
    await node.write(0, Buffer.alloc(1));
    await node.flush();
    await node.flush();
    expect(driver.flushes).toBe(1);
  });

  it('flushes what was written before a filter came above it', async () => {
    const { graph, add, driverOf } = memoryGraph();
    const node = await add('disk', 4096);
    const guest = new BlockBackend('guest');
    await graph.attach(guest, node, { taken: PERM_WRITE, shared: PERM_ALL });
    await guest.write(0, Buffer.alloc(512, 1));
    const filter = await insertFilter(graph, node, {
      name: 'filter',
      childName: 'file',
      driver: (child) => new PassThroughDriver('pass', child),
    });
    await guest.flush();
    expect(driverOf(node).flushes).toBe(1);
    await graph.detach(guest);
    expect(graph.find(filter.name)).toBeUndefined();
  });

  it('tries again after a flush that failed', async () => {
    const { node, driver } = await makeNode();
    await node.write(0, Buffer.alloc(1));
    driver.fail.flush = new Error('EIO');
    expect(() => node.flush()).toThrow('EIO');
    delete driver.fail.flush;
    await node.flush();
    expect(driver.flushes).toBe(1);
  });

  it('does not reach the disk with cache.no-flush', async () => {
    const { node, driver } = await makeNode({}, { cache: { 'no-flush': true } });
    await node.write(0, Buffer.alloc(1));
    await node.flush();
    expect(driver.flushes).toBe(0);
  });
});

describe('zeroes and discards', () => {
  it('does not discard unless the node was told to', async () => {
    const { node, driver } = await makeNode();
    await node.discard(0, 512);
    expect(driver.calls).toEqual([]);
  });

  it('writes zero buffers where the driver can not do better, unless that is forbidden', async () => {
    const { node, driver } = await makeNode();
    driver.data.fill(7);
    driver.writeZeroes = () => {
      throw new BlockError('DF_NOT_SUPPORTED', 'no');
    };
    await expect(node.writeZeroes(0, 512, REQ_NO_FALLBACK)).rejects.toThrow('no');
    await node.writeZeroes(10, 512, REQ_MAY_UNMAP);
    expect(
      driver.data
        .subarray(9, 523)
        .equals(Buffer.concat([Buffer.from([7]), Buffer.alloc(512), Buffer.from([7])])),
    ).toBe(true);
  });

  it('turns written zeroes into write-zeroes with detect-zeroes', async () => {
    const { node, driver } = await makeNode({}, { 'detect-zeroes': 'on' });
    driver.data.fill(7);
    const seen: number[] = [];
    const zeroes = driver.writeZeroes.bind(driver);
    driver.writeZeroes = (offset, length) => {
      seen.push(length);
      return zeroes(offset, length);
    };
    await node.write(0, Buffer.alloc(512));
    await node.write(512, Buffer.alloc(512, 1));
    expect(seen).toEqual([512]);
    expect([driver.data[0], driver.data[512]]).toEqual([0, 1]);
  });
});

describe('tracking', () => {
  it('marks what was written in the bitmaps that record, also when the write failed', async () => {
    const { node, driver } = await makeNode();
    const bitmap = new DirtyBitmap({ size: SIZE, granularity: 512 });
    node.trackers.push(bitmap);
    await node.write(700, Buffer.alloc(1));
    driver.fail.write = new Error('half done');
    expect(() => node.write(2048, Buffer.alloc(1))).toThrow('half done');
    expect([bitmap.isDirty(512), bitmap.isDirty(2048), bitmap.count]).toEqual([true, true, 1024]);
  });

  it('reports once that a write went past the threshold, and by how much', async () => {
    const { node } = await makeNode();
    const seen: number[][] = [];
    node.observer = { writeThresholdExceeded: (_node, by, at) => seen.push([by, at]) };
    node.writeThreshold = 1000;
    await node.write(0, Buffer.alloc(1000));
    await node.write(990, Buffer.alloc(20));
    await node.write(5000, Buffer.alloc(20));
    expect(seen).toEqual([[10, 1000]]);
    expect(node.writeThreshold).toBe(0);
  });
});

describe('resizing', () => {
  it('grows and shrinks, and bitmaps follow', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('n', 4096);
    const bitmap = new DirtyBitmap({ size: 4096, granularity: 512 });
    node.trackers.push(bitmap);
    await resizeNode(graph, node, 8192);
    await node.write(8000, Buffer.alloc(10));
    expect([node.size, bitmap.size, bitmap.isDirty(8000)]).toEqual([8192, 8192, true]);
    await resizeNode(graph, node, 512);
    expect(() => node.read(512, Buffer.alloc(1))).toThrow('past the end');
  });

  it('is refused, with the reason, while somebody needs the size to stay', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('n', 4096);
    const user = new BlockBackend("block job 'j'");
    await graph.attach(user, node, { taken: 0, shared: PERM_CONSISTENT_READ });
    await expect(resizeNode(graph, node, 8192)).rejects.toThrow(
      /permissions 'resize' are both required by block_resize .* unshared by block job 'j'/,
    );
    expect(node.size).toBe(4096);
  });
});

describe('inactive nodes', () => {
  it('refuse I/O until they are active again', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('n', 4096);
    await setActive(graph, { node, active: false, mayIdle: () => false });
    expect(() => node.read(0, Buffer.alloc(1))).toThrow("Block node 'n' is inactive");
    await setActive(graph, { active: true, mayIdle: () => false });
    expect(node.read(0, Buffer.alloc(1))).toBeUndefined();
  });

  it('stay active when somebody needs them', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('n', 4096);
    const user = new BlockBackend("export 'e'");
    await graph.attach(user, node, { taken: PERM_CONSISTENT_READ, shared: PERM_ALL });
    const attempt = setActive(graph, { node, active: false, mayIdle: () => false });
    await expect(attempt).rejects.toThrow("export 'e' uses it");
    expect(node.active).toBe(true);
  });
});

describe('any mix of requests', () => {
  const request = fc.record({
    kind: fc.constantFrom('write', 'zeroes', 'discard', 'read', 'fua' as const),
    offset: fc.nat(SIZE - 1),
    length: fc.integer({ min: 1, max: 9000 }),
    fill: fc.integer({ min: 0, max: 255 }),
  });

  it('leaves what a plain buffer would hold, whatever the alignment and limits', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(request, { minLength: 1, maxLength: 40 }),
        fc.constantFrom(1, 512, 4096),
        fc.constantFrom(0, 4096, 12288),
        fc.boolean(),
        async (requests, requestAlignment, maxTransfer, later) => {
          const { node, driver } = await makeNode(
            { requestAlignment, maxTransfer, maxWriteZeroes: maxTransfer },
            { discard: 'unmap' },
          );
          if (later) driver.delay = () => new Promise((resolve) => setImmediate(resolve));
          const model = Buffer.alloc(SIZE);
          for (const step of requests) await apply(node, model, step, requestAlignment);
          expect(driver.data.equals(model)).toBe(true);
        },
      ),
      { numRuns: 60 },
    );
  });

  it('zeroes less than a block, wherever in the block it starts', async () => {
    for (const [offset, length] of [
      [4096, 1],
      [4096, 4095],
      [5000, 10],
      [8191, 1],
      [4095, 2],
    ] as const) {
      const { node, driver } = await makeNode({ requestAlignment: 4096 });
      const model = Buffer.alloc(SIZE, 0x5a);
      await node.write(0, model);
      await node.writeZeroes(offset, length);
      model.fill(0, offset, offset + length);
      expect(driver.data.equals(model), `${length} bytes at ${offset}`).toBe(true);
    }
  });

  it('keeps neighbours apart when unaligned writes are in flight together', async () => {
    const { node, driver } = await makeNode({ requestAlignment: 4096 });
    driver.delay = () => new Promise((resolve) => setImmediate(resolve));
    const writes = Array.from({ length: 256 }, (_, i) =>
      Promise.resolve(node.write(i * 100, Buffer.alloc(100, i & 0xff))),
    );
    await Promise.all(writes);
    for (let i = 0; i < 256; i++) expect(driver.data[i * 100 + 50]).toBe(i & 0xff);
    expect([node.inFlight.count, node.rangeLock.count]).toEqual([0, 0]);
  });
});

async function apply(
  node: BlockNode,
  model: Buffer,
  step: { kind: string; offset: number; length: number; fill: number },
  alignment: number,
): Promise<void> {
  const { kind, offset, fill } = step;
  const length = Math.min(step.length, SIZE - offset);
  if (kind === 'write' || kind === 'fua') {
    const pending = node.write(offset, Buffer.alloc(length, fill), kind === 'fua' ? REQ_FUA : 0);
    if (isPromise(pending)) await pending;
    model.fill(fill, offset, offset + length);
  } else if (kind === 'zeroes') {
    await node.writeZeroes(offset, length, REQ_MAY_UNMAP);
    model.fill(0, offset, offset + length);
  } else if (kind === 'discard') {
    await node.discard(offset, length);
    const first = Math.ceil(offset / alignment) * alignment;
    const last = Math.floor((offset + length) / alignment) * alignment;
    if (last > first) model.fill(0, first, last);
  } else {
    const buffer = Buffer.alloc(length, 0xee);
    await node.read(offset, buffer);
    expect(buffer.equals(model.subarray(offset, offset + length))).toBe(true);
  }
}
