// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../../src/block/permissions.js';
import { contentOf, filterGraph, memoryOf } from './filter-graph.js';

const SIZE = 64 * 1024;

async function debugged(options: Record<string, unknown>, size = SIZE) {
  const filters = filterGraph();
  const node = await filters.add({
    driver: 'blkdebug',
    'node-name': 'd',
    ...options,
    image: { driver: 'memory', 'node-name': 'image', size },
  });
  return { ...filters, node, image: memoryOf(filters.graph.get('image')) };
}

const attempt = async (run: () => unknown): Promise<string> => {
  try {
    await run();
    return 'fine';
  } catch (error) {
    return error instanceof Error && 'context' in error
      ? String((error.context as { errno?: string }).errno)
      : String(error);
  }
};

describe('inject-error', () => {
  it('fails every request from the event on, with EIO when no errno is given', async () => {
    const { node } = await debugged({ 'inject-error': [{ event: 'write_aio' }] });
    expect(await attempt(() => node.read(0, Buffer.alloc(512)))).toBe('fine');
    expect(await attempt(() => node.write(0, Buffer.alloc(512)))).toBe('EIO');
    expect(await attempt(() => node.read(0, Buffer.alloc(512)))).toBe('EIO');
  });

  it('fails once when asked to', async () => {
    const { node } = await debugged({
      'inject-error': [{ event: 'write_aio', errno: 28, once: true }],
    });
    expect(await attempt(() => node.write(0, Buffer.alloc(512)))).toBe('ENOSPC');
    expect(await attempt(() => node.write(0, Buffer.alloc(512)))).toBe('fine');
  });

  it('fails only requests of one type', async () => {
    const { node } = await debugged({
      'inject-error': [{ event: 'none', iotype: 'flush', errno: 5 }],
    });
    expect(await attempt(() => node.write(0, Buffer.alloc(512)))).toBe('fine');
    expect(await attempt(() => node.flush())).toBe('EIO');
  });

  it('fails block status only when it is asked for by name', async () => {
    const all = await debugged({ 'inject-error': [{ event: 'none' }] });
    expect(await attempt(() => all.node.blockStatus(0, 512))).toBe('fine');
    const status = await debugged({ 'inject-error': [{ event: 'none', iotype: 'block-status' }] });
    expect(await attempt(() => status.node.blockStatus(0, 512))).toBe('EIO');
  });

  it('fails only requests that touch the sector', async () => {
    const { node } = await debugged({ 'inject-error': [{ event: 'none', sector: 3 }] });
    expect(await attempt(() => node.read(0, Buffer.alloc(1536)))).toBe('fine');
    expect(await attempt(() => node.read(0, Buffer.alloc(1537)))).toBe('EIO');
    expect(await attempt(() => node.read(2048, Buffer.alloc(512)))).toBe('fine');
  });

  it('fails within the call when immediately is set, later otherwise', async () => {
    const now = await debugged({ 'inject-error': [{ event: 'none', immediately: true }] });
    expect(() => now.node.read(0, Buffer.alloc(1))).toThrow('blkdebug: read of 1 bytes at 0');
    const later = await debugged({ 'inject-error': [{ event: 'none' }] });
    const pending = later.node.read(0, Buffer.alloc(1));
    expect(pending).toBeInstanceOf(Promise);
    await expect(pending).rejects.toThrow('blkdebug: read of 1 bytes at 0');
  });

  it('arms other rules as the state changes', async () => {
    const { node } = await debugged({
      'inject-error': [
        { event: 'read_aio', state: 2, errno: 5 },
        { event: 'write_aio', state: 2, errno: 28 },
      ],
      'set-state': [
        { event: 'flush_to_disk', state: 1, new_state: 2 },
        { event: 'flush_to_disk', state: 2, new_state: 1 },
      ],
    });
    expect(await attempt(() => node.write(0, Buffer.alloc(1)))).toBe('fine');
    await node.flush();
    expect(await attempt(() => node.write(0, Buffer.alloc(1)))).toBe('ENOSPC');
    expect(await attempt(() => node.read(0, Buffer.alloc(1)))).toBe('EIO');
  });

  it('refuses events that are never raised', async () => {
    await expect(debugged({ 'inject-error': [{ event: 'l2_update' }] })).rejects.toThrow(
      "Parameter 'event' does not accept value 'l2_update'",
    );
  });
});

describe('limits', () => {
  it('make the node pad to the alignment, past an odd end too', async () => {
    const { node, image } = await debugged({ align: 4096 }, 10_000);
    await node.write(9000, Buffer.alloc(1000, 7));
    expect((await contentOf(node, 8999, 1001))[1]).toBe(7);
    expect(image.size).toBe(10_000);
    for (const call of image.calls) expect(Number(call.split(' ')[1]) % 4096).toBe(0);
  });

  it('split requests at max-transfer and max-write-zero', async () => {
    const { node, image } = await debugged({ 'max-transfer': 4096, 'max-write-zero': 8192 });
    await node.write(0, Buffer.alloc(10_000));
    expect(image.calls).toEqual(['write 0 4096', 'write 4096 4096', 'write 8192 1808']);
    image.calls.length = 0;
    await node.writeZeroes(0, 20_000);
    expect(image.calls).toEqual(['write 0 8192', 'write 8192 8192', 'write 16384 3616']);
  });

  it.each([
    [{ align: 3000 }, 'Cannot meet constraints with align 3000'],
    [{ align: 4096, 'max-transfer': 6000 }, 'Cannot meet constraints with max-transfer 6000'],
    [
      { 'opt-write-zero': 4096, 'max-write-zero': 6144 },
      'Cannot meet constraints with max-write-zero 6144',
    ],
    [{ 'max-discard': -1 }, 'Cannot meet constraints with max-discard -1'],
  ])('%j are refused', async (options, message) => {
    await expect(debugged(options)).rejects.toThrow(message);
  });
});

it('takes and withholds the permissions that it is told to', async () => {
  const { node, use } = await debugged({
    'take-child-perms': ['write'],
    'unshare-child-perms': ['write', 'resize'],
  });
  await use(node, PERM_CONSISTENT_READ);
  const edge = node.children.get('image');
  expect(edge?.taken).toBe(PERM_CONSISTENT_READ | PERM_WRITE);
  expect(edge?.shared).toBe(PERM_ALL & ~(PERM_WRITE | 8));
});
