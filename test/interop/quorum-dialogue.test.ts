// SPDX-License-Identifier: MIT
/** One dialogue about quorum nodes with our daemon and with qemu-storage-daemon: the answers are the same. */
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { MIB, makeImage } from '../support/images.js';
import { runPeer, tryPeer } from '../support/peers.js';
import type { Scope } from '../support/temp.js';

async function images(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  const args: string[] = [];
  for (const name of ['a', 'b', 'c', 'd', 'big']) {
    const path = join(dir, name);
    await makeImage(path, { size: name === 'big' ? 2 * MIB : MIB });
    args.push('--blockdev', `file,node-name=${name},filename=${path}`);
  }
  args.push('--nbd-server', `addr.type=unix,addr.path=${join(dir, 'nbd.sock')}`);
  return { dir, args };
}

/** Says the same to both; what the dialogue returns has to be equal. */
function both(dialogue: (talk: Talk) => Promise<unknown>): Promise<unknown> {
  return sayToBoth(images, dialogue);
}

const quorum = (children: unknown[], threshold: number, more = {}) => ({
  ...{ driver: 'quorum', 'node-name': 'q', children, 'vote-threshold': threshold, ...more },
});

/** What came of a command: nothing, or the error. */
async function ask({ qmp }: Talk, command: string, args: object): Promise<unknown> {
  const { error } = await qmp.reply(command, args);
  return error ?? 'done';
}

/** Edges of the graph by names, with permissions. */
async function edges({ qmp }: Talk): Promise<unknown[]> {
  interface Edge {
    readonly parent: number;
    readonly child: number;
    readonly name: string;
    readonly perm: string[];
    readonly 'shared-perm': string[];
  }
  interface Graph {
    readonly nodes: { readonly id: number; readonly name: string; readonly type: string }[];
    readonly edges: Edge[];
  }
  const graph = await qmp.execute<Graph>('x-debug-query-block-graph');
  const nameOf = (id: number) =>
    graph.nodes.find((node) => node.id === id && node.type === 'block-driver')?.name;
  return graph.edges
    .map((edge) => {
      const permissions = [edge.perm.sort().join(' '), edge['shared-perm'].sort().join(' ')];
      return [edge.name, nameOf(edge.parent), nameOf(edge.child), ...permissions].join(', ');
    })
    .sort();
}

it('refuses the same options with the same words', async () => {
  const wishes = [
    quorum([], 1),
    quorum(['a'], 0),
    quorum(['a'], -5),
    quorum(['a'], 2),
    quorum(['missing'], 2),
    quorum(['a', 'missing'], 2),
    quorum(['a', { driver: 'file', filename: '/nowhere/image' }], 2),
    quorum(['a', 'b'], 1, { blkverify: true }),
    quorum(['a', 'b', 'c'], 2, { blkverify: true }),
    quorum(['a', 'b'], 2, { blkverify: true, 'rewrite-corrupted': true }),
    quorum(['a', 'b'], 2, { 'read-pattern': 'random' }),
    quorum(['a', 'a'], 1, { 'rewrite-corrupted': true }),
    { driver: 'quorum', 'node-name': 'q', 'vote-threshold': 1 },
    { driver: 'quorum', 'node-name': 'q', children: ['a'] },
  ];
  await both(async (talk) => {
    const answers: unknown[] = [];
    for (const wish of wishes) answers.push(await ask(talk, 'blockdev-add', wish));
    expect(answers).not.toContain('done');
    return answers;
  });
});

it('changes children alike, with the same names, permissions and refusals', async () => {
  const changes = [
    { parent: 'q' },
    { parent: 'q', child: 'x', node: 'd' },
    { parent: 'missing', node: 'd' },
    { parent: 'q', node: 'missing' },
    { parent: 'q', child: 'children.9' },
    { parent: 'a', node: 'd' },
    { parent: 'a', child: 'file' },
    { parent: 'q', node: 'a' },
    { parent: 'r', child: 'file' },
    { parent: 'r', node: 'big' },
    { parent: 'q', node: 'd' },
    { parent: 'q', child: 'children.0' },
    { parent: 'q', node: 'a' },
    { parent: 'q', child: 'children.4' },
    { parent: 'q', child: 'children.1' },
    { parent: 'q', child: 'children.2' },
    { parent: 'q', node: 'b' },
    { parent: 'q', node: 'a' },
  ];
  for (const more of [{}, { 'rewrite-corrupted': true }, { 'read-only': true }]) {
    await both(async (talk) => {
      const answers: unknown[] = [];
      await talk.qmp.execute('blockdev-add', quorum(['a', 'b', 'c'], 2, more));
      await talk.qmp.execute('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'big' });
      answers.push(await edges(talk));
      for (const change of changes) {
        answers.push(change, await ask(talk, 'x-blockdev-change', change), await edges(talk));
      }
      return answers;
    });
  }
});

it('reports the same of reads, and repairs the same', async () => {
  await both(async (talk) => {
    const { qmp, dir } = talk;
    const node = quorum(['a', 'b', 'c'], 2, { 'rewrite-corrupted': true });
    await qmp.execute('blockdev-add', node);
    for (const [name, text] of [
      ['a', 'one'],
      ['b', 'two'],
    ] as const) {
      const file = await open(join(dir, name), 'r+');
      await file.write(text, name === 'a' ? 700 : 5000);
      await file.write(text, 100_000);
      await file.close();
    }
    await qmp.execute('block-export-add', {
      ...{ type: 'nbd', id: 'e', 'node-name': 'q', writable: true },
    });
    const io = async (command: string) => {
      const uri = `nbd+unix:///q?socket=${join(dir, 'nbd.sock')}`;
      const { stdout } = await tryPeer('qemu-io', ['-f', 'raw', '-c', command, uri]);
      return /failed.*|^\w+ \d+\/\d+.*/.exec(stdout)?.[0];
    };
    const results = [await io('read -P 0 600 200')];
    const events: unknown[] = [(await qmp.event('QUORUM_REPORT_BAD')).data];
    results.push(await io('read -P 0 4096 4096'));
    events.push((await qmp.event('QUORUM_REPORT_BAD', (data) => data['node-name'] === 'b')).data);
    results.push(await io('read 99000 2000'));
    events.push((await qmp.event('QUORUM_FAILURE')).data);
    results.push(await io('write -P 3 99000 2000'), await io('read -P 3 99000 2000'));
    expect(results).toEqual([
      'read 200/200 bytes at offset 600',
      'read 4096/4096 bytes at offset 4096',
      'failed: Input/output error',
      'wrote 2000/2000 bytes at offset 99000',
      'read 2000/2000 bytes at offset 99000',
    ]);
    // The server may not have noticed yet that the last client has gone.
    await qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    const checks: string[] = [];
    for (const name of ['a', 'b', 'c']) {
      checks.push((await runPeer('sha256sum', [join(dir, name)])).stdout.split(' ')[0] ?? '');
    }
    return { results, events, checks };
  });
});
