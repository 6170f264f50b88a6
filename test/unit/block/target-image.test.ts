// SPDX-License-Identifier: MIT
import { access, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.js';
import type { DriverOptions } from '../../../src/block/block-driver.js';
import { createImage } from '../../../src/block/create-image.js';
import { fileDriver, hostDeviceDriver } from '../../../src/block/driver/file/driver.js';
import { nbdDefinition } from '../../../src/block/driver/nbd.js';
import { rawDriver } from '../../../src/block/driver/raw.js';
import { filenameOptions } from '../../../src/block/image-filename.js';
import { openTargetImage } from '../../../src/block/target-image.js';
import { NewFile } from '../../../src/sys/new-file.js';
import { memoryGraph } from '../../support/memory-driver.js';
import { testScope } from '../../support/temp.js';

/** A graph with a format 'boxed', whose images are a line of their options and then the data. */
function makeGraph() {
  const { graph, add } = memoryGraph();
  for (const driver of [fileDriver, hostDeviceDriver, rawDriver, nbdDefinition]) {
    graph.drivers.register(driver);
  }
  graph.drivers.register({
    ...rawDriver,
    name: 'boxed',
    children: [...rawDriver.children, { key: 'backing', role: 'backing', required: false }],
    create: {
      nodes: [{ key: 'file', required: true }],
      backing: true,
      async create(options: DriverOptions, context) {
        const head = Buffer.from(JSON.stringify(options));
        await context.node('file').truncate(head.byteLength);
        await context.node('file').write(0, head);
      },
    },
  });
  graph.drivers.register({
    ...rawDriver,
    name: 'full',
    create: {
      nodes: [{ key: 'file', required: true }],
      create: () => Promise.reject(new BlockError('DF_NO_SPACE', 'no room')),
    },
  });
  return { graph, add };
}

describe('an image that is made for a job', () => {
  it('is made by its format in a file that is made first', async () => {
    const { graph, add } = makeGraph();
    const source = await add('source', 4096);
    const filename = join(await testScope().tempDir(), 'image');
    const request = { filename, format: 'boxed', source, createSize: 4096 };
    const { node, fresh } = await openTargetImage(graph, { ...request, nodeName: 'image' });
    expect(fresh).toBe(true);
    expect(node.name).toBe('image');
    expect(node.options.given.backing).toBeNull();
    expect(JSON.parse(await readFile(filename, 'utf8'))).toEqual({ driver: 'boxed', size: 4096 });
    expect(source.parents.size).toBe(0);
    await graph.closeAll();
  });

  it('is told of its backing image, and opened above that node', async () => {
    const { graph, add } = makeGraph();
    const source = await add('source', 4096);
    const backing = await add('base', 4096);
    const filename = join(await testScope().tempDir(), 'image');
    const request = { filename, format: 'boxed', source, createSize: 4096, backing };
    const { node } = await openTargetImage(graph, request);
    expect(node.children.get('backing')?.node).toBe(backing);
    expect(JSON.parse(await readFile(filename, 'utf8'))).toMatchObject({
      'backing-file': 'json:{"driver":"memory","size":4096}',
      'backing-fmt': 'memory',
    });
    await graph.closeAll();
  });

  it('leaves no node behind when it can not be made', async () => {
    const { graph, add } = makeGraph();
    const source = await add('source', 4096);
    const dir = await testScope().tempDir();
    await mkdir(join(dir, 'folder'));
    const request = { filename: join(dir, 'folder'), format: 'raw', source, createSize: 4096 };
    await expect(openTargetImage(graph, request)).rejects.toThrow(/^Could not create '/);
    expect(graph.nodes).toEqual([source]);
    expect(source.parents.size).toBe(0);
  });
});

describe('a file in which no image could be made', () => {
  const request = async () => {
    const { graph, add } = makeGraph();
    const source = await add('source', 4096);
    const filename = join(await testScope().tempDir(), 'image');
    return { graph, image: { filename, format: 'full', source, createSize: 4096 } };
  };

  it('goes again', async () => {
    const { graph, image } = await request();
    await expect(openTargetImage(graph, image)).rejects.toThrow('no room');
    await expect(access(image.filename)).rejects.toThrow('ENOENT');
  });

  it('stays when it was there before', async () => {
    const { graph, image } = await request();
    await writeFile(image.filename, 'x');
    await expect(openTargetImage(graph, image)).rejects.toThrow('no room');
    await access(image.filename);
  });

  it('goes again when it can not be as large', async () => {
    const { graph, image } = await request();
    const { signal } = new AbortController();
    const file = { driver: 'file', filename: image.filename, size: 1 };
    const bad = { ...file, preallocation: 'metadata' };
    await expect(createImage(graph, bad, signal)).rejects.toThrow();
    await expect(access(image.filename)).rejects.toThrow('ENOENT');
  });

  it('is not taken for another that has its name by then', async () => {
    const { filename } = (await request()).image;
    const made = await NewFile.make(filename);
    expect(await NewFile.make(filename)).toBeUndefined();
    await writeFile(`${filename}.other`, 'x');
    await rename(`${filename}.other`, filename);
    await made?.remove();
    expect(await readFile(filename, 'utf8')).toBe('x');
  });
});

describe('the file name of an image', () => {
  it.each<[string, DriverOptions]>([
    ['/a/b:c', { driver: 'file', filename: '/a/b:c' }],
    ['./a:b', { driver: 'file', filename: './a:b' }],
    ['image', { driver: 'file', filename: 'image' }],
    ['file:image', { driver: 'file', filename: 'image' }],
    ['/dev/null', { driver: 'file', filename: '/dev/null' }],
    [
      'nbd://host/name',
      { driver: 'nbd', server: { type: 'inet', host: 'host', port: '10809' }, export: 'name' },
    ],
    [
      'nbd+unix:///name?socket=/s',
      { driver: 'nbd', server: { type: 'unix', path: '/s' }, export: 'name' },
    ],
    [
      'nbd:host:77:exportname=n',
      { driver: 'nbd', server: { type: 'inet', host: 'host', port: '77' }, export: 'n' },
    ],
    [
      'ws://host:80/name',
      { driver: 'nbd', server: { type: 'websocket', url: 'ws://host:80/name' }, export: 'name' },
    ],
  ])('%s means %j', async (filename, options) => {
    expect(await filenameOptions(makeGraph().graph.drivers, filename)).toEqual(options);
  });

  it.each([
    ['', "The 'file' block driver requires a file name"],
    ['foo:bar', "Unknown protocol 'foo'"],
    ['nbds://host/name', "The driver nbd has no TLS: 'nbds://host/name'"],
    ['wss://host/name', "The driver nbd has no TLS: 'wss://host/name'"],
  ])('%j is refused: %s', async (filename, text) => {
    await expect(filenameOptions(makeGraph().graph.drivers, filename)).rejects.toThrow(text);
  });
});
