// SPDX-License-Identifier: MIT
/** Jobs whose data goes from the page cache into a server's socket, while the source is written to. */
import { execFileSync } from 'node:child_process';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { BlockBackend } from '../../src/block/backend.js';
import { nbdDefinition } from '../../src/block/driver/nbd.js';
import type { BlockGraph } from '../../src/block/graph.js';
import type { BlockNode } from '../../src/block/node.js';
import { openNode } from '../../src/block/open-node.js';
import { BackupJob, type BackupOptions } from '../../src/job/backup.js';
import type { Job } from '../../src/job/job.js';
import { JobRegistry } from '../../src/job/job-registry.js';
import { MirrorJob } from '../../src/job/mirror.js';
import { native } from '../../src/sys/linux.js';
import { MIB, patternBytes } from '../support/images.js';
import { reached } from '../support/jobs.js';
import { TARGET_PEERS, type TargetPeer, TargetServer } from '../support/target-server.js';
import { type Scope, testScope } from '../support/temp.js';
import { localGraph, WRITER } from '../unit/block/driver/test-graph.js';

const SIZE = 24 * MIB;

interface Bench {
  readonly graph: BlockGraph;
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly registry: JobRegistry;
  readonly server: TargetServer;
  readonly sourcePath: string;
  readonly image: string;
  /** Bytes that sendfile has put into sockets. */
  readonly lent: () => number;
  /** Writes until it is stopped. @returns stops it */
  write(): () => Promise<void>;
}

function countLent(): () => number {
  const sending = vi.spyOn(native, 'sendfile');
  onTestFinished(() => sending.mockRestore());
  return () =>
    sending.mock.results.reduce((sum, { value }) => sum + Math.max(Number(value ?? 0), 0), 0);
}

/** @param format of the source @param more options of the target's node */
async function bench(
  scope: Scope,
  peer: TargetPeer,
  { format = 'raw', more = {} }: { format?: 'raw' | 'qcow2'; more?: object } = {},
): Promise<Bench> {
  const dir = await scope.tempDir();
  const image = join(dir, 'target');
  await writeFile(image, '');
  await truncate(image, SIZE);
  const raw = join(dir, 'source.raw');
  await writeFile(raw, patternBytes(SIZE, 1));
  let sourcePath = raw;
  if (format === 'qcow2') {
    sourcePath = join(dir, 'source.qcow2');
    execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, sourcePath]);
  }
  const server = await TargetServer.start(scope, { peer, image, dir });
  const graph = localGraph();
  graph.drivers.register(nbdDefinition);
  scope.defer(() => graph.closeAll());
  const owned = { monitorOwned: true };
  const file = { driver: 'file', filename: sourcePath };
  const source = await openNode(graph, { driver: format, 'node-name': 's', file }, owned);
  const address = { type: 'unix', path: server.socketPath };
  const options = { driver: 'nbd', 'node-name': 't', server: address, export: 'disk', ...more };
  const target = await openNode(graph, options, owned);
  const guest = new BlockBackend("export 'guest'");
  await graph.attach(guest, source, WRITER);
  scope.defer(() => graph.detach(guest));
  const write = (): (() => Promise<void>) => {
    let stopping = false;
    const writing = (async () => {
      for (let i = 0; !stopping; i++) {
        await guest.write(((i * 7919) % (SIZE / 65_536)) * 65_536 + 4096, patternBytes(9000, i));
        await turn();
      }
    })();
    return () => {
      stopping = true;
      return writing;
    };
  };
  const registry = new JobRegistry();
  return {
    ...{ graph, source, target, registry, server, sourcePath, image, write, lent: countLent() },
  };
}

const MIRROR = { id: 'j', granularity: 65_536, windowLength: 4 * MIB, unmap: true } as const;

async function mirror(made: Bench, options: Partial<Parameters<typeof MirrorJob.create>[1]> = {}) {
  const { graph, source, target, registry } = made;
  const how = { ...MIRROR, source, target, sync: 'full', ...options } as const;
  return await registry.run('j', () => MirrorJob.create(graph, how, registry));
}

async function ended({ registry }: Bench, job: Job): Promise<void> {
  await reached(registry, job, 'null');
  expect(job.error).toBeUndefined();
}

