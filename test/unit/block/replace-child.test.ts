// SPDX-License-Identifier: MIT
/** blockdev-replace: filters that come and go above a node in use. */
import { setImmediate } from 'node:timers/promises';
import { beforeEach, describe, expect, it } from 'vitest';
import type { BlockBackend } from '../../../src/block/backend.js';
import { addingBitmap } from '../../../src/block/bitmap/bitmap-changes.js';
import type { ChildEdge } from '../../../src/block/edge.js';
import { PassThroughDriver } from '../../../src/block/filter/pass-through.js';
import { snapshotAccessDefinition } from '../../../src/block/filter/snapshot-access.js';
import { insertFilter } from '../../../src/block/insert-filter.js';
import { PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { replacingChild } from '../../../src/block/replace-child.js';
import { applyChanges, type Change } from '../../../src/block/transaction.js';
import { contentOf, type FilterGraph, filterGraph, memoryOf } from './filter/filter-graph.js';

const SIZE = 256 * 1024;

let filters: FilterGraph;
let guest: BlockBackend;

const get = (name: string) => filters.graph.get(name);
const memory = (name: string, size = SIZE) => ({ driver: 'memory', 'node-name': name, size });
const debug = (name: string, file: string) => ({
  driver: 'blkdebug',
  'node-name': name,
  image: file,
});
const CBW = { driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk', target: 'old' };
const FAILING: Change = {
  prepare() {
    throw new Error('no');
  },
};

const change = (edge: () => ChildEdge, next: string): Change =>
  replacingChild(filters.graph, () => ({ edge: edge(), next: get(next) }));
const moveGuest = (next: string) => applyChanges([change(() => guest.root, next)]);

function childOf(name: string, key = 'image'): ChildEdge {
  const edge = get(name).children.get(key);
  if (edge === undefined) throw new Error(`${name} has no ${key}`);
  return edge;
}

async function refused(next: string, text: string, edge = () => guest.root): Promise<void> {
  const before = edge().node;
  await expect(applyChanges([change(edge, next)])).rejects.toThrow(text);
  expect(edge().node).toBe(before);
  await guest.write(0, Buffer.alloc(512, 9));
}

beforeEach(async () => {
  filters = filterGraph();
  for (const name of ['disk', 'old', 'other']) await filters.add(memory(name));
  guest = await filters.use(get('disk'), PERM_CONSISTENT_READ | PERM_WRITE);
});

describe('the node of an export', () => {
  it('becomes a filter above it, and the node itself again', async () => {
    await filters.add(debug('filter', 'disk'));
    await moveGuest('filter');
    expect(guest.root.node.name).toBe('filter');
    await guest.write(0, Buffer.alloc(512, 1));
    expect(memoryOf(get('disk')).data[0]).toBe(1);
    await moveGuest('disk');
    await filters.graph.remove('filter');
    await guest.write(0, Buffer.alloc(512, 2));
    expect(memoryOf(get('disk')).data[0]).toBe(2);
  });

  it('changes when requests under way have ended, and before those that come meanwhile', async () => {
    await filters.add(debug('filter', 'disk'));
    let release = () => {};
    memoryOf(get('disk')).delay = () =>
      new Promise((resolve) => {
        release = resolve;
      });
    const first = guest.write(0, Buffer.alloc(512, 1));
    const moving = moveGuest('filter');
    await setImmediate();
    const second = guest.write(0, Buffer.alloc(512, 2));
    await setImmediate();
    expect([guest.root.node.name, memoryOf(get('disk')).data[0]]).toEqual(['disk', 0]);
    memoryOf(get('disk')).delay = undefined;
    release();
    await Promise.all([first, moving, second]);
    expect(get('filter').stats.write.operations).toBe(1);
    expect(memoryOf(get('disk')).data[0]).toBe(2);
  });

  it('may be any node of the same size', async () => {
    await moveGuest('other');
    await guest.write(0, Buffer.alloc(512, 3));
    expect([memoryOf(get('disk')).data[0], memoryOf(get('other')).data[0]]).toEqual([0, 3]);
    await filters.add(memory('long', 2 * SIZE));
    await refused('long', `Node 'long' has ${2 * SIZE} bytes, but 'other', in whose place`);
  });

  it('is closed when nobody else wants it', async () => {
    await filters.add(debug('filter', 'disk'));
    await moveGuest('filter');
    get('filter').monitorOwned = false;
    await moveGuest('disk');
    expect(filters.graph.find('filter')).toBeUndefined();
  });

  it('stays when permissions conflict, or it can not be written', async () => {
    await filters.add({ ...memory('fixed'), 'read-only': true });
    await refused('fixed', "Block node 'fixed' is read-only");
    await filters.add(CBW);
    await filters.use(get('disk'), PERM_WRITE);
    await refused('cbw', "Permission conflict on node 'disk'");
  });

  it('comes back when a later part of the transaction fails', async () => {
    await filters.add(debug('filter', 'disk'));
    const changes = [change(() => guest.root, 'filter'), FAILING];
    await expect(applyChanges(changes)).rejects.toThrow('no');
    expect(guest.root.node.name).toBe('disk');
    await guest.write(0, Buffer.alloc(512, 4));
    expect(memoryOf(get('disk')).data[0]).toBe(4);
    await filters.graph.remove('filter');
  });

  it('stays when it is inactive', async () => {
    get('other').active = false;
    await refused('other', "Node 'other' is inactive");
  });

  it.each(['copy-on-read', 'preallocate', 'blkdebug', 'copy-before-write'])(
    'may be a %s filter made beside the writer',
    async (driver) => {
      const file = driver === 'blkdebug' ? 'image' : 'file';
      const own = driver === 'copy-before-write' ? { target: 'old' } : {};
      await filters.add({ driver, 'node-name': 'filter', [file]: 'disk', ...own });
      await moveGuest('filter');
      await guest.write(0, Buffer.alloc(512, 5));
      expect(memoryOf(get('disk')).data[0]).toBe(5);
      await moveGuest('disk');
      await filters.graph.remove('filter');
    },
  );
});

describe('the child of a node', () => {
  beforeEach(async () => {
    await filters.add(debug('upper', 'disk'));
    await moveGuest('upper');
  });

  it('becomes a filter above it, and the node itself again', async () => {
    await filters.add(debug('lower', 'disk'));
    await applyChanges([change(() => childOf('upper'), 'lower')]);
    await guest.write(0, Buffer.alloc(512, 1));
    expect(get('lower').stats.write.operations).toBe(1);
    await applyChanges([change(() => childOf('upper'), 'disk')]);
    await filters.graph.remove('lower');
    await guest.write(0, Buffer.alloc(512, 2));
    expect(memoryOf(get('disk')).data[0]).toBe(2);
  });

  it('becomes no node with other data', async () => {
    const text = "Node 'other' does not filter 'disk', nor is it filtered by that";
    await refused('other', text, () => childOf('upper'));
  });

  it('becomes nothing that lies above', async () => {
    const text = "Making 'upper' a image child of node 'upper' would create a cycle";
    await refused('upper', text, () => childOf('upper'));
    await filters.add(debug('top', 'upper'));
    await refused('top', "Making 'top' a", () => childOf('upper'));
  });

  it('stays where a job relies on the link', async () => {
    await filters.add(debug('lower', 'disk'));
    childOf('upper').frozen = true;
    await refused('lower', "Cannot change 'image' link to 'disk'", () => childOf('upper'));
  });
});

describe("a job's filter", () => {
  const jobFilter = () =>
    insertFilter(filters.graph, get('disk'), {
      name: 'mirror',
      childName: 'file',
      driver: (child) => new PassThroughDriver('mirror_top', child),
    });

  it('is not passed by', async () => {
    await filters.add(debug('above', 'disk'));
    await moveGuest('above');
    await filters.add(debug('beside', 'disk'));
    await jobFilter();
    await applyChanges([change(() => guest.root, 'mirror')]);
    await refused('disk', "Node 'disk' is not above 'mirror', through which a job sees");
    await applyChanges([change(() => guest.root, 'above')]);
    await refused('disk', "Node 'disk' is not above 'mirror'");
    await refused('disk', "Node 'disk' is not above 'mirror'", () => childOf('above'));
  });

  it('keeps its own child', async () => {
    await jobFilter();
    await filters.add(debug('late', 'disk'));
    await refused('late', "Node 'mirror' belongs to a job", () => childOf('mirror', 'file'));
  });
});

describe('the snapshot of a copy-before-write filter', () => {
  it('is of the moment at which the filter comes above the writer', async () => {
    await filters.add(CBW);
    await guest.write(0, Buffer.alloc(512, 1));
    await moveGuest('cbw');
    await guest.write(0, Buffer.alloc(512, 2));
    expect(memoryOf(get('old')).data[0]).toBe(1);
  });

  it('has what a bitmap marks by then', async () => {
    const bitmap = { node: 'disk', name: 'b' };
    await applyChanges([addingBitmap(filters.graph, bitmap)]);
    await filters.add({ ...CBW, bitmap });
    await guest.write(0, Buffer.alloc(512, 1));
    await moveGuest('cbw');
    await guest.write(0, Buffer.alloc(SIZE, 2));
    const { data } = memoryOf(get('old'));
    expect([data[0], data[512], data[65536]]).toEqual([1, 0, 0]);
    expect(memoryOf(get('old')).calls.length).toBe(1);
  });

  it('is over when somebody writes past the filter', async () => {
    filters.graph.drivers.register(snapshotAccessDefinition);
    const reader = { driver: 'snapshot-access', 'node-name': 'snap', file: 'cbw' };
    await filters.add(CBW);
    await moveGuest('cbw');
    await guest.write(0, Buffer.alloc(512, 1));
    await moveGuest('disk');
    await moveGuest('cbw');
    const snapshot = await filters.add(reader);
    expect((await contentOf(snapshot, 0, 512))[0]).toBe(0);
    await filters.graph.remove('snap');
    await moveGuest('disk');
    await guest.write(65536, Buffer.alloc(512, 2));
    await moveGuest('cbw');
    const late = await filters.add(reader);
    await expect(contentOf(late, 65536, 512)).rejects.toMatchObject({ code: 'DF_ACCESS' });
  });
});
