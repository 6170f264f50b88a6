// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { sayToBoth, type Talk } from '../../support/dialogue.js';
import { createImage, MIB } from '../../support/qcow2.js';
import type { Scope } from '../../support/temp.js';

interface Graph {
  readonly nodes: readonly { readonly id: number; readonly type: string; readonly name: string }[];
  readonly edges: readonly Edge[];
}

interface Edge {
  readonly parent: number;
  readonly child: number;
  readonly name: string;
  readonly perm: readonly string[];
  readonly 'shared-perm': readonly string[];
}

async function chain(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  await createImage(join(dir, 'a'), MIB);
  await createImage(join(dir, 'b'), MIB, 'backing_file=a,backing_fmt=qcow2');
  await createImage(join(dir, 'e'), MIB);
  const file = (name: string): string[] => [
    '--blockdev',
    `file,node-name=${name}-file,filename=${join(dir, name)}`,
  ];
  const args = [
    ...[...file('a'), '--blockdev', 'qcow2,node-name=a,file=a-file,read-only=on'],
    ...[...file('b'), '--blockdev', 'qcow2,node-name=b,file=b-file,backing=a'],
    ...[...file('e'), '--blockdev', 'qcow2,node-name=e,file=e-file'],
    ...['--nbd-server', `addr.type=unix,addr.path=${join(dir, 'nbd')}`],
    ...['--export', 'nbd,id=disk,node-name=b,name=disk,writable=on'],
  ];
  return { dir, args };
}

/** Nodes and edges without the numbers, which are of one answer only; backends have no names to compare. */
async function graph({ qmp }: Talk): Promise<string[]> {
  const { nodes, edges } = await qmp.execute<Graph>('x-debug-query-block-graph');
  expect(new Set(nodes.map(({ id }) => id)).size).toBe(nodes.length);
  const title = (id: number): string => {
    const node = nodes.find((candidate) => candidate.id === id);
    return node?.type === 'block-driver' ? node.name : (node?.type ?? 'nobody');
  };
  const lines = edges.map(({ parent, child, name, ...edge }) => {
    // Ours lets an exported node be resized, QEMU's does not.
    const isExport = nodes.some(({ id, type }) => id === parent && type === 'block-backend');
    const shared = edge['shared-perm']
      .filter((each) => !(isExport && each === 'resize'))
      .toSorted();
    const perm = edge.perm.toSorted();
    return `${title(parent)} -${name}-> ${title(child)}: ${perm.join()} / ${shared.join()}`;
  });
  return [...nodes.map(({ id }) => title(id)), ...lines].toSorted();
}

it('the graph of a chain is that of QEMU, edge by edge', async () => {
  const seen = await sayToBoth(chain, graph);
  expect(seen).toContain('block-backend');
  expect(seen.filter((line) => line.includes('->'))).toHaveLength(5);
});