function expectSameBytes(left: Buffer, right: Buffer): void {
  expect(Buffer.compare(left, right)).toBe(0);
}

/** It lends most of its data until it is READY, and ends with a copy of what the writer has left. */
async function expectReadyAndSame(
  made: Bench,
  job: MirrorJob,
  stopWriter: () => Promise<unknown>,
): Promise<void> {
  await reached(made.registry, job, 'ready');
  expect(made.lent()).toBeGreaterThan(SIZE / 2);
  await stopWriter();
  job.cancel({ force: false });
  await ended(made, job);
  expectSameBytes(await readFile(made.image), await readFile(made.sourcePath));
}

describe('a mirror of a file to a server on a UNIX socket', () => {
  it.each(TARGET_PEERS)('is byte for byte what a writer has left: %s', async (peer) => {
    const scope = testScope();
    const made = await bench(scope, peer);
    const stop = made.write();
    const job = await mirror(made);
    await expectReadyAndSame(made, job, stop);
  });

  it('is so where writes go to both', async () => {
    const scope = testScope();
    const made = await bench(scope, 'nbdkit');
    const stop = made.write();
    const job = await mirror(made, { copyMode: 'write-blocking' });
    await expectReadyAndSame(made, job, stop);
  });

  it('is so from a qcow2 image', async () => {
    const scope = testScope();
    const made = await bench(scope, 'qemu-nbd', { format: 'qcow2' });
    const job = await mirror(made);
    await reached(made.registry, job, 'ready');
    expect(made.lent()).toBeGreaterThan(SIZE / 2);
    job.cancel({ force: false });
    await ended(made, job);
    expectSameBytes(await readFile(made.image), patternBytes(SIZE, 1));
  });

  it('is so when the server is killed in the middle and comes back', async () => {
    const scope = testScope();
    const made = await bench(scope, 'nbdkit', { more: { 'reconnect-delay': 60 } });
    const stop = made.write();
    const job = await mirror(made, { speed: 32 * MIB });
    await expect.poll(() => job.progressCurrent, { timeout: 20_000 }).toBeGreaterThan(4 * MIB);
    await made.server.kill();
    await made.server.restart();
    job.setSpeed(0);
    await expectReadyAndSame(made, job, stop);
  });

  it('does not lose what looks for zeroes', async () => {
    const scope = testScope();
    const made = await bench(scope, 'nbdkit', { more: { 'detect-zeroes': 'on' } });
    const job = await mirror(made);
    await reached(made.registry, job, 'ready');
    expect(made.lent()).toBe(0);
    job.cancel({ force: false });
    await ended(made, job);
    expectSameBytes(await readFile(made.image), patternBytes(SIZE, 1));
  });
});

describe('a backup of a file to a server on a UNIX socket', () => {
  const backup = async (made: Bench, options: object = {}): Promise<BackupJob> => {
    const { graph, source, target, registry } = made;
    const fixed = {
      id: 'j',
      sync: 'full',
      bitmapMode: 'on-success',
      clusterLength: 65_536,
    } as const;
    const how: BackupOptions = {
      ...{ ...fixed, source, target, requestsMax: 64, chunkLengthMax: 0, ...options },
    };
    return await registry.run('j', () => BackupJob.create(graph, how, registry));
  };

  it.each(TARGET_PEERS)('is what the file was at the start, under a writer: %s', async (peer) => {
    const made = await bench(testScope(), peer);
    const job = await backup(made);
    const stop = made.write();
    await ended(made, job);
    await stop();
    expect(made.lent()).toBeGreaterThan(SIZE / 4);
    expectSameBytes(await readFile(made.image), patternBytes(SIZE, 1));
  });

  it.each([
    ['a failed copy is tried again', { onTargetError: 'ignore' }, {}],
    ['a lost server is waited for', {}, { 'reconnect-delay': 60 }],
  ])('is copied where %s', async (_name, options, more) => {
    const made = await bench(testScope(), 'nbdkit', { more });
    const job = await backup(made, options);
    await ended(made, job);
    expect(made.lent()).toBe(0);
    expectSameBytes(await readFile(made.image), patternBytes(SIZE, 1));
  });
});
