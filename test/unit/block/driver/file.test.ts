// SPDX-License-Identifier: MIT
import {
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  stat,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import {
  REQ_FUA,
  REQ_MAY_UNMAP,
  STATUS_DATA,
  STATUS_ZERO,
} from '../../../../src/block/block-driver.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../../src/block/permissions.js';
import {
  makeReadOnlyLocked,
  makeWritableLocked,
  reopenNodes,
} from '../../../../src/block/reopen.js';
import {
  blockDriverSuite,
  expectSame,
  pattern,
  readBack,
} from '../../../suite/block-driver.suite.js';
import { runPeer } from '../../../support/peers.js';
import { Scope, testScope } from '../../../support/temp.js';
import { localGraph, READER, RESIZER, type UsedNode, useNode, WRITER } from './test-graph.js';

const KIB = 1024;
const MIB = 1024 * KIB;

async function makeFile(size: number, options: object = {}): Promise<UsedNode> {
  const scope = new Scope();
  const filename = join(await scope.tempDir(), 'image');
  await writeFile(filename, '');
  await truncate(filename, size);
  const used = await useNode({ driver: 'file', filename, ...options });
  scope.defer(used.close);
  return { ...used, close: () => scope.close() };
}

blockDriverSuite('file', (size) => makeFile(size));
blockDriverSuite('file with discard=unmap', (size) => makeFile(size, { discard: 'unmap' }));
blockDriverSuite('file with auto-read-only', (size) => makeFile(size, { 'auto-read-only': true }));
blockDriverSuite('file with cache.direct', (size) => makeFile(size, { cache: { direct: true } }));
blockDriverSuite('file with cache.no-flush', (size) =>
  makeFile(size, { cache: { 'no-flush': true } }),
);
blockDriverSuite('file with detect-zeroes=unmap', (size) =>
  makeFile(size, { 'detect-zeroes': 'unmap', discard: 'unmap' }),
);

let scope: Scope;
let directory: string;
let filename: string;

beforeEach(async () => {
  scope = testScope();
  directory = await scope.tempDir();
  filename = join(directory, 'image');
  await writeFile(filename, '');
  await truncate(filename, MIB);
});

/** A used `file` node that is closed when the test ends. */
async function use(options: object = {}, permissions = WRITER): Promise<UsedNode> {
  const used = await useNode({ driver: 'file', filename, ...options }, permissions);
  scope.defer(used.close);
  return used;
}

describe('file: opening', () => {
  it('refuses what is no regular file, by name, without waiting for it', async () => {
    const fifo = join(directory, 'fifo');
    await runPeer('mkfifo', [fifo]);
    for (const path of [fifo, '/dev/null']) {
      await expect(useNode({ driver: 'file', filename: path })).rejects.toMatchObject({
        code: 'DF_INVALID',
        message: `'file' driver requires '${path}' to be a regular file`,
      });
    }
  });

  it('says which path it could not open, and the cause says why', async () => {
    const missing = join(directory, 'missing');
    await expect(useNode({ driver: 'file', filename: missing })).rejects.toMatchObject({
      code: 'DF_NOT_FOUND',
      message: `Could not open '${missing}'`,
      context: { errno: 'ENOENT' },
      cause: { message: 'No such file or directory' },
    });
    await mkdir(join(directory, 'folder'));
    await expect(
      useNode({ driver: 'file', filename: join(directory, 'folder') }),
    ).rejects.toMatchObject({ cause: { message: 'Is a directory' } });
  });

  it('refuses an empty path and one with a zero byte', async () => {
    await expect(useNode({ driver: 'file', filename: '' })).rejects.toThrow('file name');
    await expect(useNode({ driver: 'file', filename: `${filename}\0x` })).rejects.toThrow(
      "Parameter 'filename'",
    );
  });

  it('leaves no descriptor behind when it is refused', async () => {
    const fifo = join(directory, 'fifo');
    await runPeer('mkfifo', [fifo]);
    await expect(useNode({ driver: 'file', filename: fifo })).rejects.toThrow('regular file');
    const descriptors = await readdir('/proc/self/fd');
    const targets = descriptors.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => ''));
    expect(await Promise.all(targets)).not.toContain(fifo);
  });

  it('refuses writers when it is read-only', async () => {
    await expect(use({ 'read-only': true })).rejects.toMatchObject({ code: 'DF_READ_ONLY' });
  });
});

