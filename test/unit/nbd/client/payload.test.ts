// SPDX-License-Identifier: MIT
/** Writes whose payload is sent by where it lies. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { NBD_CMD_READ, NBD_CMD_WRITE } from '../../../../protocol/nbd/constants.js';
import type { PayloadSource } from '../../../../src/nbd/client/payload.js';
import { ClientRequest } from '../../../../src/nbd/client/request.js';
import { RequestWriter } from '../../../../src/nbd/client/request-writer.js';
import type { Transport } from '../../../../src/nbd/client/transport.js';
import { DiskFile } from '../../../../src/sys/file.js';
import { native } from '../../../../src/sys/linux.js';
import { FilePayload } from '../../../../src/sys/send-file.js';
import { MIB, patternBytes } from '../../../support/images.js';
import type { Scope } from '../../../support/temp.js';
import { failure, start } from './fake-server.js';

const HEAD = 28;
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** What has reached the other end, by whichever way. */
class Wire implements Transport {
  sink = undefined;
  readonly takesSources = true;
  readonly bytes: Buffer[] = [];
  readonly held: { pieces: readonly Uint8Array[]; done: () => void }[] = [];

  readonly fd: number | undefined;

  constructor({ hasDescriptor } = { hasDescriptor: true }) {
    this.fd = hasDescriptor ? 7 : undefined;
  }

  get all(): Buffer {
    return Buffer.concat(this.bytes);
  }

  write(pieces: readonly Uint8Array[], done: () => void): void {
    this.held.push({ pieces, done });
  }

  /** The kernel takes what was written first. @returns its length */
  take(): number {
    const first = this.held.shift();
    if (first === undefined) throw new Error('nothing was written');
    const before = this.all.byteLength;
    for (const piece of first.pieces) this.bytes.push(Buffer.from(piece));
    first.done();
    return this.all.byteLength - before;
  }

  end(): void {}
  destroy(): void {}
}

interface Sent {
  readonly head: number;
  readonly from: number;
}

/** Sends as many bytes as it is told to each time, then none. */
class ToldSource implements PayloadSource {
  readonly length: number;
  readonly sent: Sent[] = [];
  reading: ((target: Buffer) => void | Promise<void>) | undefined;

  constructor(
    readonly wire: Wire,
    readonly data: Buffer,
    readonly answers: number[],
  ) {
    this.length = data.byteLength;
  }

  send(_socket: number, head: Uint8Array, from: number, length: number): number {
    this.sent.push({ head: head.byteLength, from });
    const answer = Math.min(this.answers.shift() ?? 0, head.byteLength + length);
    if (answer < 0) return answer;
    const bytes = Buffer.concat([head, this.data.subarray(from)]);
    this.wire.bytes.push(Buffer.from(bytes.subarray(0, answer)));
    return answer;
  }

  read(from: number, target: Buffer): void | Promise<void> {
    if (this.reading !== undefined) return this.reading(target);
    this.data.copy(target, 0, from);
  }
}

function writerOn(wire: Wire): RequestWriter {
  return new RequestWriter(wire, { extended: false, written: () => {} });
}

function writeOf(source: PayloadSource): ClientRequest {
  const fields = { command: NBD_CMD_WRITE, flags: 0, offset: 0, length: source.length, source };
  return new ClientRequest(fields, () => {});
}

function readRequest(): ClientRequest {
  return new ClientRequest({ command: NBD_CMD_READ, flags: 0, offset: 9, length: 9 }, () => {});
}

const DATA = patternBytes(200_000, 1);

test('head and payload leave together where nothing is on its way', async () => {
  const wire = new Wire();
  const source = new ToldSource(wire, DATA, [1e9]);
  const writer = writerOn(wire);
  const request = writeOf(source);
  writer.add(request, { now: true });
  await turn();
  expect(source.sent).toEqual([{ head: HEAD, from: 0 }]);
  expect(wire.held).toEqual([]);
  expect(wire.all.subarray(HEAD).equals(DATA)).toBe(true);
  expect(writer.isWritten(request)).toBe(true);
});

