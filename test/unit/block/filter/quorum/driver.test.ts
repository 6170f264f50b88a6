// SPDX-License-Identifier: MIT
/** Requests of a quorum node: to which copies they go, and what comes of copies that fail or differ. */
import { beforeEach, describe, expect, it } from 'vitest';
import { BlockError } from '../../../../../src/base/errors.js';
import type { BlockBackend } from '../../../../../src/block/backend.js';
import {
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  REQ_PREFETCH,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from '../../../../../src/block/block-driver.js';
import { drained } from '../../../../../src/block/drain.js';
import { PassThroughDriver } from '../../../../../src/block/filter/pass-through.js';
import { insertFilter, removeFilterLocked } from '../../../../../src/block/insert-filter.js';
import type { BlockNode } from '../../../../../src/block/node.js';
import { PERM_CONSISTENT_READ, PERM_WRITE } from '../../../../../src/block/permissions.js';
import type { MemoryDriver } from '../../../../support/memory-driver.js';
import { contentOf, type FilterGraph, filterGraph, memoryOf } from '../filter-graph.js';

const SIZE = 64 * 1024;
const FULL = new BlockError('DF_NO_SPACE', 'full', { errno: 'ENOSPC' });
const BROKEN = new BlockError('DF_IO', 'broken', { errno: 'EIO' });

let filters: FilterGraph;
let events: string[];
let guest: BlockBackend;
let node: BlockNode;
let copies: MemoryDriver[];

beforeEach(() => {
  filters = filterGraph();
  events = [];
  filters.graph.observer = {
    copyBad: (copy, { operation, offset, length, error }) =>
      events.push(
        `${copy.name} ${operation} ${offset}+${length} ${(error as Error)?.message ?? 'differs'}`,
      ),
    copiesFailed: ({ name }, offset, length) => events.push(`${name} fails ${offset}+${length}`),
  };
});

const memory = (name: string, more = {}) => ({
  ...{ driver: 'memory', 'node-name': name, size: SIZE, discard: 'unmap', ...more },
});

/** A quorum `q` of copies `c0`, `c1`..., written to by a guest. */
async function quorum(count: number, threshold: number, more = {}): Promise<void> {
  const names = Array.from({ length: count }, (_, index) => `c${index}`);
  for (const name of names) await filters.add(memory(name));
  node = await filters.add({
    ...{ driver: 'quorum', 'node-name': 'q', children: names, 'vote-threshold': threshold },
    ...{ discard: 'unmap', ...more },
  });
  copies = names.map((name) => memoryOf(filters.graph.get(name)));
  guest = await filters.use(node, PERM_CONSISTENT_READ | PERM_WRITE);
}

const copy = (index: number): MemoryDriver => {
  const found = copies[index];
  if (found === undefined) throw new Error(`no copy ${index}`);
  return found;
};

async function read(offset: number, length: number): Promise<string> {
  const buffer = Buffer.alloc(length, 0xee);
  await guest.read(offset, buffer);
  return buffer.toString();
}

/** Turns a throw into a rejection: both are ways to fail. */
async function called(request: () => unknown): Promise<void> {
  await request();
}

const put = (index: number, offset: number, text: string): void => {
  copy(index).data.write(text, offset);
};

describe('writes', () => {
  it('go to every copy', async () => {
    await quorum(3, 2);
    await guest.write(100, Buffer.from('abcdef'));
    await guest.writeZeroes(101, 2, REQ_MAY_UNMAP);
    for (const { data } of copies) expect(data.toString('utf8', 100, 106)).toBe('a\0\0def');
    expect(await read(100, 6)).toBe('a\0\0def');
    expect(events).toEqual([]);
  });

  it('succeed when enough copies do, and tell of the others', async () => {
    await quorum(3, 2);
    copy(1).fail.write = FULL;
    await guest.write(512, Buffer.from('new'));
    expect(events).toEqual(['c1 write 512+3 full']);
    expect(await read(512, 3)).toBe('new');
  });

  it('fail with the error that most copies have', async () => {
    await quorum(3, 2);
    copy(0).fail.write = FULL;
    copy(1).fail.write = BROKEN;
    copy(2).fail.write = FULL;
    await expect(called(() => guest.write(0, Buffer.alloc(8)))).rejects.toMatchObject({
      code: 'DF_NO_SPACE',
      context: { errno: 'ENOSPC' },
      message: 'quorum: write failed on 3 of 3 copies',
    });
    expect(events.at(-1)).toBe('q fails 0+8');
  });

  it('with FUA are flushed by each copy', async () => {
    await quorum(2, 2);
    await guest.write(0, Buffer.from('x'), REQ_FUA);
    expect(copies.map(({ flushes }) => flushes)).toEqual([1, 1]);
  });

  it('that overlap reach all copies in one order', async () => {
    await quorum(2, 2);
    const releases: (() => void)[] = [];
    copy(1).delay = () => new Promise((resolve) => releases.push(resolve));
    const first = guest.write(0, Buffer.alloc(1024, 'a'));
    const second = guest.write(512, Buffer.alloc(1024, 'b'));
    const other = guest.write(4096, Buffer.alloc(512, 'c'));
    expect(copy(0).calls).toEqual(['write 0 1024', 'write 4096 512']);
    copy(1).delay = undefined;
    for (const release of releases) release();
    await Promise.all([first, second, other]);
    expect(copy(0).data.equals(copy(1).data)).toBe(true);
    expect(copy(0).calls.at(-1)).toBe('write 512 1024');
  });

  it('of zeroes that must be fast are refused, unchanged, where one copy has only the slow way', async () => {
    await quorum(2, 2);
    await guest.write(0, Buffer.from('abc'));
    Object.assign(copy(1), { features: { ...copy(1).features, writeZeroes: false } });
    await expect(guest.writeZeroes(0, 3, REQ_NO_FALLBACK)).rejects.toMatchObject({
      code: 'DF_NOT_SUPPORTED',
    });
    expect(await read(0, 3)).toBe('abc');
    expect(copy(0).data.toString('utf8', 0, 3)).toBe('abc');
  });
});

describe('discards', () => {
  it('leave zeroes in every copy, so that copies still agree', async () => {
    await quorum(2, 2);
    await guest.write(0, Buffer.alloc(8192, 'x'));
    await guest.discard(0, 4096);
    expect(await read(0, 4096)).toBe('\0'.repeat(4096));
    expect(copy(0).data.equals(copy(1).data)).toBe(true);
    expect(events).toEqual([]);
  });

  it('do nothing where a copy could only be written full of zeroes', async () => {
    await quorum(2, 2);
    await guest.write(0, Buffer.from('abc'));
    Object.assign(copy(1), { features: { ...copy(1).features, writeZeroes: false } });
    await guest.discard(0, 4096);
    expect(await read(0, 3)).toBe('abc');
  });
});

describe('reads', () => {
  it('give what most copies have, and tell of those that differ', async () => {
    await quorum(3, 2);
    await guest.write(0, Buffer.from('good'));
    put(0, 0, 'evil');
    expect(await read(0, 4)).toBe('good');
    expect(events).toEqual(['c0 read 0+4 differs']);
    expect(copy(0).data.toString('utf8', 0, 4)).toBe('evil');
  });

  it('do without a copy that fails', async () => {
    await quorum(3, 2);
    await guest.write(0, Buffer.from('good'));
    copy(0).fail.read = BROKEN;
    expect(await read(0, 4)).toBe('good');
    expect(events).toEqual(['c0 read 0+4 broken']);
  });

  it('fail when too few copies can be read', async () => {
    await quorum(3, 2);
    copy(0).fail.read = BROKEN;
    copy(2).fail.read = BROKEN;
    await expect(read(0, 4)).rejects.toMatchObject({ code: 'DF_IO', context: { errno: 'EIO' } });
    expect(events).toEqual(['c0 read 0+4 broken', 'c2 read 0+4 broken', 'q fails 0+4']);
  });

  it('fail when too few copies agree', async () => {
    await quorum(3, 2);
    put(0, 600, 'a');
    put(1, 600, 'b');
    await expect(read(512, 512)).rejects.toThrow(
      'no 2 up-to-date copies agree on 512 bytes at 512',
    );
    expect(events).toEqual(['q fails 512+512']);
  });

  it('vote all the same where the content is not wanted', async () => {
    await quorum(3, 2);
    put(0, 0, 'evil');
    await guest.read(0, Buffer.alloc(512), REQ_PREFETCH);
    expect(events).toEqual(['c0 read 0+512 differs']);
  });

  it('wait for a write that has reached only some copies, and see no damage in it', async () => {
    await quorum(3, 2, { 'rewrite-corrupted': true });
    let release = () => {};
    copy(2).delay = () =>
      new Promise((resolve) => {
        release = resolve;
      });
    const writing = guest.write(0, Buffer.from('new'));
    copy(2).delay = undefined;
    const reading = read(0, 3);
    release();
    await writing;
    expect(await reading).toBe('new');
    expect(events).toEqual([]);
  });

  it('take long ones in pieces', async () => {
    await filters.add(memory('big', { size: 9 * 1024 * 1024 }));
    node = await filters.add({
      ...{ driver: 'quorum', 'node-name': 'q', children: ['big'], 'vote-threshold': 1 },
    });
    await contentOf(node);
    const calls = memoryOf(filters.graph.get('big')).calls.map((call) => call.split(' ')[2]);
    expect(calls).toEqual(['4194304', '4194304', '1048576']);
  });
});

describe('rewrite-corrupted', () => {
  it('mends copies that were outvoted', async () => {
    await quorum(3, 2, { 'rewrite-corrupted': true });
    await guest.write(0, Buffer.from('good'));
    put(0, 0, 'evil');
    expect(await read(0, 4)).toBe('good');
    expect(copy(0).data.toString('utf8', 0, 4)).toBe('good');
    events.length = 0;
    expect(await read(0, 4)).toBe('good');
    expect(events).toEqual([]);
  });

  it('answers the reader even when a copy can not be mended', async () => {
    await quorum(3, 2, { 'rewrite-corrupted': true });
    put(2, 0, 'evil');
    copy(2).fail.write = FULL;
    expect(await read(0, 4)).toBe('\0\0\0\0');
  });
});

describe('blkverify', () => {
  it('fails a read that differs and says where', async () => {
    await quorum(2, 2, { blkverify: true });
    put(1, 1234, 'x');
    await expect(read(1024, 512)).rejects.toThrow(
      'quorum: offset=1024 bytes=512 contents mismatch at offset 1234',
    );
    expect(await read(0, 1024)).toBe('\0'.repeat(1024));
  });
});

describe('read pattern fifo', () => {
  it('reads one copy after the other until one can', async () => {
    await quorum(3, 1, { 'read-pattern': 'fifo' });
    put(0, 0, 'zero');
    put(1, 0, 'one.');
    expect(await read(0, 4)).toBe('zero');
    copy(0).fail.read = BROKEN;
    expect(await read(0, 4)).toBe('one.');
    expect(events).toEqual(['c0 read 0+4 broken']);
  });

  it('fails with the last error when none can', async () => {
    await quorum(2, 1, { 'read-pattern': 'fifo' });
    copy(0).fail.read = FULL;
    copy(1).fail.read = BROKEN;
    await expect(read(0, 4)).rejects.toBe(BROKEN);
  });

  it('never gives what was there before an acknowledged write that the first copy missed', async () => {
    await quorum(2, 1, { 'read-pattern': 'fifo' });
    await guest.write(0, Buffer.from('old. old.'));
    copy(0).fail.write = FULL;
    await guest.write(5, Buffer.from('new.'));
    delete copy(0).fail.write;
    expect(await read(0, 9)).toBe('old. new.');
    copy(1).fail.read = BROKEN;
    await expect(read(5, 4)).rejects.toMatchObject({ code: 'DF_IO' });
    await guest.write(0, Buffer.alloc(512, 'w'));
    expect(await read(5, 4)).toBe('wwww');
  });
});

describe('a copy that has missed an acknowledged write', () => {
  const missing = async (index: number, offset: number, text: string): Promise<void> => {
    copy(index).fail.write = FULL;
    await guest.write(offset, Buffer.from(text));
    delete copy(index).fail.write;
  };

  it('can not win the vote there, however the votes fall', async () => {
    await quorum(2, 1);
    await missing(1, 0, 'new');
    expect(await read(0, 3)).toBe('new');
    copy(0).fail.read = BROKEN;
    await expect(read(0, 3)).rejects.toThrow('no 1 up-to-date copies agree');
    expect(await read(1024, 3)).toBe('\0\0\0');
  });

  it('does not spoil what others have missed elsewhere', async () => {
    await quorum(2, 1);
    await missing(0, 0, 'one');
    await missing(1, 4096, 'two');
    const all = await read(0, 8192);
    expect([all.slice(0, 3), all.slice(4096, 4099)]).toEqual(['one', 'two']);
  });

  it('is trusted again where it has been mended', async () => {
    await quorum(3, 2, { 'rewrite-corrupted': true });
    await missing(2, 0, 'x'.repeat(512));
    await read(0, 512);
    copy(0).fail.read = BROKEN;
    expect(await read(0, 3)).toBe('xxx');
    await missing(1, 0, 'y'.repeat(512));
    delete copy(0).fail.read;
    expect(await read(0, 3)).toBe('yyy');
  });

  it('stays known below a filter that comes and goes', async () => {
    await quorum(2, 1);
    await missing(1, 0, 'new');
    const { graph } = filters;
    const below = graph.get('c1');
    const filter = await insertFilter(graph, below, {
      ...{ name: 'f', childName: 'file' },
      driver: (edge) => new PassThroughDriver('pass', edge),
    });
    expect(await read(0, 3)).toBe('new');
    await graph.exclusive(() =>
      drained([filter, below], () => removeFilterLocked(graph, filter, below)),
    );
    expect(await read(0, 3)).toBe('new');
  });

  it('stays known when it is copied elsewhere with what it lacks', async () => {
    await quorum(2, 1);
    await missing(1, 0, 'new');
    const { graph } = filters;
    const below = graph.get('c1');
    const fresh = await filters.add(memory('fresh'));
    const filter = await insertFilter(graph, below, {
      ...{ name: 'f', childName: 'file' },
      driver: (edge) => new PassThroughDriver('pass', edge),
    });
    await graph.exclusive(() =>
      drained([filter, below, fresh], () => removeFilterLocked(graph, filter, fresh)),
    );
    expect(node.children.get('children.1')?.node).toBe(fresh);
    expect(await read(0, 3)).toBe('new');
  });

  it('is forgotten when another node takes its place', async () => {
    await quorum(2, 1);
    await missing(1, 0, 'new');
    const fresh = await filters.add(memory('fresh'));
    memoryOf(fresh).data.write('new');
    await filters.graph.replaceNode(filters.graph.get('c1'), fresh);
    copy(0).fail.read = BROKEN;
    expect(await read(0, 3)).toBe('new');
  });
});

describe('flush', () => {
  it('succeeds when enough copies do, and trusts the others no more', async () => {
    await quorum(2, 1);
    await guest.write(0, Buffer.from('abc'));
    copy(1).fail.flush = BROKEN;
    await guest.flush();
    expect(events).toEqual(['c1 flush 0+0 broken']);
    copy(0).fail.read = BROKEN;
    await expect(read(0, 3)).rejects.toMatchObject({ code: 'DF_IO' });
  });

  it('fails with the error that most copies have', async () => {
    await quorum(3, 2);
    await guest.write(0, Buffer.from('abc'));
    copy(0).fail.flush = BROKEN;
    copy(2).fail.flush = BROKEN;
    await expect(called(() => guest.flush())).rejects.toThrow(
      'quorum: flush failed on 2 of 3 copies',
    );
    expect(events).toEqual(['c0 flush 0+0 broken', 'c2 flush 0+0 broken']);
  });

  it('reaches the copies once each', async () => {
    await quorum(2, 2);
    await guest.write(0, Buffer.from('abc'));
    await guest.flush();
    expect(copies.map(({ flushes }) => flushes)).toEqual([1, 1]);
  });
});

describe('block status', () => {
  it('is zero only where all copies say so', async () => {
    await quorum(2, 2);
    put(0, 4096, 'a'.repeat(512));
    put(1, 8192, 'b'.repeat(1024));
    const at = (offset: number) => node.blockStatus(offset, SIZE - offset);
    expect(await at(0)).toEqual({ length: 4096, flags: STATUS_ZERO | STATUS_ALLOCATED });
    expect(await at(4096)).toEqual({ length: 512, flags: STATUS_DATA | STATUS_ALLOCATED });
    expect(await at(8192)).toEqual({ length: 1024, flags: STATUS_DATA | STATUS_ALLOCATED });
  });
});

describe('a quorum node', () => {
  it('describes itself and its copies', async () => {
    await quorum(2, 1, { 'rewrite-corrupted': true });
    expect(JSON.parse(node.driver.filename.slice('json:'.length))).toEqual({
      ...{ driver: 'quorum', children: [{ driver: 'memory' }, { driver: 'memory' }] },
      ...{ 'vote-threshold': 1, 'rewrite-corrupted': true },
    });
  });

  it('lets nobody else write to a copy', async () => {
    await quorum(2, 1);
    await expect(filters.use(filters.graph.get('c0'), PERM_WRITE)).rejects.toMatchObject({
      code: 'DF_PERMISSION_CONFLICT',
    });
  });
});