describe('file: content', () => {
  it('puts bytes where other programs read them', async () => {
    const { node } = await use();
    const data = pattern(4, 3 * KIB);
    await node.write(5 * KIB, data);
    expectSame((await readFile(filename)).subarray(5 * KIB, 8 * KIB), data);
  });

  it('reads what the page cache has at once', async () => {
    const { node } = await use();
    await node.write(0, pattern(1, 64 * KIB));
    expect(node.read(0, Buffer.alloc(4 * KIB))).toBeUndefined();
  });

  it('reads and writes more than one call on the event loop takes', async () => {
    const size = 8 * MIB;
    await truncate(filename, size);
    const { node } = await use();
    const data = pattern(9, size);
    expect(node.write(0, data)).toBeInstanceOf(Promise);
    await node.flush();
    await node.write(0, data);
    expectSame(await readBack(node, 0, size), data);
  });

  it('reads what is no longer in the page cache', async () => {
    const data = pattern(9, MIB);
    await writeFile(filename, data);
    const { node } = await use();
    const evict = [
      '-c',
      'import os,sys; f=os.open(sys.argv[1],os.O_RDONLY); os.fsync(f); os.posix_fadvise(f,0,0,os.POSIX_FADV_DONTNEED)',
      filename,
    ];
    await runPeer('python3', evict);
    expectSame(await readBack(node, 0, MIB), data);
    await runPeer('python3', evict);
    const buffers = Array.from({ length: 64 }, () => Buffer.alloc(16 * KIB));
    await Promise.all(buffers.map((buffer, at) => node.read(at * 16 * KIB, buffer)));
    expectSame(Buffer.concat(buffers), data);
  });

  it('reads zeroes where another process has cut the file off', async () => {
    await writeFile(filename, pattern(1, MIB));
    const { node } = await use();
    await truncate(filename, 512 * KIB);
    expectSame(await readBack(node, 512 * KIB, 512 * KIB), Buffer.alloc(512 * KIB));
    expectSame(
      await readBack(node, 511 * KIB, KIB),
      pattern(1, MIB).subarray(511 * KIB, 512 * KIB),
    );
  });

  it('grows by writing for a parent that may resize, and only for that', async () => {
    const resizer = await use({}, RESIZER);
    await resizer.node.write(2 * MIB, pattern(1, 100));
    await resizer.node.writeZeroes(3 * MIB, 1000, REQ_MAY_UNMAP);
    expect(resizer.node.size).toBe(3 * MIB + 1000);
    expect((await stat(filename)).size).toBe(3 * MIB + 1000);
    await resizer.close();
    const { node } = await use();
    expect(() => node.write(3 * MIB + 1000, Buffer.alloc(1))).toThrow('past the end');
  });

  it('keeps what is written further out while zeroes let it grow', async () => {
    const { node } = await use({}, RESIZER);
    const far = pattern(3, 4 * MIB);
    const zeroing = node.writeZeroes(512 * KIB, MIB);
    await Promise.all([zeroing, node.write(2 * MIB, far)]);
    expect(node.size).toBe(6 * MIB);
    expectSame(await readBack(node, 2 * MIB, 4 * MIB), far);
  });
});

