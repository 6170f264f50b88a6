// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { reopenNodes } from '../../../../src/block/reopen.js';
import { ThrottleGroup } from '../../../../src/block/throttle/throttle-group.js';
import { ManualClock } from '../throttle/manual-clock.js';
import { contentOf, type FilterGraph, filterGraph } from './filter-graph.js';

const SIZE = 64 * 1024;

async function throttled(limits: Record<string, number>) {
  const filters = filterGraph();
  const clock = new ManualClock();
  filters.groups.set('g', new ThrottleGroup('g', limits, clock));
  const node = await filters.add({
    driver: 'throttle',
    'node-name': 't',
    'throttle-group': 'g',
    file: { driver: 'memory', size: SIZE },
  });
  return { ...filters, clock, node };
}

const addThrottle = ({ add }: FilterGraph, group?: string) =>
  add({
    driver: 'throttle',
    ...(group === undefined ? {} : { 'throttle-group': group }),
    file: { driver: 'memory', size: SIZE },
  });

it('passes requests at once while the limits allow it', async () => {
  const { node } = await throttled({ 'iops-total': 100 });
  expect(node.write(5, Buffer.from('abc'))).toBeUndefined();
  expect((await contentOf(node, 5, 3)).toString()).toBe('abc');
});

it('holds back reads, writes, zeroes and discards until it is their turn', async () => {
  const { node, clock } = await throttled({ 'iops-total': 1 });
  node.read(0, Buffer.alloc(1));
  const waiting = [
    node.read(0, Buffer.alloc(1)),
    node.write(0, Buffer.alloc(1)),
    node.writeZeroes(0, 1),
  ];
  for (const pending of waiting) expect(pending).toBeInstanceOf(Promise);
  expect(node.inFlight.count).toBe(3);
  await clock.advance(4);
  await Promise.all(waiting);
  expect(node.inFlight.count).toBe(0);
});

it('lets everything proceed when the node is drained', async () => {
  const { node } = await throttled({ 'iops-total': 1 });
  node.read(0, Buffer.alloc(1));
  const waiting = node.read(0, Buffer.alloc(1));
  node.drainBegin();
  await waiting;
  node.drainEnd();
  expect(node.read(0, Buffer.alloc(1))).toBeInstanceOf(Promise);
  node.drainBegin();
});

it('refuses a group that does not exist', async () => {
  const filters = filterGraph();
  await expect(addThrottle(filters, 'nope')).rejects.toThrow(
    "Throttle group 'nope' does not exist",
  );
  await expect(addThrottle(filters)).rejects.toThrow('Please specify a throttle group');
});

it('moves to another group when it is reopened, and leaves its group when closed', async () => {
  const { graph, groups, node } = await throttled({ 'iops-total': 1 });
  groups.set('h', new ThrottleGroup('h'));
  const file = node.children.get('file')?.node.name;
  await reopenNodes(graph, [{ driver: 'throttle', 'node-name': 't', 'throttle-group': 'h', file }]);
  expect([groups.get('g')?.memberCount, groups.get('h')?.memberCount]).toEqual([0, 1]);
  expect(node.driver.filename).toContain('"throttle-group":"h"');
  await graph.closeAll();
  expect(groups.get('h')?.memberCount).toBe(0);
});
