// SPDX-License-Identifier: MIT
import { execFileSync } from 'node:child_process';
import { truncateSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { createConnection, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { DiskFile } from '../../../src/sys/file.js';
import { native } from '../../../src/sys/linux.js';
import { FilePayload, FileSender } from '../../../src/sys/send-file.js';
import { MIB, patternBytes } from '../../support/images.js';
import { type Scope, testScope } from '../../support/temp.js';

const HEAD = Buffer.from('sixteen bytes ..');

interface Pair {
  readonly scope: Scope;
  readonly path: string;
  readonly file: DiskFile;
  readonly sender: FileSender;
  /** The sending end. */
  readonly fd: number;
  readonly reader: Socket;
}

/** A file of `content` and a UNIX socket that nobody reads from yet. */
async function pair(content: Buffer, direct = false): Promise<Pair> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 'file');
  await writeFile(path, content);
  const file = await DiskFile.open(path, { writable: true, direct });
  scope.defer(() => file.close());
  const server = createServer();
  const socketPath = join(dir, 'socket');
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  scope.defer(() => server.close());
  const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
  const reader = createConnection(socketPath).pause();
  scope.defer(() => reader.destroy());
  const writer = await accepted;
  scope.defer(() => writer.destroy());
  const { fd } = (writer as unknown as { _handle: { fd: number } })._handle;
  return { scope, path, file, sender: new FileSender(file), fd, reader };
}

function request(fd: number, offset: number, length: number, notAllZero = false) {
  const reply = Buffer.alloc(HEAD.byteLength + length, 0xee);
  HEAD.copy(reply);
  return { socket: fd, offset, reply, headLength: HEAD.byteLength, notAllZero };
}

async function receive(reader: Socket, length: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let got = 0;
  const done = new Promise<void>((resolve) => {
    reader.on('data', (chunk: Buffer) => {
      chunks.push(chunk);
      got += chunk.byteLength;
      if (got >= length) resolve();
    });
  });
  reader.resume();
  if (length > 0) await done;
  reader.pause();
  return Buffer.concat(chunks);
}

/** Does something else in place of sendfile, for this test. */
function insteadOfSendfile(act: (real: typeof native.sendfile, args: unknown[]) => number): void {
  const real = native.sendfile;
  const spy = vi.spyOn(native, 'sendfile');
  onTestFinished(() => spy.mockRestore());
  spy.mockImplementation((...args: unknown[]) => act(real, args));
}