describe('file: holes', () => {
  const blocks = async () => (await stat(filename)).blocks * 512;

  it('gives space back on discard, and on write zeroes that may unmap', async () => {
    const { node } = await use({ discard: 'unmap' });
    await node.write(0, pattern(1, MIB));
    await node.flush();
    const full = await blocks();
    await node.discard(0, 256 * KIB);
    await node.writeZeroes(512 * KIB, 256 * KIB, REQ_MAY_UNMAP);
    expect(await blocks()).toBe(full - 512 * KIB);
  });

  it('keeps the space on write zeroes that may not unmap, and ignores discards unless told', async () => {
    const { node } = await use();
    await node.write(0, pattern(1, MIB));
    await node.flush();
    const full = await blocks();
    await node.discard(0, 256 * KIB);
    await node.writeZeroes(512 * KIB, 256 * KIB);
    expect(await blocks()).toBeGreaterThanOrEqual(full);
    expectSame(await readBack(node, 0, 256 * KIB), pattern(1, MIB).subarray(0, 256 * KIB));
  });

  it('tells holes from data, also after they have changed', async () => {
    const { node } = await use({ discard: 'unmap' });
    expect(await node.blockStatus(0, MIB)).toMatchObject({ length: MIB });
    expect((await node.blockStatus(0, MIB)).flags & STATUS_ZERO).toBe(STATUS_ZERO);
    await node.write(256 * KIB, pattern(1, 256 * KIB));
    expect(await node.blockStatus(0, MIB)).toMatchObject({ length: 256 * KIB });
    const data = await node.blockStatus(256 * KIB, MIB - 256 * KIB);
    expect(data).toMatchObject({ length: 256 * KIB, hostOffset: 256 * KIB });
    expect(data.flags & (STATUS_DATA | STATUS_ZERO)).toBe(STATUS_DATA);
    await node.discard(320 * KIB, 64 * KIB);
    expect(await node.blockStatus(256 * KIB, 256 * KIB)).toMatchObject({ length: 64 * KIB });
    expect((await node.blockStatus(320 * KIB, 64 * KIB)).flags & STATUS_ZERO).toBe(STATUS_ZERO);
  });

  it('agrees with qemu-img about the map', async () => {
    const { node, close } = await use({ discard: 'unmap' });
    await node.write(64 * KIB, pattern(1, 128 * KIB));
    await node.write(512 * KIB, pattern(1, 64 * KIB));
    await node.flush();
    const ours: { start: number; length: number; data: boolean }[] = [];
    for (let start = 0; start < MIB; ) {
      const { length, flags } = await node.blockStatus(start, MIB - start);
      ours.push({ start, length, data: (flags & STATUS_DATA) !== 0 });
      start += length;
    }
    await close();
    const { stdout } = await runPeer('qemu-img', ['map', '--output=json', '-f', 'raw', filename]);
    const theirs = (JSON.parse(stdout) as typeof ours).map(({ start, length, data }) => ({
      start,
      length,
      data,
    }));
    expect(ours).toEqual(theirs);
  });
});

describe('file: size', () => {
  it('takes space ahead with preallocation falloc and full', async () => {
    const { node } = await use({}, RESIZER);
    await node.truncate(2 * MIB, { exact: true, preallocation: 'falloc' });
    expect((await stat(filename)).blocks * 512).toBeGreaterThanOrEqual(MIB);
    await node.truncate(3 * MIB, { exact: true, preallocation: 'full' });
    expect((await stat(filename)).blocks * 512).toBeGreaterThanOrEqual(2 * MIB);
    expectSame(await readBack(node, MIB, 2 * MIB), Buffer.alloc(2 * MIB));
  });

  it('refuses preallocation of metadata, and with it shrinking', async () => {
    const { node } = await use({}, RESIZER);
    await expect(
      node.truncate(2 * MIB, { exact: true, preallocation: 'metadata' }),
    ).rejects.toThrow('Unsupported preallocation mode: metadata');
    await expect(node.truncate(KIB, { exact: true, preallocation: 'full' })).rejects.toThrow(
      'Cannot use preallocation for shrinking files',
    );
  });
});

