// SPDX-License-Identifier: MIT
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlockBackend } from '../../../src/block/backend.js';
import type { CreateContext, DriverOptions } from '../../../src/block/block-driver.js';
import { fileDriver } from '../../../src/block/driver/file/driver.js';
import { rawDriver } from '../../../src/block/driver/raw.js';
import { openNode } from '../../../src/block/open-node.js';
import { PERM_ALL, PERM_WRITE } from '../../../src/block/permissions.js';
import { CreateJob } from '../../../src/job/create.js';
import { JobRegistry } from '../../../src/job/job-registry.js';
import { reached } from '../../support/jobs.js';
import { memoryGraph } from '../../support/memory-driver.js';
import { testScope } from '../../support/temp.js';

/** A graph with a format 'boxed', whose images are a letter before and after the data. */
async function makeBench(during: (context: CreateContext) => Promise<void> = async () => {}) {
  const { graph, add, driverOf } = memoryGraph();
  graph.drivers.register(fileDriver);
  graph.drivers.register({
    ...rawDriver,
    name: 'boxed',
    create: {
      nodes: [
        { key: 'file', required: true },
        { key: 'data-file', required: false },
      ],
      async create(options: DriverOptions, context) {
        const size = Number(options.size);
        const file = context.node('file');
        await file.truncate(size + 2);
        await file.write(0, Buffer.from('<'));
        await file.write(size + 1, Buffer.from('>'));
        await context.findNode('data-file')?.write(0, Buffer.from('data'));
        await during(context);
      },
    },
  });
  const registry = new JobRegistry();
  const dir = await testScope().tempDir();
  return {
    graph,
    add,
    driverOf,
    registry,
    path: join(dir, 'image'),
    start: (image: DriverOptions): Promise<CreateJob> =>
      registry.run('job', () => new CreateJob(graph, { id: 'job', image }, registry)),
  };
}

describe('blockdev-create as a job', () => {
  it('makes an image in a node defined in place, and closes it', async () => {
    const { start, path, graph, registry } = await makeBench();
    await writeFile(path, 'before');
    const job = await start({
      driver: 'boxed',
      size: 6,
      file: { driver: 'file', filename: path },
    });
    await reached(registry, job, 'concluded');
    expect(job.error).toBeUndefined();
    expect(job.progressCurrent).toBe(1);
    expect(await readFile(path, 'latin1')).toBe('<efore\0>');
    expect(graph.nodes).toEqual([]);
  });

  it('stays concluded, with its error, until it is dismissed', async () => {
    const { start, registry } = await makeBench();
    const job = await start({ driver: 'boxed', size: 6, file: 'nobody' });
    await reached(registry, job, 'concluded');
    expect(job.error?.message).toBe("Cannot find device='nobody' nor node-name='nobody'");
    expect(registry.jobs).toEqual([job]);
    job.dismiss();
    expect(registry.jobs).toEqual([]);
  });

  it('writes to nodes that are named, which stay', async () => {
    const { start, registry, graph, add, driverOf } = await makeBench();
    const file = await add('disk', 100);
    const data = await add('data', 4);
    const job = await start({ driver: 'boxed', size: 6, file: 'disk', 'data-file': 'data' });
    await reached(registry, job, 'concluded');
    expect(job.error?.message).toBeUndefined();
    expect(driverOf(file).data.toString('latin1')).toBe('<\0\0\0\0\0\0>');
    expect(driverOf(data).data.toString('latin1')).toBe('data');
    expect(driverOf(file).flushes).toBe(1);
    expect(graph.nodes).toEqual([file, data]);
    expect([...file.parents, ...data.parents]).toEqual([]);
  });

  it('refuses a node that somebody else writes to, and leaves it as it is', async () => {
    const { start, registry, graph, add } = await makeBench();
    const node = await add('disk', 100);
    const guest = new BlockBackend("export 'guest'");
    await graph.attach(guest, node, { taken: PERM_WRITE, shared: PERM_ALL });
    const job = await start({ driver: 'boxed', size: 6, file: 'disk' });
    await reached(registry, job, 'concluded');
    expect(job.error?.message).toMatch(/required by export 'guest'.*unshared by blockdev-create/);
    expect(node.parents.size).toBe(1);
  });

  it('refuses a node that is read-only', async () => {
    const { start, registry, graph, path } = await makeBench();
    await writeFile(path, 'kept');
    const file = { driver: 'file', filename: path, 'read-only': true };
    const job = await start({ driver: 'boxed', size: 6, file });
    await reached(registry, job, 'concluded');
    expect(job.error?.message).toMatch(/is read-only$/);
    expect(await readFile(path, 'latin1')).toBe('kept');
    expect(graph.nodes).toEqual([]);
  });

  it('does not make a file empty that somebody has open for writing', async () => {
    const { start, registry, graph, path } = await makeBench();
    await writeFile(path, 'precious');
    const node = await openNode(graph, { driver: 'file', filename: path, 'node-name': 'n' });
    const guest = new BlockBackend("export 'guest'");
    await graph.attach(guest, node, { taken: PERM_WRITE, shared: 0 });
    const job = await start({ driver: 'file', filename: path, size: 4 });
    await reached(registry, job, 'concluded');
    expect(job.error?.message).toMatch(/^Failed to get "write" lock/);
    expect(await readFile(path, 'latin1')).toBe('precious');
    await graph.detach(guest);
  });

  it('ends at once when it is cancelled, also where the driver waits', async () => {
    let waiting = (): void => {};
    const began = new Promise<void>((resolve) => {
      waiting = resolve;
    });
    const { start, registry, path, graph } = await makeBench(async ({ signal }) => {
      waiting();
      await new Promise<void>((_resolve, reject) => {
        signal.addEventListener('abort', () => reject(new Error('given up')));
      });
    });
    await writeFile(path, '');
    const job = await start({
      driver: 'boxed',
      size: 6,
      file: { driver: 'file', filename: path },
    });
    await began;
    job.cancel({ force: true });
    await reached(registry, job, 'concluded');
    expect(job.error?.message).toBe('Operation canceled');
    expect(graph.nodes).toEqual([]);
  });
});
