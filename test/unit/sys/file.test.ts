// SPDX-License-Identifier: MIT
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { FILE_POOL_RUN, FILE_POOL_RUN_FIRST, FILE_READ_NOW_MAX } from '../../../src/base/limits.js';
import { AdaptiveGate } from '../../../src/sys/adaptive-gate.js';
import { allocateAligned } from '../../../src/sys/direct-io.js';
import { DiskFile } from '../../../src/sys/file.js';
import { FileHoles } from '../../../src/sys/holes.js';
import { addressOf, inPool, lastErrno, native } from '../../../src/sys/linux.js';
import { testScope } from '../../support/temp.js';

const CACHED = { writable: true, direct: false };

async function openTemp(content: Buffer, options = CACHED): Promise<DiskFile> {
  const scope = testScope();
  const path = join(await scope.tempDir(), 'file');
  await writeFile(path, content);
  const file = await DiskFile.open(path, options);
  scope.defer(() => file.close());
  return file;
}

/** A file on tmpfs, which knows no ZERO_RANGE. */
async function openInMemory(size: number): Promise<DiskFile> {
  const scope = testScope();
  const folder = await mkdtemp('/dev/shm/diskferry-');
  scope.defer(() => rm(folder, { recursive: true }));
  const path = join(folder, 'file');
  await writeFile(path, '');
  await truncate(path, size);
  const file = await DiskFile.open(path, CACHED);
  scope.defer(() => file.close());
  return file;
}

describe('DiskFile', () => {
  it('reads what is in the page cache at once, up to the longest read of the event loop', async () => {
    const file = await openTemp(Buffer.alloc(2 * FILE_READ_NOW_MAX, 7));
    const longest = Buffer.alloc(FILE_READ_NOW_MAX);
    expect(file.read(0, longest)).toBeUndefined();
    expect(longest.equals(Buffer.alloc(FILE_READ_NOW_MAX, 7))).toBe(true);
    const longer = Buffer.alloc(FILE_READ_NOW_MAX + 1);
    const pending = file.read(0, longer);
    expect(pending).toBeInstanceOf(Promise);
    await pending;
    expect(longer.equals(Buffer.alloc(FILE_READ_NOW_MAX + 1, 7))).toBe(true);
  });

  it('reads a file in memory at once', async () => {
    const file = await openInMemory(64 * 1024);
    await file.write(100, Buffer.from('hello'), 'cached');
    const buffer = Buffer.alloc(5);
    expect(file.read(100, buffer)).toBeUndefined();
    expect(buffer.toString()).toBe('hello');
  });

  it('waits for what a read that must not wait could not get', async () => {
    const file = await openTemp(Buffer.from('0123456789'));
    // The kernel has no memory at hand for a page, say; some errno is left behind that is none of the known.
    const preadv2 = vi.spyOn(native, 'preadv2').mockImplementationOnce(() => {
      native.pread(-1, Buffer.alloc(1), 1, 0);
      return -1;
    });
    onTestFinished(() => preadv2.mockRestore());
    const buffer = Buffer.alloc(4);
    const pending = file.read(2, buffer);
    expect(lastErrno()).toBe(constants.errno.EBADF);
    expect(pending).toBeInstanceOf(Promise);
    await pending;
    expect(buffer.toString()).toBe('2345');
  });

  it('reads into exactly its own part of a larger buffer', async () => {
    const file = await openTemp(Buffer.from('0123456789'));
    const whole = Buffer.alloc(10, '.');
    await file.read(2, whole.subarray(3, 6));
    expect(whole.toString()).toBe('...234....');
  });

  it('fills up with zeroes past the end', async () => {
    const file = await openTemp(Buffer.from('abc'));
    for (const [offset, expected] of [
      [1, 'bc\0\0'],
      [3, '\0\0\0\0'],
      [1000, '\0\0\0\0'],
    ] as const) {
      const buffer = Buffer.alloc(4, 0xff);
      await file.read(offset, buffer);
      expect(buffer.toString('latin1')).toBe(expected);
    }
  });

  it('writes durably what is then read', async () => {
    const file = await openTemp(Buffer.alloc(10));
    await file.write(3, Buffer.from('xyz'), 'durable');
    const buffer = Buffer.alloc(10);
    await file.read(0, buffer);
    expect(buffer.toString()).toBe('\0\0\0xyz\0\0\0\0');
  });

  it('says what was attempted, where, and why it failed', async () => {
    const file = await openTemp(Buffer.alloc(10), { writable: false, direct: false });
    expect(() => file.write(3, Buffer.alloc(4), 'cached')).toThrow(
      /^write of 4 bytes at 3 of '.*' failed$/,
    );
    await expect(file.write(3, Buffer.alloc(4), 'durable')).rejects.toMatchObject({
      code: 'DF_IO',
      context: { errno: 'EBADF', offset: 3, length: 4 },
      cause: { message: 'Bad file descriptor' },
    });
  });

  it('says that the file system is full', async () => {
    const file = await DiskFile.open('/dev/full', CACHED);
    await expect(async () => file.write(0, Buffer.alloc(4), 'cached')).rejects.toMatchObject({
      code: 'DF_NO_SPACE',
    });
    await file.close();
  });

  it('closes only when what is in flight has ended', async () => {
    const file = await openTemp(Buffer.alloc(4 * FILE_READ_NOW_MAX, 3));
    const buffer = Buffer.alloc(4 * FILE_READ_NOW_MAX);
    const order: string[] = [];
    const reading = Promise.resolve(file.read(0, buffer)).then(() => order.push('read'));
    const closing = file.close().then(() => order.push('closed'));
    await Promise.all([reading, closing]);
    expect(order).toEqual(['read', 'closed']);
    expect(buffer.every((byte) => byte === 3)).toBe(true);
    file.close = async () => undefined;
  });
});

