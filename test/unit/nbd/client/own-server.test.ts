// SPDX-License-Identifier: MIT
/** Both ends of this project together: the one pair that speaks extended headers. */
import { expect, test } from 'vitest';
import { NbdClient } from '../../../../src/nbd/client/client.js';
import { MIB, pattern, serve } from '../server/served.js';

async function connect(served: Awaited<ReturnType<typeof serve>>): Promise<NbdClient> {
  const client = await NbdClient.connect({
    address: { type: 'unix', path: served.socket },
    exportName: 'disk',
    reconnectDelaySeconds: 5,
  });
  served.scope.defer(() => client.close());
  return client;
}

test('agree on extended headers, status and several connections', async () => {
  const client = await connect(await serve());
  expect(client.replies).toBe('extended');
  expect(client.contexts).toEqual(['base:allocation']);
  expect(client.capabilities.multiConn).toBe(true);
});

test.each([0, 2])('move data of every length (%i ms behind)', async (delayMs) => {
  const served = await serve(delayMs > 0 ? { delayMs } : {});
  const client = await connect(served);
  const lengths = [1, 511, 4096, 16_384, 16_385, 65_537, MIB];
  let offset = 0;
  const writes = lengths.map((length, index) => {
    const data = pattern(length, index);
    offset += length;
    return { offset: offset - length, data };
  });
  await Promise.all(writes.map(({ offset, data }) => client.write(offset, data)));
  await client.flush();
  const reads = writes.map(({ data }) => Buffer.alloc(data.length));
  await Promise.all(writes.map(({ offset }, index) => client.read(offset, reads[index] ?? data0)));
  for (const [index, { data }] of writes.entries()) {
    expect(reads[index]?.equals(data)).toBe(true);
  }
});
const data0 = Buffer.alloc(0);

test('trims, zeroes and reports status', async () => {
  const served = await serve();
  const client = await connect(served);
  await client.write(0, Buffer.alloc(4 * MIB, 1));
  await client.writeZeroes(MIB, MIB, { fua: true });
  await client.trim(3 * MIB, MIB);
  const extents = await client.blockStatus(0, 3 * MIB);
  expect(extents.reduce((sum, { length }) => sum + length, 0)).toBe(3 * MIB);
  expect(extents[0]).toEqual({ length: MIB, flags: 0 });
  expect((extents[1]?.flags ?? 0) & 2).toBe(2);
  const buffer = Buffer.alloc(3 * MIB, 9);
  await client.read(0, buffer);
  const expected = [Buffer.alloc(MIB, 1), Buffer.alloc(MIB), Buffer.alloc(MIB, 1)];
  expect(buffer.equals(Buffer.concat(expected))).toBe(true);
});

test("the medium's error reaches the caller", async () => {
  const client = await connect(await serve({ bad: { offset: 8192, length: 512 } }));
  await expect(client.read(4096, Buffer.alloc(8192))).rejects.toMatchObject({ code: 'DF_IO' });
  await client.read(0, Buffer.alloc(4096));
});