/** Writes the file back and takes it out of the page cache. */
function dropCache(path: string): void {
  const options = [`of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0'];
  execFileSync('dd', options, { stdio: 'ignore' });
}

describe('FileSender', () => {
  it('sends head and data that the page cache has', async () => {
    const content = patternBytes(MIB, 1);
    const { sender, fd, reader } = await pair(content);
    const asked = request(fd, 4097, 64 * 1024);
    expect(sender.send(asked)).toBe(asked.reply.byteLength);
    const got = await receive(reader, asked.reply.byteLength);
    expect(got.equals(Buffer.concat([HEAD, content.subarray(4097, 4097 + 65536)]))).toBe(true);
  });

  it('leaves in the reply what the socket did not take', async () => {
    const content = patternBytes(8 * MIB, 2);
    const { sender, fd, reader } = await pair(content);
    const asked = request(fd, 0, content.byteLength);
    const taken = sender.send(asked);
    expect(taken).toBeGreaterThan(HEAD.byteLength);
    expect(taken).toBeLessThan(asked.reply.byteLength);
    expect(asked.reply.subarray(taken).equals(content.subarray(taken - HEAD.byteLength))).toBe(
      true,
    );
    const got = await receive(reader, taken);
    expect(got.subarray(HEAD.byteLength).equals(content.subarray(0, taken - HEAD.byteLength))).toBe(
      true,
    );
  });

  it('does nothing while the socket takes nothing', async () => {
    const { sender, fd } = await pair(patternBytes(8 * MIB, 3));
    sender.send(request(fd, 0, 8 * MIB));
    expect(sender.send(request(fd, 0, 128 * 1024))).toBe(0);
  });

  it('does not wait for data that is not in the page cache', async () => {
    const { sender, fd, path } = await pair(patternBytes(4 * MIB, 4));
    dropCache(path);
    expect(sender.send(request(fd, 0, MIB))).toBe(0);
  });

  it('does not wait for a page in the middle that is not in the page cache', async () => {
    const { sender, file, fd, path } = await pair(patternBytes(4 * MIB, 5));
    dropCache(path);
    for (const at of [0, MIB - 4096]) await file.write(at, patternBytes(4096, 6), 'cached');
    // Otherwise the test shows nothing.
    const looks = [0, MIB - 64, MIB / 2].map((at) => file.peek(at, Buffer.alloc(64)));
    expect(looks).toEqual([64, 64, -1]);
    expect(sender.send(request(fd, 0, MIB))).toBe(0);
  });

  it('refuses what may be all zero when that matters, and sends it when it does not', async () => {
    const content = Buffer.alloc(MIB);
    content[MIB / 2] = 1;
    const { sender, fd } = await pair(content);
    expect(sender.send(request(fd, 0, 128 * 1024, true))).toBe(0);
    expect(sender.send(request(fd, 0, 128 * 1024, false))).toBeGreaterThan(0);
  });

  it.each([
    ['first', 0],
    ['last', 128 * 1024 - 1],
  ])('sends what has another byte than zero in its %s place', async (_name, at) => {
    const content = Buffer.alloc(MIB);
    content[at] = 1;
    const { sender, fd } = await pair(content);
    expect(sender.send(request(fd, 0, 128 * 1024, true))).toBeGreaterThan(0);
  });

  it('refuses what reaches past the end of the file', async () => {
    const { sender, fd } = await pair(patternBytes(MIB, 6));
    expect(sender.send(request(fd, MIB - 65536, 65537))).toBe(0);
  });

  it('fills up with zeroes when the file is cut off meanwhile', async () => {
    const content = patternBytes(MIB, 7);
    const { sender, fd, path } = await pair(content);
    insteadOfSendfile((real, args) => {
      truncateSync(path, 100_000);
      return real(...(args as Parameters<typeof real>));
    });
    const asked = request(fd, 0, 128 * 1024);
    expect(sender.send(asked)).toBe(HEAD.byteLength + 100_000);
    expect(asked.reply.subarray(HEAD.byteLength + 100_000).every((byte) => byte === 0)).toBe(true);
  });

  it('copies for good where the file system can not send', async () => {
    const content = patternBytes(MIB, 8);
    const { sender, fd } = await pair(content);
    insteadOfSendfile((real, [, , ...rest]) => real(fd, -1, ...(rest as [Uint8Array, number])));
    const asked = request(fd, 0, 128 * 1024);
    expect(sender.send(asked)).toBe(HEAD.byteLength);
    expect(asked.reply.subarray(HEAD.byteLength).equals(content.subarray(0, 131072))).toBe(true);
    expect(sender.send(request(fd, 0, 128 * 1024))).toBe(0);
  });

  it('throws when the rest of a reply can not be read', async () => {
    const { sender, fd, file } = await pair(patternBytes(MIB, 9));
    insteadOfSendfile(() => 0);
    const real = native.pread;
    const spy = vi.spyOn(native, 'pread');
    onTestFinished(() => spy.mockRestore());
    spy.mockImplementation((_fd, ...rest) => real(-1, ...rest));
    expect(() => sender.send(request(fd, 0, 128 * 1024))).toThrow(
      `read of 131072 bytes at 0 of '${file.path}' failed`,
    );
  });

  it('sends nothing of a file that is open past the page cache', async () => {
    const { sender, fd } = await pair(patternBytes(MIB, 10), true);
    expect(sender.send(request(fd, 0, 128 * 1024))).toBe(0);
  });

  it('waits for lent pages until the peer has read them', async () => {
    const { sender, fd, reader } = await pair(patternBytes(MIB, 11));
    expect(sender.whenReturned()).toBeUndefined();
    const taken = sender.send(request(fd, 0, 128 * 1024));
    let returned = false;
    const pending = Promise.resolve(sender.whenReturned()).then(() => {
      returned = true;
    });
    for (let turns = 0; turns < 10; turns++) await new Promise((next) => setTimeout(next, 1));
    expect(returned).toBe(false);
    await receive(reader, taken);
    await pending;
    expect(sender.whenReturned()).toBeUndefined();
  });

  it('does not wait for ever for a peer that reads nothing, nor twice', async () => {
    const { sender, fd } = await pair(patternBytes(MIB, 12));
    sender.send(request(fd, 0, 128 * 1024));
    await sender.whenReturned();
    expect(sender.whenReturned()).toBeUndefined();
  });

  it('does not wait for a socket that is closed', async () => {
    const { sender, fd, reader } = await pair(patternBytes(MIB, 13));
    sender.send(request(fd, 0, 128 * 1024));
    reader.destroy();
    await sender.whenReturned();
    expect(sender.whenReturned()).toBeUndefined();
  });
});

describe('FilePayload', () => {
  const NONE = Buffer.alloc(0);

  it('sends a head and the bytes behind it, from wherever it is asked to', async () => {
    const content = patternBytes(MIB, 14);
    const { file, fd, reader } = await pair(content);
    const payload = FilePayload.of(file, 5000, 300_000);
    expect(payload?.length).toBe(300_000);
    expect(payload?.send(fd, HEAD, 100, 1000)).toBe(HEAD.byteLength + 1000);
    expect(payload?.send(fd, NONE, 1100, 500)).toBe(500);
    const got = await receive(reader, HEAD.byteLength + 1500);
    expect(got.equals(Buffer.concat([HEAD, content.subarray(5100, 6600)]))).toBe(true);
  });

  it('says how much a socket took, and that it is full', async () => {
    const content = patternBytes(8 * MIB, 15);
    const { file, fd, reader } = await pair(content);
    const payload = FilePayload.of(file, 0, content.byteLength);
    const taken = payload?.send(fd, HEAD, 0, content.byteLength) ?? 0;
    expect(taken).toBeGreaterThan(HEAD.byteLength);
    expect(taken).toBeLessThan(content.byteLength);
    expect(payload?.send(fd, NONE, taken - HEAD.byteLength, MIB)).toBe(0);
    expect(payload?.send(fd, HEAD, taken - HEAD.byteLength, MIB)).toBe(0);
    const got = await receive(reader, taken);
    const data = content.subarray(0, taken - HEAD.byteLength);
    expect(got.equals(Buffer.concat([HEAD, data]))).toBe(true);
  });

  it('is none where the page cache lacks some of it', async () => {
    const { file, path } = await pair(patternBytes(4 * MIB, 16));
    dropCache(path);
    await file.write(0, patternBytes(MIB, 17), 'cached');
    expect(FilePayload.of(file, 0, MIB)).toBeDefined();
    expect(FilePayload.of(file, 0, 2 * MIB)).toBeUndefined();
  });

  it('is none where a piece may be all zero that a copy by hand would have found', async () => {
    const content = patternBytes(MIB, 18);
    content.fill(0, 512 * 1024, 768 * 1024);
    const { file } = await pair(content);
    expect(FilePayload.of(file, 0, 512 * 1024)).toBeDefined();
    expect(FilePayload.of(file, 0, MIB)).toBeUndefined();
  });

  it('is looked at to its last byte', async () => {
    const { file } = await pair(patternBytes(MIB, 19));
    expect(FilePayload.of(file, 0, 256 * 1024 + 5)?.length).toBe(256 * 1024 + 5);
    expect(FilePayload.of(file, MIB - 65_536, 65_537)).toBeUndefined();
  });

  it('does not wait for what has left the page cache since', async () => {
    const { file, fd, path } = await pair(patternBytes(4 * MIB, 20));
    const now = vi.spyOn(performance, 'now');
    onTestFinished(() => now.mockRestore());
    now.mockReturnValue(1000);
    const payload = FilePayload.of(file, 0, MIB);
    dropCache(path);
    now.mockReturnValue(1100);
    expect(payload?.send(fd, HEAD, 0, MIB)).toBe(-1);
  });

  it('does nothing more where the file system can not send', async () => {
    const { file, fd, reader } = await pair(patternBytes(MIB, 21));
    const payload = FilePayload.of(file, 0, MIB);
    insteadOfSendfile((real, [, , ...rest]) => real(fd, -1, ...(rest as [Uint8Array, number])));
    expect(payload?.send(fd, HEAD, 0, MIB)).toBe(HEAD.byteLength);
    expect(payload?.send(fd, NONE, 0, MIB)).toBe(-1);
    expect((await receive(reader, HEAD.byteLength)).equals(HEAD)).toBe(true);
  });

  it('reads zeroes past the end of a file that was cut off', async () => {
    const content = patternBytes(MIB, 22);
    const { file, fd, path } = await pair(content);
    const payload = FilePayload.of(file, 0, MIB);
    truncateSync(path, 100_000);
    expect(payload?.send(fd, NONE, 100_000, 1000)).toBe(0);
    const target = Buffer.alloc(2000, 1);
    await payload?.read(99_000, target);
    expect(target.subarray(0, 1000).equals(content.subarray(99_000, 100_000))).toBe(true);
    expect(target.subarray(1000).every((byte) => byte === 0)).toBe(true);
  });
});
