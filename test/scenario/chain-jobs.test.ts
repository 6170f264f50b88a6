// SPDX-License-Identifier: MIT
/** Jobs side by side on one chain: what one of them does when it ends is not the other's undoing. */
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.js';
import { resizeNode } from '../../src/block/resize.js';
import { ChainBench } from '../support/chain-bench.js';
import { SeededRandom } from '../support/seeded-random.js';
import { testScope } from '../support/temp.js';

const SIZE = 1024 * 1024;

/** base <- top, with a client on top. */
async function makeBench(): Promise<ChainBench> {
  const bench = await ChainBench.make(testScope(), new SeededRandom(1));
  await bench.createImage('base', { size: SIZE, clusterSize: 65536 });
  await bench.execute('blockdev-add', bench.layer('base', 'qcow2', null));
  await bench.connect('base', Buffer.alloc(SIZE));
  bench.guest.burst(8);
  await bench.guest.settle();
  const snapshot = { 'node-name': 'base', 'snapshot-file': bench.path('top') };
  await bench.execute('blockdev-snapshot-sync', { ...snapshot, 'snapshot-node-name': 'top' });
  bench.guest.burst(8);
  return bench;
}

async function addTarget(bench: ChainBench, name: string): Promise<string> {
  await bench.createImage(name, { size: SIZE, clusterSize: 65536 });
  await bench.execute('blockdev-add', bench.layer(name, 'qcow2', null));
  return name;
}

describe('jobs side by side', () => {
  it('a backup that began after a mirror stays when that is cancelled', async () => {
    const bench = await makeBench();
    const slow = { device: 'top', speed: 1, sync: 'full' };
    const copy = await addTarget(bench, 'copy');
    await bench.execute('blockdev-mirror', { 'job-id': 'm', ...slow, target: copy });
    await bench.guest.settle();
    const before = Buffer.from(bench.guest.model);
    const target = await addTarget(bench, 'saved');
    await bench.execute('blockdev-backup', { 'job-id': 'b', ...slow, target });
    const [mirror, backup] = [bench.daemon.jobs.get('m'), bench.daemon.jobs.get('b')];
    await bench.execute('job-cancel', { id: 'm' });
    await mirror.concluded;
    expect(mirror.error?.message).toBe('Operation canceled');
    bench.guest.burst(8);
    await bench.endJobs();
    expect(backup.error).toBeUndefined();
    await bench.check();
    expect(bench.faults).toEqual([]);
    const saved = await bench.read(bench.daemon.graph.get('saved'));
    expect(saved?.equals(before)).toBe(true);
    expect(bench.daemon.graph.nodes.filter(({ kind }) => kind === 'filter')).toEqual([]);
  });

  it('a filter that went while its resize waited is not found', async () => {
    const bench = await makeBench();
    await bench.execute('block-stream', { 'job-id': 'j', device: 'top', speed: 1 });
    const { graph } = bench.daemon;
    const filter = bench.exported;
    await bench.execute('job-cancel', { id: 'j' });
    await bench.endJobs();
    await expect(resizeNode(graph, filter, SIZE)).rejects.toBeInstanceOf(BlockError);
    await expect(resizeNode(graph, filter, SIZE)).rejects.toMatchObject({ code: 'DF_NOT_FOUND' });
    await bench.guest.settle();
  });
});
