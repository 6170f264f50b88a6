// SPDX-License-Identifier: MIT
/** What a chain in use is kept from, and what its jobs show of themselves in the graph. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { createImage, MIB } from '../support/qcow2.js';
import type { Scope } from '../support/temp.js';

const LAYERS = ['a', 'b', 'c', 'd'] as const;

/** a <- b <- c <- d, which is exported; t by itself. */
async function makeImages(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  const args = ['--nbd-server', `addr.type=unix,addr.path=${join(dir, 'nbd')}`];
  let below: string | null = null;
  for (const name of [...LAYERS, 't']) {
    const backing: string | null = name === 't' ? null : below;
    const noted = backing === null ? '' : `backing_file=${backing},backing_fmt=qcow2`;
    await createImage(join(dir, name), MIB, noted);
    const file = { driver: 'file', filename: join(dir, name) };
    const node = { driver: 'qcow2', 'node-name': name, file, backing };
    args.push('--blockdev', JSON.stringify(node));
    below = name;
  }
  return { dir, args: [...args, '--export', 'nbd,id=e,node-name=d,writable=on'] };
}

/** All of them wait at once, so that there is time to look. */
const JOBS: Record<string, [command: string, args: object]> = {
  'an intermediate commit': ['block-commit', { 'top-node': 'c', 'base-node': 'a' }],
  'an active commit': ['block-commit', { 'base-node': 'a' }],
  'a stream': ['block-stream', { 'base-node': 'a' }],
  'a mirror': ['blockdev-mirror', { target: 't', sync: 'full' }],
  'a backup': ['blockdev-backup', { target: 't', sync: 'none' }],
};

async function start({ qmp }: Talk, [command, args]: [string, object]): Promise<void> {
  await qmp.execute(command, {
    ...{ 'job-id': 'j', device: 'd', 'filter-node-name': 'filter', ...args },
    ...(command === 'blockdev-backup' ? {} : { 'auto-finalize': false }),
  });
}

/** True where it was refused. */
async function refused({ qmp }: Talk, command: string, args: object): Promise<boolean> {
  const reply = await qmp.reply(command, args);
  return reply.error !== undefined;
}

async function resizes(talk: Talk, nodes: readonly string[]): Promise<Record<string, boolean>> {
  const told: Record<string, boolean> = {};
  for (const node of nodes) {
    told[node] = await refused(talk, 'block_resize', { 'node-name': node, size: 2 * MIB });
  }
  return told;
}

describe('block_resize', () => {
  it('is refused below another image', async () => {
    const told = await sayToBoth(makeImages, (talk) => resizes(talk, ['a', 'b', 'c']));
    expect(told).toEqual({ a: true, b: true, c: true });
  });

  it.each(Object.entries(JOBS))('is refused for all nodes of %s', async (_name, job) => {
    const told = await sayToBoth(makeImages, async (talk) => {
      await start(talk, job);
      return resizes(talk, ['a', 'b', 'c', 'd', 'filter']);
    });
    expect(Object.values(told)).toEqual([true, true, true, true, true]);
  });
});

describe('a writable export', () => {
  const add = (talk: Talk, node: string): Promise<boolean> =>
    refused(talk, 'block-export-add', {
      ...{ type: 'nbd', id: `x${node}`, 'node-name': node, name: `x${node}`, writable: true },
    });

  it('is refused for the layers of an intermediate commit, and its base', async () => {
    const told = await sayToBoth(makeImages, async (talk) => {
      await start(talk, ['block-commit', { 'top-node': 'c', 'base-node': 'a', speed: 1 }]);
      return { a: await add(talk, 'a'), b: await add(talk, 'b'), c: await add(talk, 'c') };
    });
    expect(told).toEqual({ a: true, b: true, c: true });
  });
});

interface Graph {
  readonly nodes: readonly { readonly id: number; readonly type: string; readonly name: string }[];
  readonly edges: readonly {
    readonly parent: number;
    readonly child: number;
    readonly name: string;
  }[];
}

/**
 * Edges of jobs and nodes. What jobs of QEMU have besides is left out: backends of their own, and the
 * main node of a mirror; and the child of a mirror's filter has its own name there.
 */
async function edges({ qmp }: Talk): Promise<string[]> {
  const graph = await qmp.execute<Graph>('x-debug-query-block-graph');
  const nodes = new Map(graph.nodes.map((node) => [node.id, node]));
  const lines = graph.edges.flatMap(({ parent, child, name }) => {
    const above = nodes.get(parent);
    const below = nodes.get(child)?.name ?? '';
    if (above === undefined || above.type === 'block-backend' || below.startsWith('#')) return [];
    if (name === 'main node') return [];
    const shown = above.name === 'filter' && name === 'file' ? 'backing' : name;
    return [`${above.type} ${above.name} -${shown}-> ${below}`];
  });
  return lines.toSorted();
}

describe('x-debug-query-block-graph', () => {
  it.each(Object.entries(JOBS))('names the edges of %s as QEMU does', async (_name, job) => {
    const told = await sayToBoth(makeImages, async (talk) => {
      await start(talk, job);
      return edges(talk);
    });
    expect(told.filter((line) => line.startsWith('block-job j '))).not.toEqual([]);
  });
});
