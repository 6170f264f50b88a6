// SPDX-License-Identifier: MIT
/** blockdev-reopen with other children: where requests go afterwards, and what is refused. */
import { beforeEach, describe, expect, it } from 'vitest';
import type { BlockBackend } from '../../../src/block/backend.js';
import { rawDriver } from '../../../src/block/driver/raw.js';
import { PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { reopenNodes } from '../../../src/block/reopen.js';
import { ThrottleGroup } from '../../../src/block/throttle/throttle-group.js';
import { type FilterGraph, filterGraph, memoryOf } from './filter/filter-graph.js';

const MIB = 1024 * 1024;

let filters: FilterGraph;
let guest: BlockBackend;

const throttle = (file: string) => ({
  ...{ driver: 'throttle', 'node-name': 't', 'throttle-group': 'g', file },
});
const raw = (name: string, file: string) => ({ driver: 'raw', 'node-name': name, file });

beforeEach(async () => {
  filters = filterGraph();
  filters.graph.drivers.register(rawDriver);
  filters.groups.set('g', new ThrottleGroup('g'));
  for (const name of ['a', 'b']) {
    await filters.add({ driver: 'growing', 'node-name': name, size: MIB });
  }
  await filters.add({ driver: 'growing', 'node-name': 'small', size: MIB / 16 });
});

async function useTop(options: Record<string, unknown>): Promise<void> {
  const node = await filters.add(options);
  guest = await filters.use(node, PERM_CONSISTENT_READ | PERM_WRITE);
}

/** Every node, with its children. */
const shape = (): string[] =>
  filters.graph.nodes.map(
    ({ name, children }) => `${name}: ${[...children.values()].map((edge) => edge.node.name)}`,
  );

async function refuses(list: Record<string, unknown>[], text: string): Promise<void> {
  const before = shape();
  await expect(reopenNodes(filters.graph, list)).rejects.toThrow(text);
  expect(shape()).toEqual(before);
  await guest.write(0, Buffer.alloc(512, 9));
}

describe('reopening children', () => {
  it.each([
    ['throttle', throttle('a'), throttle('b')],
    ['raw', raw('r', 'a'), raw('r', 'b')],
  ])('sends all that comes later of a %s node to the new child', async (_, first, second) => {
    await useTop(first);
    await guest.write(0, Buffer.alloc(512, 1));
    await reopenNodes(filters.graph, [second]);
    await guest.write(512, Buffer.alloc(512, 2));
    const { graph } = filters;
    expect([memoryOf(graph.get('a')).data[0], memoryOf(graph.get('a')).data[512]]).toEqual([1, 0]);
    expect([memoryOf(graph.get('b')).data[0], memoryOf(graph.get('b')).data[512]]).toEqual([0, 2]);
    expect(graph.get('a').parents.size).toBe(0);
  });

  it('refuses a node as its own child, directly or further down', async () => {
    await filters.add(raw('r', 'a'));
    await useTop(raw('r2', 'r'));
    await refuses([raw('r', 'r')], "Making 'r' a file child of 'r' would create a cycle");
    await refuses([raw('r', 'r2')], "Making 'r2' a file child of 'r' would create a cycle");
  });

  it('refuses other children of a filter that keeps its own for life', async () => {
    await useTop({ driver: 'copy-on-read', 'node-name': 'c', file: 'a' });
    await refuses(
      [{ driver: 'copy-on-read', 'node-name': 'c', file: 'b' }],
      "Block format 'copy-on-read' used by node 'c' does not support reopening files",
    );
  });

  it('checks the window of raw against the new child', async () => {
    await useTop(raw('r', 'a'));
    await refuses([{ ...raw('r', 'small'), size: MIB / 2 }], 'has to be smaller or equal');
  });

  it('refuses two wishes for one node', async () => {
    await useTop(raw('r', 'a'));
    await refuses([raw('r', 'b'), raw('r', 'a')], "Node 'r' is given twice");
  });
});
