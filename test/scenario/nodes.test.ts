// SPDX-License-Identifier: MIT
/** Nodes of a running daemon: other options, other children, activity, statistics, limits, locks. */
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { startDaemon } from '../support/daemon.js';
import { diskferry } from '../support/diskferry.js';
import { KIB, MIB, makeImage, readRange } from '../support/images.js';
import { untilListens } from '../support/listening.js';
import { runPeer, spawnTracked, tryPeer } from '../support/peers.js';
import { expectEqual, pattern, qemuContent } from '../support/qcow2.js';
import { QmpClient } from '../support/qmp-client.js';
import { serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

const WRITE_LOCKED = 'Failed to get "write" lock';

/** A daemon that exports an image of 1 MiB: node `file` below node `disk`. */
async function serve(args: readonly string[] = []) {
  const scope = testScope();
  const served = await serveImage(scope, { size: MIB, args });
  const qmp = await served.daemon.qmp(scope);
  const file = { driver: 'file', 'node-name': 'file', filename: served.path };
  return { ...served, scope, qmp, file, disk: { driver: 'raw', 'node-name': 'disk' } };
}

const add = (qmp: QmpClient, node: object) => qmp.execute('blockdev-add', node);
const reopen = (qmp: QmpClient, ...options: object[]) =>
  qmp.execute('blockdev-reopen', { options });
const addGroup = (qmp: QmpClient, id: string, limits = {}) =>
  qmp.execute('object-add', { 'qom-type': 'throttle-group', id, limits });
const exportNode = (node: string) => ({ type: 'nbd', id: node, 'node-name': node, writable: true });

async function connect(scope: Scope, { socketPath: path }: { socketPath: string }, name = 'disk') {
  const client = await NbdClient.connect({ address: { type: 'unix', path }, exportName: name });
  scope.defer(() => client.close());
  return client;
}

const block = (byte: number): Buffer => Buffer.alloc(4096, byte);

/** First byte of each of the first blocks of a file. */
async function blocks(path: string, count: number): Promise<number[]> {
  const bytes = await readRange(path, 0, count * 4096);
  return [...bytes.filter((_, at) => at % 4096 === 0)];
}

const ioArgs = (target: string, commands: readonly string[]): string[] => [
  ...['-f', 'raw', ...commands.flatMap((text) => ['-c', text]), target],
];
const io = (target: string, ...commands: string[]) => runPeer('qemu-io', ioArgs(target, commands));

/** What a program complains about. */
const refusal = async (program: string, args: string[]) => (await tryPeer(program, args)).stderr;

/** Exports the image anew, through a filter that lets nobody else write to it. */
async function unshareWrites({ qmp, disk }: Awaited<ReturnType<typeof serve>>): Promise<void> {
  await qmp.execute('block-export-del', { id: 'disk' });
  await qmp.event('BLOCK_EXPORT_DELETED');
  const lock = { driver: 'blkdebug', 'node-name': 'lock', image: 'file' };
  await add(qmp, { ...lock, 'unshare-child-perms': ['write'] });
  await reopen(qmp, { ...disk, file: 'lock' });
  await qmp.execute('block-export-add', { ...exportNode('disk'), 'allow-inactive': true });
}

type Item = { id: number; name: string; type: string; parent: number; child: number };
type Graph = { nodes: Item[]; edges: Item[] };

/** Nodes and edges without their numbers, in a stable order. */
async function graph(qmp: QmpClient): Promise<string[]> {
  const { nodes, edges } = await qmp.execute<Graph>('x-debug-query-block-graph');
  const names = new Map(nodes.map(({ id, type, name }) => [id, `${type} ${name}`]));
  const lines = edges.map(({ parent, child, ...rest }) =>
    JSON.stringify([names.get(parent), names.get(child), rest]),
  );
  return [...names.values(), ...lines].sort();
}

/** Counters and histograms of a node; `total` is how many requests a histogram holds. */
async function stats(qmp: QmpClient, node: string): Promise<Record<string, unknown>> {
  type Entry = { 'node-name': string; stats: Record<string, unknown> };
  const all = await qmp.execute<Entry[]>('query-blockstats', { 'query-nodes': true });
  return all.find((entry) => entry['node-name'] === node)?.stats ?? {};
}
const total = (counts: unknown): number =>
  (counts as { bins: number[] }).bins.reduce((sum, count) => sum + count, 0);

describe('blockdev-reopen', () => {
  it('changes how a file is accessed under a client in use', async () => {
    const { scope, qmp, file, path, ...served } = await serve();
    const client = await connect(scope, served);
    await client.write(0, block(1));
    await reopen(qmp, { ...file, cache: { direct: true } });
    const cache = { writeback: true, direct: true, 'no-flush': false };
    const shown = expect.objectContaining({ 'node-name': 'file', cache });
    expect(await qmp.execute('query-named-block-nodes')).toContainEqual(shown);
    await client.write(4096, block(2));
    await reopen(qmp, file);
    await client.write(8192, block(3));
    expect(await blocks(path, 3)).toEqual([1, 2, 3]);
  });

  it('puts a filter, and another image, under an export in use', async () => {
    const { scope, qmp, disk, path, dir, ...served } = await serve();
    const filename = join(dir, 'other.img');
    await makeImage(filename, { size: MIB });
    const client = await connect(scope, served);
    await client.write(0, block(1));
    await add(qmp, { driver: 'file', 'node-name': 'other', filename });
    await addGroup(qmp, 'group');
    const throttle = { driver: 'throttle', 'node-name': 'limit', 'throttle-group': 'group' };
    await add(qmp, { ...throttle, file: 'file' });
    await reopen(qmp, { ...disk, file: 'limit' });
    await client.write(4096, block(2));
    expect(await stats(qmp, 'limit')).toMatchObject({ wr_operations: 1, wr_bytes: 4096 });
    await reopen(qmp, { ...disk, file: 'other' });
    for (const name of ['limit', 'file']) await qmp.execute('blockdev-del', { 'node-name': name });
    await client.write(8192, block(3));
    expect(await blocks(path, 3)).toEqual([1, 2, 0]);
    expect(await blocks(filename, 3)).toEqual([0, 0, 3]);
  });

  it('moves a throttle node to another group, and the old one is free', async () => {
    const { qmp, disk, uri } = await serve();
    for (const id of ['one', 'two']) await addGroup(qmp, id);
    const throttle = { driver: 'throttle', 'node-name': 'limit', file: 'file' };
    await add(qmp, { ...throttle, 'throttle-group': 'one' });
    await reopen(qmp, { ...disk, file: 'limit' });
    const options = [{ ...throttle, 'throttle-group': 'none' }];
    expect((await qmp.refused('blockdev-reopen', { options })).desc).toContain("'none'");
    expect((await qmp.refused('object-del', { id: 'one' })).desc).toContain('is in use');
    await reopen(qmp, { ...throttle, 'throttle-group': 'two' });
    await qmp.execute('object-del', { id: 'one' });
    expect((await qmp.refused('object-del', { id: 'two' })).desc).toContain('is in use');
    await io(uri, 'write -P 7 0 4k', 'read -P 7 0 4k');
  });

  it('refuses what it does not know by name, and then nothing has changed', async () => {
    const { qmp, disk, file, path, uri } = await serve();
    const raw = { ...disk, file: 'file' };
    const before = await graph(qmp);
    const said = async (...options: object[]): Promise<string> =>
      (await qmp.refused('blockdev-reopen', { options })).desc;
    const unexpected = "Parameter 'options[1].bogus' is unexpected";
    expect(await said({ ...file, cache: { direct: true } }, { ...raw, bogus: 1 })).toBe(unexpected);
    expect(await said({ ...disk, file: 'nope' })).toContain("'nope'");
    expect(await said({ ...raw, 'node-name': 'no' })).toContain("node-name='no'");
    const cannot = (key: string): string => `Cannot change the option '${key}'`;
    expect(await said({ ...file, filename: `${path}x` })).toBe(cannot('filename'));
    expect(await said({ driver: 'null-co', 'node-name': 'file' })).toBe(cannot('driver'));
    const half = [
      { ...raw, offset: 4096 },
      { ...file, locking: 'off' },
    ];
    expect(await said(...half)).toBe(cannot('locking'));
    expect(await graph(qmp)).toEqual(before);
    await io(uri, 'write -P 7 0 4k');
    expect(await blocks(path, 2)).toEqual([7, 0]);
  });
});

describe('a node', () => {
  it('with histograms counts each request once, beside true totals', async () => {
    const { qmp, uri } = await serve();
    const boundaries = [1000, 1_000_000, 1_000_000_000];
    const wanted = { id: 'disk', boundaries, 'boundaries-write': [1] };
    await qmp.execute('block-latency-histogram-set', wanted);
    await io(uri, 'write 0 64k', 'write 64k 4k', 'write -z 128k 64k', 'read 0 4k', 'flush');
    const after = await stats(qmp, 'disk');
    const written = { wr_operations: 3, wr_bytes: 132 * KIB, wr_highest_offset: 192 * KIB };
    expect(after).toMatchObject({ ...written, wr_latency_histogram: { boundaries: [1] } });
    expect(after).toMatchObject({ rd_latency_histogram: { boundaries } });
    expect(total(after.wr_latency_histogram)).toBe(3);
    expect(after.rd_operations).toBeGreaterThan(0);
    expect(total(after.rd_latency_histogram)).toBe(after.rd_operations);
    expect(total(after.flush_latency_histogram)).toBe(after.flush_operations);
    const bad = { id: 'disk', boundaries: [5], 'boundaries-write': [9, 3] };
    await expect(qmp.execute('block-latency-histogram-set', bad)).rejects.toThrow(
      'histogram boundary 3 is not above the one before it, 9',
    );
    expect(await stats(qmp, 'disk')).toMatchObject({ rd_latency_histogram: { boundaries } });
    await qmp.execute('block-latency-histogram-set', { id: 'disk' });
    expect(await stats(qmp, 'disk')).not.toHaveProperty('wr_latency_histogram');
  });

  it('that is a file tells what became of discards', async () => {
    const { qmp, uri, file } = await serve();
    await reopen(qmp, { ...file, discard: 'unmap' });
    await io(uri, 'write 0 256k', 'discard 64k 64k', 'discard 192k 64k');
    type Entry = { 'node-name': string; 'driver-specific'?: unknown };
    const all = await qmp.execute<Entry[]>('query-blockstats', { 'query-nodes': true });
    const told = all.find((entry) => entry['node-name'] === 'file')?.['driver-specific'];
    const bytes = { 'discard-bytes-ok': 128 * KIB, 'discard-nb-failed': 0 };
    expect(told).toEqual({ driver: 'file', 'discard-nb-ok': 2, ...bytes });
  });

  it('with a write threshold reports the first write that goes past it, once, with the amount', async () => {
    const { qmp, uri } = await serve();
    const threshold = { 'node-name': 'disk', 'write-threshold': 64 * KIB };
    const reports = () => qmp.events.filter(({ event }) => event === 'BLOCK_WRITE_THRESHOLD');
    await qmp.execute('block-set-write-threshold', threshold);
    await io(uri, 'write 0 64k', 'read 64k 64k');
    expect((await qmp.execute('query-version')) && reports()).toEqual([]);
    await io(uri, 'write 60k 12k', 'write 512k 4k');
    const { data } = await qmp.event('BLOCK_WRITE_THRESHOLD');
    expect(data).toEqual({ ...threshold, 'amount-exceeded': 8 * KIB });
    await qmp.execute('block-set-write-threshold', threshold);
    await qmp.execute('block-set-write-threshold', { ...threshold, 'write-threshold': 0 });
    await io(uri, 'write 512k 4k');
    expect((await qmp.execute('query-version')) && reports()).toHaveLength(1);
  });

  it('that is made inactive leaves the image to others, if its export bears that', async () => {
    const served = await serve();
    const { qmp, path } = served;
    const inactive = { 'node-name': 'disk', active: false };
    const { desc } = await qmp.refused('blockdev-set-active', inactive);
    expect(desc).toContain("Node 'disk' can't be made inactive");
    await unshareWrites(served);
    const client = await connect(served.scope, served);
    await client.write(0, block(1));
    await qmp.execute('blockdev-set-active', inactive);
    const text = "Block node 'disk' is inactive";
    await expect(client.write(0, block(2))).rejects.toThrow(text);
    await expect(client.read(0, block(0))).rejects.toThrow(text);
    await io(path, 'read -P 1 0 4k', 'write -P 3 0 4k');
    await qmp.execute('blockdev-set-active', { active: true });
    await io(served.uri, 'read -P 3 0 4k');
    await client.write(0, block(4));
    expect(await refusal('qemu-io', ioArgs(path, ['quit']))).toContain(WRITE_LOCKED);
  });

  it('shares the limits of its throttle group, which change while requests wait', async () => {
    const { scope, qmp, ...served } = await serve();
    const names = ['t0', 't1'];
    await addGroup(qmp, 'group', { 'iops-total': 1 });
    const throttle = { driver: 'throttle', 'throttle-group': 'group', file: 'file' };
    for (const name of names) {
      await add(qmp, { ...throttle, 'node-name': name });
      await qmp.execute('block-export-add', exportNode(name));
    }
    const group = { path: '/objects/group', property: 'limits' };
    expect(await qmp.execute('qom-get', group)).toMatchObject({ 'iops-total': 1, 'bps-total': 0 });
    const both = await qmp.refused('qom-set', { ...group, value: { 'iops-read': 5 } });
    expect(both.desc).toContain('cannot be used at the same time');
    let done = 0;
    const writes: Promise<void>[] = [];
    for (const name of names) {
      const client = await connect(scope, served, name);
      const write = (at: number) => client.write(at * 512, block(5)).then(() => void done++);
      writes.push(...Array.from({ length: 200 }, (_, at) => write(at)));
    }
    await Promise.race(writes);
    // One a second for both: without the limit all 400 would be done in less.
    expect(done).toBeLessThan(200);
    await qmp.execute('qom-set', { ...group, value: { 'iops-total': 0 } });
    await Promise.all(writes);
    expect(await qmp.execute('qom-get', group)).toMatchObject({ 'iops-total': 0 });
    for (const name of names) expect(await stats(qmp, name)).toMatchObject({ wr_operations: 200 });
  });

  it('is the same from the command line and from blockdev-add', async () => {
    const window = { driver: 'raw', 'node-name': 'window', offset: 4096, file: 'limit' };
    const told = await serve([
      ...['--object', 'throttle-group,id=group,limits.iops-total=1000', '--blockdev'],
      'driver=throttle,node-name=limit,throttle-group=group,' +
        'file.driver=copy-on-read,file.node-name=cor,' +
        'file.file.driver=null-co,file.file.node-name=null,file.file.size=1048576',
      ...['--blockdev', JSON.stringify(window)],
      ...['--export', 'type=nbd,id=window,node-name=window,writable=on'],
    ]);
    const { qmp } = await serve();
    await addGroup(qmp, 'group', { 'iops-total': 1000 });
    const zeroes = { driver: 'null-co', 'node-name': 'null', size: 1048576 };
    const file = { driver: 'copy-on-read', 'node-name': 'cor', file: zeroes };
    const throttle = { driver: 'throttle', 'node-name': 'limit', file };
    await add(qmp, { ...throttle, 'throttle-group': 'group' });
    await add(qmp, window);
    await qmp.execute('block-export-add', exportNode('window'));
    const added = await graph(qmp);
    expect(added).toHaveLength(14);
    expect(added).toEqual(await graph(told.qmp));
  });
});

describe('image locks', () => {
  it('keep other programs out of what the daemon does not share', async () => {
    const served = await serve();
    const { path, uri } = served;
    await unshareWrites(served);
    expect(await refusal('qemu-io', ioArgs(path, ['write 0 4k']))).toContain(WRITE_LOCKED);
    expect(await refusal('qemu-img', ['resize', '-f', 'raw', path, '2M'])).toContain(WRITE_LOCKED);
    await runPeer('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', path, uri]);
    await io(uri, 'write 0 4k');
  });

  it('keep other programs from changing the size of what is exported', async () => {
    const { path, uri } = await serve();
    const args = ['resize', '--shrink', '-f', 'raw', path, '512K'];
    expect(await refusal('qemu-img', args)).toContain('Failed to get "resize" lock');
    await io(uri, 'write 0 4k');
  });

  it('of a virtual machine keep the daemon from writing until it is gone', async () => {
    const { scope, qmp, dir } = await serve();
    const [filename, monitor] = [join(dir, 'guest.img'), join(dir, 'guest.qmp')];
    await makeImage(filename, { size: MIB });
    const drive = `file=${filename},format=raw,if=virtio`;
    const args = `-S -nodefaults -display none -qmp unix:${monitor},server=on,wait=off -drive`;
    const machine = spawnTracked('qemu-system-x86_64', [...args.split(' '), drive]);
    const gone = once(machine, 'close');
    scope.defer(() => machine.kill('SIGKILL'));
    await untilListens(machine, monitor);
    // It answers when it has its devices.
    (await QmpClient.connect(monitor)).close();
    await add(qmp, { driver: 'file', 'node-name': 'guest', filename });
    const { desc } = await qmp.refused('block-export-add', exportNode('guest'));
    expect(desc).toContain(WRITE_LOCKED);
    machine.kill('SIGTERM');
    await gone;
    await qmp.execute('block-export-add', exportNode('guest'));
  });
});

describe('a part of an image', () => {
  it('is found again by an overlay above it, from any folder', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const offset = 512 * 3;
    const disk = pattern(4 * MIB, 7);
    await writeFile(join(dir, 'disk'), disk);
    const window = `raw,node-name=part,offset=${offset},size=${MIB}`;
    const blockdev = ['--blockdev', `${window},file.driver=file,file.filename=disk`];
    const daemon = await startDaemon(scope, blockdev, { cwd: dir });
    const qmp = await daemon.qmp(scope);
    const overlay = join(dir, 'overlay');
    const names = { 'node-name': 'part', 'snapshot-node-name': 'top', 'snapshot-file': overlay };
    await qmp.execute('blockdev-snapshot-sync', names);
    await daemon.stop();
    const expected = disk.subarray(offset, offset + MIB);
    expectEqual(await qemuContent(overlay, join(dir, 'scratch')), expected);
    const copy = join(dir, 'copy');
    const converted = await diskferry(['img', 'convert', '-O', 'raw', overlay, copy]);
    expect(converted.code, converted.stderr).toBe(0);
    expectEqual(await readFile(copy), expected);
  });
});