describe('FileHoles', () => {
  it('says once and for all kinds what the file system lacks', async () => {
    const file = await openInMemory(64 * 1024);
    const holes = new FileHoles(file);
    await holes.change('punch', 0, 4096);
    expect(() => holes.change('zero', 0, 4096)).toThrow(
      expect.objectContaining({ code: 'DF_NOT_SUPPORTED' }),
    );
  });

  it('finds data and holes, and a hole without end after the last data', async () => {
    const file = await openTemp(Buffer.alloc(0));
    await file.truncate(1024 * 1024);
    await file.write(256 * 1024, Buffer.alloc(64 * 1024, 1), 'cached');
    const holes = new FileHoles(file);
    expect(await holes.find(0)).toEqual({ data: false, end: 256 * 1024 });
    expect(await holes.find(300 * 1024)).toEqual({ data: true, end: 320 * 1024 });
    expect(await holes.find(320 * 1024)).toEqual({ data: false, end: Number.POSITIVE_INFINITY });
    expect(await holes.find(2 ** 40)).toEqual({ data: false, end: Number.POSITIVE_INFINITY });
  });
});

describe('AdaptiveGate', () => {
  let nowMs = 0;
  const call = (gate: AdaptiveGate, tookMs: number): boolean => {
    if (!gate.mayRunNow()) return false;
    const started = gate.start();
    nowMs += tookMs;
    gate.end(started);
    return true;
  };
  /** How many calls go to the pool until one is tried on the loop again. */
  const poolRun = (gate: AdaptiveGate, thenTookMs: number): number => {
    let run = 0;
    while (!call(gate, thenTookMs)) run++;
    return run;
  };

  it('sends the next few calls to the pool after one that was slow, then tries again', () => {
    const gate = new AdaptiveGate(2, () => nowMs);
    expect(call(gate, 1.9)).toBe(true);
    expect(call(gate, 2.1)).toBe(true);
    expect(poolRun(gate, 0)).toBe(FILE_POOL_RUN_FIRST);
    expect(call(gate, 0)).toBe(true);
  });

  it('sends twice as many each time that the try was in vain, up to a few dozen', () => {
    const gate = new AdaptiveGate(2, () => nowMs);
    call(gate, 3);
    const runs = Array.from({ length: 7 }, () => poolRun(gate, 3));
    expect(runs).toEqual([2, 4, 8, 16, 32, FILE_POOL_RUN, FILE_POOL_RUN]);
  });

  it('begins with few again when many calls in a row were quick', () => {
    const gate = new AdaptiveGate(2, () => nowMs);
    call(gate, 3);
    for (let index = 0; index < 6; index++) poolRun(gate, 3);
    expect(poolRun(gate, 0)).toBe(FILE_POOL_RUN);
    for (let index = 0; index < 100; index++) expect(call(gate, 0)).toBe(true);
    call(gate, 3);
    expect(poolRun(gate, 0)).toBe(FILE_POOL_RUN_FIRST);
  });
});

describe('memory', () => {
  it('allocates at the alignment asked for, and zeroed', () => {
    for (const alignment of [512, 4096, 65536]) {
      const buffer = allocateAligned(1000, alignment);
      expect(addressOf(buffer) % alignment).toBe(0);
      expect(buffer).toEqual(Buffer.alloc(1000));
    }
  });

  it('knows the address of a part of a buffer', () => {
    const whole = Buffer.alloc(1 << 20);
    expect(addressOf(whole.subarray(12345)) - addressOf(whole)).toBe(12345);
  });
});

describe('inPool', () => {
  it('reports the errno of the call that failed, not of one in between', async () => {
    const bad = inPool(native.fallocate, 'fallocate', -1, 0, 0, 1);
    const invalid = openTemp(Buffer.alloc(1)).then((file) =>
      inPool(native.fallocate, 'fallocate', file.fd, 0, -1, -1),
    );
    await expect(bad).rejects.toMatchObject({ code: 'EBADF', syscall: 'fallocate' });
    await expect(invalid).rejects.toMatchObject({ code: 'EINVAL' });
  });
});
