// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { NBD_CMD_READ, NBD_CMD_WRITE } from '../../../../protocol/nbd/constants.js';
import { ClientRequest } from '../../../../src/nbd/client/request.js';
import { RequestWriter } from '../../../../src/nbd/client/request-writer.js';
import type { Transport } from '../../../../src/nbd/client/transport.js';

/** A transport that keeps what it is given, and says "sent" when told to. */
class HeldTransport implements Transport {
  sink = undefined;
  readonly takesSources = false;
  readonly writes: { pieces: readonly Uint8Array[]; done: () => void }[] = [];
  write(pieces: readonly Uint8Array[], done: () => void): void {
    this.writes.push({ pieces, done });
  }
  end(): void {
    this.writes.length = 0;
  }
  destroy(): void {
    this.writes.length = 0;
  }
}

function writeRequest(length: number): ClientRequest {
  const buffer = Buffer.alloc(length, 1);
  return new ClientRequest(
    { command: NBD_CMD_WRITE, flags: 1, offset: 2, length, buffer },
    () => {},
  );
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('a request is on the wire as the specification has it', async () => {
  const transport = new HeldTransport();
  const writer = new RequestWriter(transport, { extended: false, written: () => {} });
  const request = writeRequest(3);
  request.cookieHigh = 0x01020304;
  request.cookieLow = 0x05060708;
  writer.add(request, { now: true });
  await turn();
  const bytes = Buffer.concat(transport.writes[0]?.pieces ?? []).toString('hex');
  expect(bytes).toBe(
    '25609513' + '00010001' + '0102030405060708' + '0000000000000002' + '00000003010101',
  );
});

test('an extended request says how long its payload is', async () => {
  const transport = new HeldTransport();
  const writer = new RequestWriter(transport, { extended: true, written: () => {} });
  writer.add(writeRequest(3), { now: true });
  await turn();
  const bytes = Buffer.concat(transport.writes[0]?.pieces ?? []).toString('hex');
  const offset = '0000000000000002';
  expect(bytes).toBe(`21e41c7100210001${'0'.repeat(16)}${offset}0000000000000003010101`);
});

test('the requests of one turn are one write', async () => {
  const transport = new HeldTransport();
  const writer = new RequestWriter(transport, { extended: false, written: () => {} });
  for (let count = 0; count < 100; count++) writer.add(writeRequest(100), { now: false });
  await turn();
  expect(transport.writes.map(({ pieces }) => pieces.length)).toEqual([1]);
  expect(transport.writes[0]?.pieces[0]?.byteLength).toBe(100 * 128);
});

test('a large payload is sent from where it is, small ones are copied', async () => {
  const transport = new HeldTransport();
  const writer = new RequestWriter(transport, { extended: false, written: () => {} });
  const large = writeRequest(100_000);
  writer.add(writeRequest(100), { now: false });
  writer.add(large, { now: false });
  writer.add(
    new ClientRequest({ command: NBD_CMD_READ, flags: 0, offset: 0, length: 9 }, () => {}),
    {
      now: false,
    },
  );
  await turn();
  const pieces = transport.writes[0]?.pieces ?? [];
  expect(pieces.map(({ byteLength }) => byteLength)).toEqual([128 + 28, 100_000, 28]);
  expect(pieces[1]).toBe(large.buffer);
});

test('more than a batch holds comes out in order', async () => {
  const transport = new HeldTransport();
  const writer = new RequestWriter(transport, { extended: false, written: () => {} });
  for (let index = 0; index < 20; index++) {
    const buffer = Buffer.alloc(16_000, index);
    const fields = { command: NBD_CMD_WRITE, flags: 0, offset: index, length: 16_000, buffer };
    writer.add(new ClientRequest(fields, () => {}), { now: false });
  }
  await turn();
  const all = Buffer.concat(transport.writes.flatMap(({ pieces }) => pieces));
  expect(all.length).toBe(20 * 16_028);
  for (let index = 0; index < 20; index++) {
    expect(all.readUInt8(index * 16_028 + 23)).toBe(index);
    expect(all.readUInt8(index * 16_028 + 16_027)).toBe(index);
  }
});

test('a payload is in use until the transport has sent it', async () => {
  const transport = new HeldTransport();
  let written = 0;
  const writer = new RequestWriter(transport, { extended: false, written: () => written++ });
  const request = writeRequest(100_000);
  writer.add(request, { now: true });
  await turn();
  expect(writer.isWritten(request)).toBe(false);
  transport.writes[0]?.done();
  expect(writer.isWritten(request)).toBe(true);
  expect(written).toBe(1);
});