describe('file: direct I/O', () => {
  it('reads and writes from memory at any address, and at the end of an odd-sized file', async () => {
    await truncate(filename, MIB + 700);
    const { node } = await use({ cache: { direct: true } });
    expect(node.limits.requestAlignment).toBeGreaterThanOrEqual(512);
    const data = pattern(6, 100_000);
    const odd = Buffer.alloc(data.byteLength + 1).subarray(1);
    data.copy(odd);
    await node.write(12_345, odd);
    await node.write(MIB + 600, Buffer.alloc(100, 5), REQ_FUA);
    expect(node.size).toBe(MIB + 700);
    expectSame(await readBack(node, 12_345, data.byteLength), data);
    expectSame(
      await readBack(node, MIB + 590, 110),
      Buffer.concat([Buffer.alloc(10), Buffer.alloc(100, 5)]),
    );
  });
});

describe('file: locks', () => {
  const qemuIo = (...args: string[]) => runPeer('qemu-io', ['-f', 'raw', ...args, filename]);

  it('keeps qemu from writing what we write and do not share', async () => {
    const { close } = await use({}, { ...WRITER, shared: PERM_CONSISTENT_READ });
    await expect(qemuIo('-c', 'write 0 512')).rejects.toThrow('Failed to get "write" lock');
    await close();
    await qemuIo('-c', 'write 0 512');
  });

  it('lets qemu read what we share, and keeps it from what we do not', async () => {
    await use({ 'read-only': true }, { ...READER, shared: PERM_CONSISTENT_READ });
    await qemuIo('-r', '-c', 'read 0 512');
    await expect(qemuIo('-c', 'write 0 512')).rejects.toThrow('Failed to get "write" lock');
  });

  it('is kept out by another node that does not share, with advice for a person', async () => {
    const one = await use({}, { ...WRITER, shared: PERM_CONSISTENT_READ });
    await expect(use()).rejects.toMatchObject({
      code: 'DF_LOCKED',
      message: 'Failed to get "write" lock',
      context: { hint: `Is another process using the image [${filename}]?` },
    });
    await expect(use({ locking: 'off' })).resolves.toBeDefined();
    await one.close();
    await expect(use()).resolves.toBeDefined();
  });

  it('is kept from not sharing what another node does', async () => {
    await use();
    await expect(
      use({ 'read-only': true }, { taken: PERM_CONSISTENT_READ, shared: PERM_CONSISTENT_READ }),
    ).rejects.toThrow('Failed to get shared "write" lock');
  });

  it('reads beside a writer that shares nothing, with force-share', async () => {
    await use({}, { ...WRITER, shared: PERM_CONSISTENT_READ });
    const reader = { taken: PERM_CONSISTENT_READ, shared: 0 };
    const { node } = await use({ 'read-only': true, 'force-share': true }, reader);
    expectSame(await readBack(node, 0, 512), Buffer.alloc(512));
  });

  it('holds the locks that qemu holds for the same permissions', async () => {
    const graph = localGraph();
    const exclusive = { ...WRITER, shared: PERM_CONSISTENT_READ };
    const used = await useNode({ driver: 'file', filename }, exclusive, graph);
    scope.defer(used.close);
    const { ino } = await stat(filename);
    const table = await readFile('/proc/locks', 'utf8');
    const bytes = table
      .split('\n')
      .filter((line) => line.includes(`:${ino} `) && line.includes('OFDLCK'))
      .flatMap((line) => {
        const [first, last] = line.trim().split(/\s+/).slice(-2).map(Number);
        const from = first ?? 0;
        return Array.from({ length: (last ?? from) - from + 1 }, (_, at) => from + at);
      })
      .sort((a, b) => a - b);
    // Taken: consistent-read, write. Not shared: write, write-unchanged, resize.
    expect(bytes).toEqual([100, 101, 201, 202, 203]);
  });
});

