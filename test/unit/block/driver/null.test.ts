// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { STATUS_ZERO } from '../../../../src/block/block-driver.js';
import { blockDriverSuite } from '../../../suite/block-driver.suite.js';
import { useNode } from './test-graph.js';

for (const driver of ['null-co', 'null-aio']) {
  blockDriverSuite(driver, (size) => useNode({ driver, size }), { keepsContent: false });
}
blockDriverSuite(
  'null-co with a latency below a millisecond',
  (size) => useNode({ driver: 'null-co', size, 'latency-ns': 1000 }),
  { keepsContent: false },
);

describe('null', () => {
  it('has 1 GiB when no size is given', async () => {
    const { node, close } = await useNode({ driver: 'null-co' });
    expect(node.size).toBe(2 ** 30);
    await close();
  });

  it('completes at once as null-co and later as null-aio', async () => {
    const at = await useNode({ driver: 'null-co' });
    expect(at.node.read(0, Buffer.alloc(512))).toBeUndefined();
    await at.close();
    const later = await useNode({ driver: 'null-aio' });
    const pending = later.node.read(0, Buffer.alloc(512));
    expect(pending).toBeInstanceOf(Promise);
    await pending;
    await later.close();
  });

  it('waits for the latency', async () => {
    const { node, close } = await useNode({ driver: 'null-co', 'latency-ns': 2_000_000 });
    expect(node.write(0, Buffer.alloc(512))).toBeInstanceOf(Promise);
    await node.flush();
    await close();
  });

  it('says that it reads as zeroes only with read-zeroes', async () => {
    for (const promised of [true, false]) {
      const { node, close } = await useNode({ driver: 'null-co', 'read-zeroes': promised });
      const extent = await node.blockStatus(0, 4096);
      expect((extent.flags & STATUS_ZERO) !== 0).toBe(promised);
      await close();
    }
  });

  it('never leaks memory through a read', async () => {
    const { node, close } = await useNode({ driver: 'null-co' });
    const buffer = Buffer.alloc(64, 0xaa);
    await node.read(0, buffer);
    expect(buffer).toEqual(Buffer.alloc(64));
    await close();
  });

  it('refuses a negative latency and a size that no node can have', async () => {
    await expect(useNode({ driver: 'null-co', 'latency-ns': -1 })).rejects.toThrow(
      'latency-ns is invalid',
    );
    await expect(useNode({ driver: 'null-co', size: -1 })).rejects.toThrow("Parameter 'size'");
    await expect(useNode({ driver: 'null-co', size: 2n ** 63n })).rejects.toThrow(
      "Parameter 'size'",
    );
  });
});
