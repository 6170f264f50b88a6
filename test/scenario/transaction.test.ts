// SPDX-License-Identifier: MIT
/** Several changes at one moment, or none of them. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { type Daemon, startDaemon, waitUntil } from '../support/daemon.js';
import { MIB, makeImage, patternBytes } from '../support/images.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 8 * MIB;

interface Bench {
  readonly daemon: Daemon;
  readonly qmp: QmpClient;
  /** Clients of the disks 'one' and 'two'. */
  readonly guests: readonly [NbdClient, NbdClient];
  path(name: string): string;
}

/** Two disks in use, two targets, and one that fails every write ('bad'). */
async function makeBench(scope: Scope): Promise<Bench> {
  const dir = await scope.tempDir();
  const path = (name: string): string => join(dir, `${name}.img`);
  const data = [{ offset: 0, length: 4 * MIB }];
  for (const name of ['one', 'two']) await makeImage(path(name), { size: SIZE, data });
  for (const name of ['t1', 't2', 'bad']) await makeImage(path(name), { size: SIZE });
  const socket = join(dir, 'nbd.sock');
  const disks = ['one', 'two', 't1', 't2'].flatMap((name) => [
    ...['--blockdev', `driver=file,node-name=${name},filename=${path(name)},discard=unmap`],
  ]);
  const bad = {
    driver: 'blkdebug',
    'node-name': 'bad',
    image: { driver: 'file', filename: path('bad') },
    'inject-error': [{ event: 'none', iotype: 'write', errno: 28 }],
  };
  const daemon = await startDaemon(scope, [
    ...disks,
    ...['--blockdev', JSON.stringify(bad)],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['one', 'two'].flatMap((name) => [
      '--export',
      `type=nbd,id=${name},node-name=${name},writable=on`,
    ]),
  ]);
  const guest = async (exportName: string): Promise<NbdClient> => {
    const client = await NbdClient.connect({
      address: { type: 'unix', path: socket },
      exportName,
    });
    scope.defer(() => client.close());
    return client;
  };
  return {
    daemon,
    qmp: await daemon.qmp(scope),
    guests: [await guest('one'), await guest('two')],
    path,
  };
}

type BitmapState = { name?: string; count: number; recording: boolean; busy: boolean };

/** Named bitmaps of a node as "name count recording". */
async function bitmaps(qmp: QmpClient, node: string): Promise<string[]> {
  const nodes = await qmp.execute<{ 'node-name': string; 'dirty-bitmaps'?: BitmapState[] }[]>(
    'query-named-block-nodes',
    { flat: true },
  );
  const found = nodes.find((entry) => entry['node-name'] === node)?.['dirty-bitmaps'] ?? [];
  return found
    .map(({ name, count, recording, busy }) =>
      [name, count, ...(recording ? ['recording'] : []), ...(busy ? ['busy'] : [])].join(' '),
    )
    .sort();
}

const bitmap = (verb: string, node: string, name: string, more: object = {}): object => ({
  type: `block-dirty-bitmap-${verb}`,
  data: { node, name, ...more },
});

const backup = (id: string, device: string, target: string, more: object = {}): object => ({
  type: 'blockdev-backup',
  data: { 'job-id': id, device, target, sync: 'full', 'auto-dismiss': false, ...more },
});

async function concluded(qmp: QmpClient, id: string): Promise<void> {
  await qmp.event('JOB_STATUS_CHANGE', (data) => data.id === id && data.status === 'concluded');
}

/** Events of a job, in short. */
function story(qmp: QmpClient, id: string): string {
  return qmp.events
    .filter(({ data }) => data?.id === id || data?.device === id)
    .map(({ event, data }) => String(data?.status ?? event))
    .join(' ');
}