describe('file: auto-read-only', () => {
  const accessOf = async (): Promise<number[]> => {
    const { ino } = await stat(filename);
    const { stdout } = await runPeer('python3', [
      '-c',
      'import os,sys,re\n' +
        'd=f"/proc/{sys.argv[1]}"\n' +
        'for n in os.listdir(d+"/fd"):\n' +
        '  try:\n' +
        '    if os.stat(f"{d}/fd/{n}").st_ino==int(sys.argv[2]):\n' +
        '      print(int(re.search(r"flags:\\s*(\\d+)",open(f"{d}/fdinfo/{n}").read())[1],8)&3)\n' +
        '  except FileNotFoundError: pass',
      String(process.pid),
      String(ino),
    ]);
    return stdout.split('\n').filter(Boolean).map(Number);
  };

  it('has the file open for writing only while a parent writes', async () => {
    const { graph, backend, node } = await use({ 'auto-read-only': true }, READER);
    expect(await accessOf()).toEqual([0]);
    await graph.setPermissions(backend, WRITER);
    expect(await accessOf()).toEqual([2]);
    await node.write(0, Buffer.alloc(512, 1));
    await graph.setPermissions(backend, READER);
    expect(await accessOf()).toEqual([0]);
    expectSame(await readBack(node, 0, 512), Buffer.alloc(512, 1));
  });

  it('is opened for writing for a format that keeps others from writing, and closed again', async () => {
    const alone = { taken: PERM_CONSISTENT_READ, shared: PERM_ALL & ~PERM_WRITE };
    const file = { driver: 'file', filename };
    await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', filename, '1M']);
    const image = await useNode({ driver: 'qcow2', 'read-only': true, file }, alone);
    scope.defer(image.close);
    await image.graph.exclusive(() => makeWritableLocked(image.graph, image.node));
    expect(await accessOf()).toEqual([2]);
    await expect(use()).rejects.toMatchObject({ code: 'DF_LOCKED' });
    await image.graph.exclusive(() => makeReadOnlyLocked(image.graph, image.node));
    expect(await accessOf()).toEqual([0]);
    await expect(use()).rejects.toMatchObject({ code: 'DF_LOCKED' });
  });

  it('keeps the old descriptor and locks when the change is refused', async () => {
    const { graph, backend, node } = await use({ 'auto-read-only': true }, READER);
    const other = await open(filename, 'r');
    scope.defer(() => other.close());
    await use({ 'read-only': true }, { ...READER, shared: PERM_ALL & ~PERM_WRITE });
    await expect(graph.setPermissions(backend, WRITER)).rejects.toThrow(
      'Failed to get "write" lock',
    );
    expect(await accessOf()).toEqual([0, 0, 0]);
    expectSame(await readBack(node, 0, 512), Buffer.alloc(512));
  });
});

describe('file: reopen', () => {
  const options = (more: object) => ({ driver: 'file', 'node-name': 'f', filename, ...more });

  it('changes between read-only and writable, cached and direct', async () => {
    const { graph, backend, node } = await use({ 'node-name': 'f', 'read-only': true }, READER);
    await expect(graph.setPermissions(backend, WRITER)).rejects.toThrow('read-only');
    await reopenNodes(graph, [options({})]);
    await graph.setPermissions(backend, WRITER);
    await node.write(0, Buffer.alloc(512, 1));
    await reopenNodes(graph, [options({ cache: { direct: true } })]);
    expect(node.limits.requestAlignment).toBeGreaterThan(1);
    await node.write(100, Buffer.alloc(100, 2));
    await graph.setPermissions(backend, READER);
    await reopenNodes(graph, [options({ 'read-only': true })]);
    const expected = Buffer.alloc(512, 1).fill(2, 100, 200);
    expectSame(await readBack(node, 0, 512), expected);
    expect(() => node.write(0, Buffer.alloc(1))).toThrow('read-only');
  });

  it('keeps its locks through a reopen', async () => {
    const { graph } = await use({ 'node-name': 'f' }, { ...WRITER, shared: PERM_CONSISTENT_READ });
    await reopenNodes(graph, [options({ cache: { direct: true } })]);
    await expect(use()).rejects.toThrow('Failed to get "write" lock');
  });

  it('refuses another file, and is as before then', async () => {
    const { graph, node } = await use({ 'node-name': 'f' });
    await expect(
      reopenNodes(graph, [{ ...options({}), filename: `${filename}2` }]),
    ).rejects.toThrow("Cannot change the option 'filename'");
    await node.write(0, Buffer.alloc(512, 3));
  });
});