test.each([
  ['took a part', [HEAD + 1000, 5000, 0, 1e9]],
  ['took nothing', [0, 1e9]],
  ['took a part of the head', [10, 0, 1e9]],
  ['took the head alone', [HEAD, 1e9]],
  ['can not be sent to', [-1]],
  ['can be sent to no longer', [HEAD + 70_000, -1]],
])('everything arrives in order where the socket %s', async (_name, answers) => {
  const wire = new Wire();
  const writer = writerOn(wire);
  const request = writeOf(new ToldSource(wire, DATA, answers));
  writer.add(request, { now: true });
  writer.add(readRequest(), { now: false });
  await turn();
  while (wire.held.length > 0) wire.take();
  expect(wire.all.byteLength).toBe(HEAD + DATA.byteLength + HEAD);
  expect(wire.all.subarray(HEAD, HEAD + DATA.byteLength).equals(DATA)).toBe(true);
  expect(wire.all.readUInt32BE(0)).toBe(0x25609513);
  expect(wire.all.readUInt32BE(HEAD + DATA.byteLength)).toBe(0x25609513);
  expect(writer.isWritten(request)).toBe(true);
});

test('other requests wait while a payload is half sent', async () => {
  const wire = new Wire();
  const writer = writerOn(wire);
  writer.add(writeOf(new ToldSource(wire, DATA, [HEAD + 1000])), { now: true });
  await turn();
  const other = readRequest();
  writer.add(other, { now: true });
  const third = new ToldSource(wire, DATA, [1e9]);
  writer.add(writeOf(third), { now: false });
  await turn();
  expect(wire.held.length).toBe(1);
  expect(third.sent).toEqual([]);
  while (wire.held.length > 0) wire.take();
  expect(wire.all.byteLength).toBe(3 * HEAD + 2 * DATA.byteLength);
  expect(wire.all.subarray(HEAD, HEAD + DATA.byteLength).equals(DATA)).toBe(true);
  expect(wire.all.subarray(3 * HEAD + DATA.byteLength).equals(DATA)).toBe(true);
});

test('a payload waits until what was written before is with the kernel', async () => {
  const wire = new Wire();
  const writer = writerOn(wire);
  writer.add(readRequest(), { now: true });
  await turn();
  const source = new ToldSource(wire, DATA, [1e9]);
  writer.add(writeOf(source), { now: true });
  await turn();
  expect(source.sent).toEqual([]);
  wire.take();
  expect(source.sent).toEqual([]);
  wire.take();
  expect(source.sent).toEqual([{ head: 0, from: 0 }]);
  expect(wire.all.subarray(2 * HEAD).equals(DATA)).toBe(true);
});

test('nothing is sent after the connection has ended', async () => {
  const wire = new Wire();
  const writer = writerOn(wire);
  const source = new ToldSource(wire, DATA, [HEAD + 1000]);
  writer.add(writeOf(source), { now: true });
  await turn();
  writer.stop();
  const before = wire.all.byteLength;
  expect(wire.take()).toBeLessThan(DATA.byteLength);
  expect(source.sent.length).toBe(1);
  expect(wire.held).toEqual([]);
  expect(wire.all.byteLength).toBeGreaterThan(before);
});

test('without a descriptor the source is read', async () => {
  const wire = new Wire({ hasDescriptor: false });
  const source = new ToldSource(wire, DATA, [1e9]);
  writerOn(wire).add(writeOf(source), { now: true });
  await turn();
  while (wire.held.length > 0) wire.take();
  expect(source.sent).toEqual([]);
  expect(wire.all.subarray(HEAD).equals(DATA)).toBe(true);
});

/** A source that is only read, after `send` said no. */
function readSource(length: number, read: PayloadSource['read']): PayloadSource {
  return { length, send: () => -1, read };
}

