// SPDX-License-Identifier: MIT
/** x-blockdev-change: children that come and go under a user who writes. */
import { setImmediate } from 'node:timers/promises';
import { beforeEach, describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.js';
import type { BlockBackend } from '../../../src/block/backend.js';
import { addChild, removeChild } from '../../../src/block/change-children.js';
import { PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { reopenNodes } from '../../../src/block/reopen.js';
import { type FilterGraph, filterGraph, memoryOf } from './filter/filter-graph.js';

const SIZE = 64 * 1024;
const QUORUM = { driver: 'quorum', 'node-name': 'q' };

let filters: FilterGraph;
let guest: BlockBackend;

const memory = (name: string, more = {}) => ({
  ...{ driver: 'memory', 'node-name': name, size: SIZE, ...more },
});
const get = (name: string) => filters.graph.get(name);
const add = (parent: string, node: string) => addChild(filters.graph, get(parent), get(node));
const remove = (parent: string, key: string) => removeChild(filters.graph, get(parent), key);
const shape = () => [...get('q').children].map(([key, { node }]) => `${key}=${node.name}`);
const firstBytes = (...names: string[]) => names.map((name) => memoryOf(get(name)).data[0]);

async function quorum(children: unknown[], threshold: number, more = {}): Promise<void> {
  const node = await filters.add({ ...QUORUM, children, 'vote-threshold': threshold, ...more });
  guest = await filters.use(node, PERM_CONSISTENT_READ | PERM_WRITE);
}

async function refused(change: () => Promise<void>, text: string): Promise<void> {
  const before = shape();
  await expect(change()).rejects.toThrow(text);
  expect(shape()).toEqual(before);
  await guest.write(0, Buffer.alloc(512, 9));
}

beforeEach(async () => {
  filters = filterGraph();
  for (const name of ['a', 'b', 'c', 'd']) await filters.add(memory(name));
});

describe('a child that comes', () => {
  it('gets all later writes and has a vote', async () => {
    await quorum(['a', 'b'], 2);
    await guest.write(0, Buffer.alloc(512, 1));
    memoryOf(get('c')).data.fill(1, 0, 512);
    await add('q', 'c');
    expect(shape()).toEqual(['children.0=a', 'children.1=b', 'children.2=c']);
    memoryOf(get('a')).data[0] = 7;
    const buffer = Buffer.alloc(512);
    await guest.read(0, buffer);
    expect(buffer[0]).toBe(1);
    await guest.write(0, Buffer.alloc(512, 2));
    expect(firstBytes('a', 'b', 'c')).toEqual([2, 2, 2]);
  });

  it('is written to by nobody else any more', async () => {
    await quorum(['a', 'b'], 2);
    await add('q', 'c');
    await expect(filters.use(get('c'), PERM_WRITE)).rejects.toMatchObject({
      code: 'DF_PERMISSION_CONFLICT',
    });
  });

  it('waits for requests that are in flight', async () => {
    await quorum(['a', 'b'], 2);
    let release = () => {};
    memoryOf(get('a')).delay = () =>
      new Promise((resolve) => {
        release = resolve;
      });
    const writing = guest.write(0, Buffer.alloc(512, 5));
    const adding = add('q', 'c');
    await setImmediate();
    expect(shape().length).toBe(2);
    memoryOf(get('a')).delay = undefined;
    release();
    await Promise.all([writing, adding]);
    expect(firstBytes('a', 'b', 'c')).toEqual([5, 5, 0]);
  });

  it('is refused where it does not fit', async () => {
    await filters.add(memory('big', { size: 2 * SIZE }));
    await filters.add(memory('ro', { 'read-only': true }));
    await quorum(['a', 'b'], 2);
    await refused(() => add('q', 'a'), 'The node a already has a parent');
    await refused(() => add('a', 'c'), 'The node a does not support adding a child');
    await refused(() => add('q', 'big'), "Node 'big' has 131072 bytes, the copies of the quorum");
    await refused(() => add('q', 'ro'), "Block node 'ro' is read-only");
    expect(get('ro').parents.size).toBe(0);
  });

  it('is refused when it would be below itself', async () => {
    const node = await filters.add({ ...QUORUM, children: ['a'], 'vote-threshold': 1 });
    expect(node.parents.size).toBe(0);
    await expect(add('q', 'q')).rejects.toThrow(
      "Making 'q' a children.1 child of 'q' would create a cycle",
    );
  });

  it('is refused by a quorum that compares two', async () => {
    await quorum(['a', 'b'], 2, { blkverify: true });
    await refused(() => add('q', 'c'), 'Cannot add a child to a quorum in blkverify mode');
  });
});

describe('a child that goes', () => {
  it('gets no more writes, and is closed when nobody wants it', async () => {
    await quorum(['a', 'b', memory('inline')], 2);
    await remove('q', 'children.0');
    await guest.write(0, Buffer.alloc(512, 3));
    expect(firstBytes('a', 'b')).toEqual([0, 3]);
    expect(get('a').parents.size).toBe(0);
    await add('q', 'c');
    await remove('q', 'children.2');
    expect(filters.graph.find('inline')).toBeUndefined();
  });

  it('is refused below the threshold, and where there is none', async () => {
    await quorum(['a', 'b'], 2);
    await refused(
      () => remove('q', 'children.0'),
      'The number of children cannot be lower than the vote threshold 2',
    );
    await refused(() => remove('q', 'children.7'), "Node 'q' does not have child 'children.7'");
    await filters.add({ driver: 'format', 'node-name': 'f', file: 'c' });
    await refused(() => remove('f', 'file'), 'The node f does not support removing a child');
  });

  it('leaves a number that only the last child hands on', async () => {
    await quorum(['a', 'b', 'c'], 1);
    await remove('q', 'children.0');
    await add('q', 'd');
    expect(shape()).toEqual(['children.1=b', 'children.2=c', 'children.3=d']);
    await remove('q', 'children.3');
    await add('q', 'a');
    expect(shape()).toEqual(['children.1=b', 'children.2=c', 'children.3=a']);
  });

  it('takes what it has missed with it', async () => {
    await quorum(['a', 'b', 'c'], 1);
    memoryOf(get('c')).fail.write = new BlockError('DF_NO_SPACE', 'full');
    await guest.write(0, Buffer.alloc(512, 4));
    await remove('q', 'children.2');
    delete memoryOf(get('c')).fail.write;
    memoryOf(get('c')).data.fill(4, 0, 512);
    await add('q', 'c');
    for (const name of ['a', 'b']) memoryOf(get(name)).fail.read = new BlockError('DF_IO', 'no');
    const buffer = Buffer.alloc(512);
    await guest.read(0, buffer);
    expect(buffer[0]).toBe(4);
  });
});

describe('reopening a node with a list of children', () => {
  const options = (children: unknown[], more = {}) => ({
    ...{ ...QUORUM, children, 'vote-threshold': 1, ...more },
  });

  it('takes other options of every node, with the children as they are now', async () => {
    await quorum(['a', 'b'], 1);
    await add('q', 'c');
    await reopenNodes(filters.graph, [options(['a', 'b', 'c'], { discard: 'unmap' })]);
    expect(get('q').options.discard).toBe('unmap');
  });

  it('refuses other children, another order and other options of its own', async () => {
    await quorum(['a', 'b'], 1);
    const unsupported = "Block format 'quorum' used by node 'q' does not support reopening files";
    for (const children of [['a'], ['b', 'a'], ['a', 'b', 'c']]) {
      await refused(() => reopenNodes(filters.graph, [options(children)]), unsupported);
    }
    await refused(
      () => reopenNodes(filters.graph, [options(['a', 'b'], { 'vote-threshold': 2 })]),
      "Cannot change the option 'vote-threshold'",
    );
  });
});
