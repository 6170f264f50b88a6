// SPDX-License-Identifier: MIT
import { beforeEach, describe, expect, it } from 'vitest';
import { type FilterGraph, filterGraph } from '../filter-graph.js';

let filters: FilterGraph;

beforeEach(async () => {
  filters = filterGraph();
  for (const name of ['a', 'b', 'c']) {
    await filters.add({ driver: 'memory', 'node-name': name, size: 4096 });
  }
});

const add = (options: Record<string, unknown>) =>
  filters.add({ driver: 'quorum', 'node-name': 'q', ...options });

describe('options of a quorum', () => {
  const VERIFY =
    'blkverify=on can only be set if there are exactly two files and vote-threshold is 2';
  it.each([
    [[], 1, {}, 'Number of provided children must be 1 or more'],
    [['a'], 0, {}, "Parameter 'vote-threshold' expects a value >= 1"],
    [['a'], -1, {}, "Parameter 'vote-threshold' expects a value >= 1"],
    [['a'], 2, {}, 'threshold may not exceed children count'],
    [['missing'], 2, {}, 'threshold may not exceed children count'],
    [['a', 'missing'], 2, {}, "Cannot find device='missing' nor node-name='missing'"],
    [['a', 'b'], 1, { blkverify: true }, VERIFY],
    [['a', 'b', 'c'], 2, { blkverify: true }, VERIFY],
    [
      ['a', 'b'],
      2,
      { blkverify: true, 'rewrite-corrupted': true },
      'rewrite-corrupted=on cannot be used with blkverify=on',
    ],
    [
      ['a', 'b'],
      2,
      { 'rewrite-corrupted': true, 'read-pattern': 'fifo' },
      'rewrite-corrupted=on cannot be used with read-pattern=fifo',
    ],
    [
      ['a', 'b'],
      2,
      { blkverify: true, 'read-pattern': 'fifo' },
      'blkverify=on cannot be used with read-pattern=fifo',
    ],
    [Array.from({ length: 65 }, () => 'a'), 1, {}, 'Too many children'],
  ])('refuses children %j with threshold %d and %j', async (children, threshold, more, text) => {
    await expect(add({ children, 'vote-threshold': threshold, ...more })).rejects.toThrow(text);
    expect(filters.graph.nodes.map(({ name }) => name)).toEqual(['a', 'b', 'c']);
    expect(filters.graph.get('a').parents.size).toBe(0);
  });

  it('refuses copies of different sizes, and closes those that it opened', async () => {
    const small = { driver: 'memory', 'node-name': 'small', size: 512 };
    await expect(add({ children: ['a', small], 'vote-threshold': 1 })).rejects.toThrow(
      "Could not refresh total sector count: node 'a' has 4096 bytes, node 'small' 512",
    );
    expect(filters.graph.find('small')).toBeUndefined();
    expect(filters.graph.get('a').parents.size).toBe(0);
  });

  it('take children by name and in place, and number their edges', async () => {
    const inline = { driver: 'memory', 'node-name': 'inline', size: 4096 };
    const node = await add({ children: ['a', inline, 'c'], 'vote-threshold': 2 });
    const edges = [...node.children].map(([key, { node: below }]) => `${key} ${below.name}`);
    expect(edges).toEqual(['children.0 a', 'children.1 inline', 'children.2 c']);
    await filters.graph.remove('q');
    expect(filters.graph.find('inline')).toBeUndefined();
  });
});