test('what can not be read fails its request, and no other one', async () => {
  const { peer, client } = await start();
  const broken = readSource(100_000, (from, target) => {
    target.fill(7);
    return from > 0 ? Promise.reject(new Error('the disk is gone')) : undefined;
  });
  const thrown = readSource(100_000, () => {
    throw new Error('it never was there');
  });
  const secret = readSource(100_000, (_from, target) => void target.fill(7));
  const results = await Promise.allSettled([
    client.writeFrom(0, broken),
    client.writeFrom(600_000, secret).then(() => client.writeFrom(200_000, thrown)),
    client.write(400_000, DATA),
  ]);
  expect(results.map((result) => result.status)).toEqual(['rejected', 'rejected', 'fulfilled']);
  expect(String(Reflect.get(results[0], 'reason'))).toContain('the disk is gone');
  expect(String(Reflect.get(results[1], 'reason'))).toContain('it never was there');
  expect(peer.memory.subarray(400_000, 600_000).equals(DATA)).toBe(true);
  // Nothing of an earlier payload may be in what the head has promised.
  expect(peer.memory.subarray(200_000, 300_000).every((byte) => byte === 0)).toBe(true);
});

interface Lent {
  readonly file: DiskFile;
  readonly path: string;
}

async function fileOf(scope: Scope, content: Buffer): Promise<Lent> {
  const path = join(await scope.tempDir(), 'source');
  await writeFile(path, content);
  const file = await DiskFile.open(path, { writable: true, direct: false });
  scope.defer(() => file.close());
  return { file, path };
}

function lend(file: DiskFile, offset: number, length: number): FilePayload {
  const payload = FilePayload.of(file, offset, length);
  if (payload === undefined) throw new Error('the file is not at hand');
  return payload;
}

test('files reach a server through a socket that is too small, among other requests', async () => {
  const { peer, client, scope } = await start({ size: 16 * MIB });
  const content = patternBytes(12 * MIB, 3);
  const { file } = await fileOf(scope, content);
  const works: Promise<void>[] = [];
  const back = Buffer.alloc(100_000);
  for (let at = 0; at < content.byteLength; at += 3 * MIB) {
    works.push(client.writeFrom(at, lend(file, at, 3 * MIB)));
    works.push(client.write(13 * MIB + at / 16, DATA.subarray(0, 100_000)));
    works.push(client.read(15 * MIB, back), client.flush());
  }
  await Promise.all(works);
  expect(peer.memory.subarray(0, content.byteLength).equals(content)).toBe(true);
  for (let at = 13 * MIB; at < 13 * MIB + (3 * MIB) / 4; at += (3 * MIB) / 16) {
    expect(peer.memory.subarray(at, at + 100_000).equals(DATA.subarray(0, 100_000))).toBe(true);
  }
  expect(peer.requests.length).toBe(16);
});

test('a source longer than the server takes goes in parts', async () => {
  const { peer, client, scope } = await start({ size: 4 * MIB, blockSizes: [1, 4096, 64 * 1024] });
  const content = patternBytes(MIB + 5, 4);
  const { file } = await fileOf(scope, content);
  await client.writeFrom(100, lend(file, 0, content.byteLength));
  expect(peer.memory.subarray(100, 100 + content.byteLength).equals(content)).toBe(true);
  expect(peer.requests.length).toBe(17);
});

test('a request that is sent again reads what lies in its source then', async () => {
  let answering = false;
  const { peer, client, scope } = await start(
    { onRequest: () => !answering },
    { reconnectDelaySeconds: 60 },
  );
  const { file } = await fileOf(scope, patternBytes(300_000, 5));
  const work = client.writeFrom(0, lend(file, 0, 300_000));
  await expect.poll(() => peer.requests.length).toBe(1);
  const newer = patternBytes(300_000, 6);
  await file.write(0, newer, 'cached');
  answering = true;
  await peer.stop();
  await peer.listen();
  await work;
  expect(peer.memory.subarray(0, 300_000).equals(newer)).toBe(true);
});