describe('transaction', () => {
  it('has all its backups at one moment, however busy the disks are', async () => {
    const scope = testScope();
    const { qmp, guests, path } = await makeBench(scope);
    let stopping = false;
    let rounds = 0;
    // The second disk is written only after the first: at no moment is it ahead.
    const writing = (async () => {
      while (!stopping) {
        const number = Buffer.alloc(4096);
        number.writeUInt32BE(++rounds);
        for (const guest of guests) await guest.write(5 * MIB, number);
      }
    })();
    writing.catch(() => {}); // told below, where it is waited for
    await waitUntil(() => rounds > 20, { what: () => 'the writer to write' });
    await qmp.execute('transaction', {
      actions: [
        bitmap('add', 'one', 'c'),
        bitmap('add', 'two', 'c'),
        backup('j1', 'one', 't1', { speed: 16 * MIB }),
        backup('j2', 'two', 't2', { speed: 8 * MIB }),
      ],
    });
    for (const id of ['j1', 'j2']) await concluded(qmp, id);
    stopping = true;
    await writing;
    const [first, second] = await Promise.all(
      ['t1', 't2'].map(async (name) => (await readFile(path(name))).readUInt32BE(5 * MIB)),
    );
    const ahead = (first ?? 0) - (second ?? 0);
    expect([0, 1]).toContain(ahead);
    expect(first).toBeGreaterThan(0);
    for (const id of ['j1', 'j2']) {
      expect(story(qmp, id)).toBe(
        'created running paused running waiting pending BLOCK_JOB_COMPLETED concluded',
      );
    }
    expect(await bitmaps(qmp, 'one')).toEqual(['c 65536 recording']);
  });

  it('undoes everything, in reverse, when one action fails', async () => {
    const scope = testScope();
    const { qmp, guests } = await makeBench(scope);
    for (const name of ['a', 'b']) await qmp.execute(...add(name));
    await qmp.execute('block-dirty-bitmap-disable', { node: 'one', name: 'b' });
    await guests[0].write(MIB, patternBytes(100_000, 9));
    const before = await bitmaps(qmp, 'one');
    const graph = JSON.stringify(await qmp.execute('x-debug-query-block-graph'));
    const actions = [
      bitmap('add', 'one', 'new', { granularity: 4096 }),
      bitmap('merge', 'one', '', { target: 'b', bitmaps: ['a'], name: undefined }),
      bitmap('clear', 'one', 'a'),
      bitmap('disable', 'one', 'a'),
      bitmap('enable', 'one', 'b'),
      bitmap('remove', 'one', 'b'),
      backup('j1', 'one', 't1', { sync: 'incremental', bitmap: 'a' }),
      backup('j2', 'two', 't2'),
    ];
    for (const [last, text] of [
      [{ type: 'abort', data: {} }, 'Transaction aborted using Abort action'],
      [bitmap('clear', 'one', 'nope'), "Dirty bitmap 'nope' not found"],
      [backup('j2', 'two', 't1'), "Node 't1' is busy: block device is in use by block job: backup"],
      [backup('j1', 'two', 'bad'), "Job ID 'j1' already in use"],
    ] as const) {
      const { desc } = await qmp.refused('transaction', { actions: [...actions, last] });
      expect(desc).toBe(text);
      expect(await bitmaps(qmp, 'one')).toEqual(before);
      expect(JSON.stringify(await qmp.execute('x-debug-query-block-graph'))).toBe(graph);
      expect(await qmp.execute('query-jobs')).toEqual([]);
      await guests[0].write(MIB, patternBytes(100_000, 10));
    }
  });

  it('lets each job end by itself unless it is grouped', async () => {
    const scope = testScope();
    const { qmp, guests } = await makeBench(scope);
    for (const node of ['one', 'two']) await qmp.execute(...add('b', node));
    for (const guest of guests) await guest.write(0, patternBytes(MIB, 1));
    const incremental = { sync: 'incremental', bitmap: 'b' };
    const actions = [
      backup('j1', 'one', 't1', incremental),
      backup('j2', 'two', 'bad', incremental),
    ];
    const grouped = { 'completion-mode': 'grouped' };
    await qmp.execute('transaction', { actions, properties: grouped });
    for (const id of ['j1', 'j2']) await concluded(qmp, id);
    expect(story(qmp, 'j1')).toMatch(/ aborting BLOCK_JOB_CANCELLED concluded$/);
    expect(story(qmp, 'j2')).toMatch(/ BLOCK_JOB_ERROR aborting BLOCK_JOB_COMPLETED concluded$/);
    const errors = await qmp.execute<{ id: string; error?: string }[]>('query-jobs');
    expect(errors.find(({ id }) => id === 'j1')?.error).toBe('Operation canceled');
    for (const node of ['one', 'two']) {
      expect(await bitmaps(qmp, node)).toEqual([`b ${MIB} recording`]);
    }
    for (const id of ['j1', 'j2']) await qmp.execute('job-dismiss', { id });
    qmp.events.length = 0;
    await qmp.execute('transaction', { actions });
    for (const id of ['j1', 'j2']) await concluded(qmp, id);
    expect(story(qmp, 'j1')).toMatch(/ waiting pending BLOCK_JOB_COMPLETED concluded$/);
    expect(await bitmaps(qmp, 'one')).toEqual(['b 0 recording']);
    expect(await bitmaps(qmp, 'two')).toEqual([`b ${MIB} recording`]);
  });

  it('ends a group together, when the last is done', async () => {
    const scope = testScope();
    const { qmp } = await makeBench(scope);
    await qmp.execute('transaction', {
      actions: [backup('j1', 'one', 't1'), backup('j2', 'two', 't2', { speed: 8 * MIB })],
      properties: { 'completion-mode': 'grouped' },
    });
    await qmp.event('JOB_STATUS_CHANGE', (data) => data.id === 'j1' && data.status === 'waiting');
    const [j1] = await qmp.execute<{ status: string }[]>('query-jobs');
    expect(j1?.status).toBe('waiting');
    for (const id of ['j1', 'j2']) {
      await concluded(qmp, id);
      expect(story(qmp, id)).toMatch(/ waiting pending BLOCK_JOB_COMPLETED concluded$/);
    }
  });

  it('refuses to group what is no job', async () => {
    const scope = testScope();
    const { qmp } = await makeBench(scope);
    const properties = { 'completion-mode': 'grouped' };
    const actions = [bitmap('add', 'one', 'x')];
    expect((await qmp.refused('transaction', { actions, properties })).desc).toBe(
      "Action 'block-dirty-bitmap-add' does not support Transaction property completion-mode = grouped",
    );
    await qmp.execute('transaction', { actions: [] });
    expect(
      (await qmp.refused('transaction', { actions: [{ type: 'eject', data: {} }] })).desc,
    ).toBe("Parameter 'type' does not accept value 'eject'");
  });
});

function add(name: string, node = 'one'): [string, object] {
  return ['block-dirty-bitmap-add', { node, name }];
}