test('what may be sent only once fails when the connection is lost under it', async () => {
  const { peer, client, scope } = await start(
    { onRequest: (_c, { type }) => type === NBD_CMD_WRITE },
    { reconnectDelaySeconds: 60 },
  );
  const { file } = await fileOf(scope, DATA);
  const work = failure(client.writeFrom(0, lend(file, 0, DATA.byteLength), { once: true }));
  const other = client.flush();
  await expect.poll(() => peer.requests.length).toBe(2);
  await peer.stop();
  await peer.listen();
  const error = await work;
  expect(error.code).toBe('DF_DISCONNECTED');
  expect(error.message).toContain('lost the NBD server nbd+unix://');
  await other;
  expect(peer.requests.filter(({ type }) => type === NBD_CMD_WRITE).length).toBe(1);
});

test('a server that dies in the middle of a payload fails the request', async () => {
  const { peer, client, scope } = await start({ size: 64 * MIB });
  const { file } = await fileOf(scope, patternBytes(16 * MIB, 7));
  peer.connections[0]?.socket.pause();
  const work = failure(client.writeFrom(0, lend(file, 0, 16 * MIB)));
  await turn();
  await peer.stop();
  expect((await work).code).toBe('DF_DISCONNECTED');
});

test('a request that was answered before its payload had left ends when it has', async () => {
  const { peer, client, scope } = await start({ size: 64 * MIB });
  const { file } = await fileOf(scope, patternBytes(4 * MIB, 8));
  const connection = peer.connections[0];
  connection?.socket.pause();
  const payload = lend(file, 0, 4 * MIB);
  let ended = false;
  const work = failure(client.writeFrom(0, payload)).finally(() => {
    ended = true;
  });
  await turn();
  // The first cookie is known: slot 0, used once.
  connection?.send(Buffer.from('6744669800000005' + '0000000100000000', 'hex'));
  for (let turns = 0; turns < 50; turns++) await turn();
  expect(ended).toBe(false);
  connection?.socket.resume();
  expect((await work).code).toBe('DF_IO');
});

test('the source is not in use any more when a request has failed', async () => {
  const { peer, client } = await start();
  let release = (): void => {};
  const reading = new Promise<void>((resolve) => {
    release = resolve;
  });
  let ended = false;
  const work = failure(
    client.writeFrom(
      0,
      readSource(100_000, () => reading),
    ),
  ).finally(() => {
    ended = true;
  });
  await turn();
  await peer.stop();
  await expect.poll(() => client.connectionCount).toBe(0);
  for (let turns = 0; turns < 20; turns++) await turn();
  expect(ended).toBe(false);
  release();
  expect((await work).code).toBe('DF_DISCONNECTED');
});

test('a file is sent without a read of it', async () => {
  const { client, scope, peer } = await start();
  const { file } = await fileOf(scope, DATA);
  const sending = vi.spyOn(native, 'sendfile');
  const reading = vi.spyOn(native, 'pread');
  onTestFinished(() => void vi.restoreAllMocks());
  await client.writeFrom(0, lend(file, 0, DATA.byteLength));
  expect(sending).toHaveBeenCalled();
  expect(reading).not.toHaveBeenCalled();
  expect(peer.memory.subarray(0, DATA.byteLength).equals(DATA)).toBe(true);
});

test('a breach of the protocol is what a request that may be sent only once fails with', async () => {
  const { client, scope } = await start({
    onRequest: (connection) => {
      connection.send(Buffer.alloc(64, 0xee));
      return true;
    },
  });
  const { file } = await fileOf(scope, DATA);
  const error = await failure(client.writeFrom(0, lend(file, 0, DATA.byteLength), { once: true }));
  expect(error.code).toBe('DF_PROTOCOL');
});
