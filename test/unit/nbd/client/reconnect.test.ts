// SPDX-License-Identifier: MIT
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test, vi } from 'vitest';
import { NBD_RECONNECT_PAUSE_MIN_MS } from '../../../../src/base/limits.js';
import { NbdClient } from '../../../../src/nbd/client/client.js';
import { bytes, FakeNbdPeer } from '../../../support/fake-nbd-peer.js';
import { testScope } from '../../../support/temp.js';
import { failure, start } from './fake-server.js';

const { u16, u32, u64 } = bytes;
const MULTI_CONN = 0xced | 0x100;

test('sends again what was under way when the server was lost', async () => {
  let answering = false;
  const { peer, client, events } = await start(
    { onRequest: () => !answering },
    { reconnectDelaySeconds: 60 },
  );
  const data = Buffer.alloc(100_000, 5);
  const back = Buffer.alloc(1000);
  const work = Promise.all([client.write(0, data), client.read(500_000, back), client.flush()]);
  await expect.poll(() => peer.requests.length).toBe(3);
  answering = true;
  await peer.stop();
  await peer.listen();
  await work;
  expect(peer.memory.subarray(0, 100_000).equals(data)).toBe(true);
  expect(peer.requests.slice(3).map(({ type }) => type)).toEqual([1, 0, 3]);
  expect(events.map(({ type }) => type)).toEqual(['disconnected', 'reconnected']);
});

test('lets the server be for a moment when nothing was under way', async () => {
  const { peer, events } = await start({}, { reconnectDelaySeconds: 60 });
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  onTestFinished(() => void vi.useRealTimers());
  peer.connections[0]?.socket.destroy();
  while (events.length < 1) await nextTurn();
  for (let turn = 0; turn < 200; turn++) await nextTurn();
  expect(peer.connections.length).toBe(1);
  vi.advanceTimersByTime(NBD_RECONNECT_PAUSE_MIN_MS);
  while (events.length < 2) await nextTurn();
  expect(events.map(({ type }) => type)).toEqual(['disconnected', 'reconnected']);
});

test('a reply that was cut in the middle is read anew', async () => {
  let cut = false;
  const { client, peer } = await start(
    {
      onRequest: (connection, request) => {
        if (cut) return false;
        cut = true;
        const head = [u32(0x668e33ef), u16(1), u16(1), u64(request.cookie), u32(8 + 100_000)];
        connection.send(...head, u64(0), Buffer.alloc(50_000, 9));
        connection.socket.end();
        return true;
      },
    },
    { reconnectDelaySeconds: 60 },
  );
  peer.memory.fill(4);
  const buffer = Buffer.alloc(100_000);
  await client.read(0, buffer);
  expect(buffer.every((byte) => byte === 4)).toBe(true);
});

test('fails at once without a delay, and works again when the server is back', async () => {
  const { peer, client, events } = await start({ onRequest: (_c, { type }) => type === 3 });
  const flushing = failure(client.flush());
  await expect.poll(() => peer.requests.length).toBe(1);
  await peer.stop();
  const error = await flushing;
  expect(error.code).toBe('DF_DISCONNECTED');
  expect(error.message).toContain('nbd+unix://?socket=');
  expect((await failure(client.read(0, Buffer.alloc(512)))).code).toBe('DF_DISCONNECTED');
  await peer.listen();
  await expect.poll(() => events.at(-1)?.type).toBe('reconnected');
  await client.read(0, Buffer.alloc(512));
});

test('after the delay everything fails and says what happened', async () => {
  const { peer, client } = await start({}, { reconnectDelaySeconds: 0.2 });
  await peer.stop();
  const error = await failure(client.read(0, Buffer.alloc(512)));
  expect(error.code).toBe('DF_DISCONNECTED');
  expect(error.message).toMatch(/did not come back within 0.2 s; last attempt: Failed to connect/);
});

test('waits as long as it is told to, however long that is', async () => {
  const { peer, client } = await start({}, { reconnectDelaySeconds: 2 ** 32 - 1 });
  await peer.stop();
  await expect.poll(() => client.connectionCount).toBe(0);
  const reading = client.read(0, Buffer.alloc(512));
  const early = await Promise.race([reading.catch(() => 'failed'), sleep(20, 'waits')]);
  await peer.listen();
  expect(early).toBe('waits');
  await reading;
});

test('waiting can be cut short', async () => {
  const { peer, client } = await start({}, { reconnectDelaySeconds: 600 });
  await peer.stop();
  await expect.poll(() => client.connectionCount).toBe(0);
  const reading = failure(client.read(0, Buffer.alloc(512)));
  client.cancelWaiting();
  expect((await reading).code).toBe('DF_DISCONNECTED');
});

test('close ends the attempts to reconnect and what waits for them', async () => {
  const { peer, client } = await start({}, { reconnectDelaySeconds: 600 });
  await peer.stop();
  await expect.poll(() => client.connectionCount).toBe(0);
  const reading = failure(client.read(0, Buffer.alloc(512)));
  await client.close();
  expect((await reading).code).toBe('DF_CANCELLED');
  await peer.listen();
  expect(peer.connections.length).toBe(0);
});

test('a server that is silent for too long counts as lost', async () => {
  let silent = true;
  const { client } = await start(
    { onRequest: () => silent },
    {
      stallTimeoutMs: 100,
      reconnectDelaySeconds: 60,
      onEvent: () => {
        silent = false;
      },
    },
  );
  await client.read(0, Buffer.alloc(512));
});

test('who gives up waits neither for a silent server nor for its return', async () => {
  const { client } = await start({ onRequest: () => true }, { reconnectDelaySeconds: 600 });
  const reading = failure(client.read(0, Buffer.alloc(512)));
  client.cancelWaiting();
  expect((await reading).message).toMatch(/no answer for 2 s/);
});

test('who gives up again and again is not kept waiting longer', async () => {
  const { client } = await start({ onRequest: () => true }, { reconnectDelaySeconds: 600 });
  const reading = failure(client.read(0, Buffer.alloc(512)));
  const again = setInterval(() => client.cancelWaiting(), 100);
  try {
    expect((await reading).message).toMatch(/no answer for 2 s/);
  } finally {
    clearInterval(again);
  }
});

test('what is asked of a silent server to clean up after giving up does not wait either', async () => {
  const { client } = await start({ onRequest: () => true });
  client.cancelWaiting();
  await nextTurn();
  expect((await failure(client.flush())).message).toMatch(/no answer for 2 s/);
});

test('a server that has been silent before is given up at once', async () => {
  const { client } = await start({ onRequest: () => true }, { reconnectDelaySeconds: 600 });
  const reading = failure(client.read(0, Buffer.alloc(512)));
  vi.spyOn(performance, 'now').mockReturnValue(performance.now() + 2_001);
  try {
    client.cancelWaiting();
  } finally {
    vi.restoreAllMocks();
  }
  expect(client.connectionCount).toBe(0);
  expect((await reading).message).toMatch(/no answer for 2 s/);
});

test('who gives up does not disturb what a living server works on', async () => {
  const asked: (() => void)[] = [];
  const { client, events } = await start({
    onRequest: (connection, request) => {
      asked.push(() => connection.simpleReply(request, 0));
      return asked.length < 3;
    },
  });
  const writing = [1, 2].map(() => client.write(0, Buffer.alloc(512)));
  await expect.poll(() => asked.length).toBe(2);
  client.cancelWaiting();
  for (const answer of asked) answer();
  await Promise.all(writing);
  expect(events).toEqual([]);
});

test('a server that shuts down is waited for', async () => {
  let first = true;
  const { client, events } = await start(
    {
      onRequest: (connection, request) => {
        if (!first) return false;
        first = false;
        connection.simpleReply(request, 108);
        return true;
      },
    },
    { reconnectDelaySeconds: 60 },
  );
  await client.write(0, Buffer.alloc(512));
  expect(events.map(({ type }) => type)).toEqual(['disconnected', 'reconnected']);
});

test('a server that is lost again before it answered was not back', async () => {
  const { client, peer } = await start(
    {
      onRequest: (connection) => {
        connection.socket.destroy();
        return true;
      },
    },
    { reconnectDelaySeconds: 0.5 },
  );
  const error = await failure(client.read(0, Buffer.alloc(512)));
  expect(error.code).toBe('DF_DISCONNECTED');
  expect(peer.requests.length).toBeLessThan(8);
});

test('a request under which connection after connection is lost fails alone', async () => {
  const { client } = await start(
    {
      // What stands behind the bad request is answered, then the server falls.
      onRequest: (connection, request) => {
        if (request.offset === 512) return true;
        connection.answer(request);
        if (connection.requests.some(({ offset }) => offset === 512)) connection.socket.end();
        return true;
      },
    },
    { reconnectDelaySeconds: 60 },
  );
  const poisoned = failure(client.read(512, Buffer.alloc(512)));
  let ended = false;
  const others = (async () => {
    while (!ended) await client.read(0, Buffer.alloc(512));
  })();
  const error = await poisoned;
  ended = true;
  await others;
  expect(error.message).toMatch(/16 connections were lost during NBD_CMD_READ/);
});

test('a server that comes back without multi-conn gets one connection', async () => {
  const options = { flags: MULTI_CONN };
  const { client, peer, events } = await start(options, { connections: 4 });
  await expect.poll(() => client.connectionCount).toBe(4);
  await peer.stop();
  Object.assign(peer, { flags: 0xced });
  await peer.listen();
  await expect.poll(() => events.at(-1)?.type).toBe('reconnected');
  await Promise.all(Array.from({ length: 20 }, () => client.read(0, Buffer.alloc(512))));
  expect(peer.connections.length).toBe(1);
});

test('another export in its place is the end', async () => {
  const { peer, client } = await start({ flags: 0xced }, { reconnectDelaySeconds: 60 });
  await peer.stop();
  Object.assign(peer, { size: 4096 });
  await peer.listen();
  const error = await failure(client.read(0, Buffer.alloc(512)));
  expect(error.message).toMatch(/came back with 4096 bytes instead of 1048576/);
});

test('the first connection is tried again until the time to open is over', async () => {
  const scope = testScope();
  const peer = await FakeNbdPeer.start(scope);
  await peer.stop();
  const { address } = peer;
  const refused = await failure(NbdClient.connect({ address }));
  expect(refused.message).toMatch(
    /^Failed to connect to '.*fake.sock': No such file or directory$/,
  );
  const connecting = NbdClient.connect({ address, openTimeoutSeconds: 60 });
  await peer.listen();
  scope.defer(async () => (await connecting).close());
  expect((await connecting).size).toBe(peer.size);
});

test('opens several connections only where the server allows it', async () => {
  const several = await start({ flags: MULTI_CONN }, { connections: 4 });
  await expect.poll(() => several.client.connectionCount).toBe(4);
  const one = await start({}, { connections: 4 });
  await one.client.flush();
  expect(one.client.connectionCount).toBe(1);
});

test('spreads requests over its connections', async () => {
  const { peer, client } = await start({ flags: MULTI_CONN }, { connections: 4 });
  await expect.poll(() => client.connectionCount).toBe(4);
  await Promise.all(
    Array.from({ length: 40 }, (_, index) => client.read(index * 4096, Buffer.alloc(4096))),
  );
  for (const connection of peer.connections) expect(connection.requests.length).toBe(10);
});

test('requests of one lost connection go to another', async () => {
  let lost = 0;
  const { peer, client, events } = await start(
    {
      flags: MULTI_CONN,
      onRequest: (connection) => {
        if (connection !== peer.connections[1]) return false;
        lost++;
        connection.socket.destroy();
        return true;
      },
    },
    { connections: 3 },
  );
  await expect.poll(() => client.connectionCount).toBe(3);
  await Promise.all(
    Array.from({ length: 30 }, (_, index) => client.write(index * 512, Buffer.alloc(512, 1))),
  );
  expect(lost).toBeGreaterThan(0);
  expect(peer.memory.subarray(0, 30 * 512).every((byte) => byte === 1)).toBe(true);
  expect(events).toEqual([]);
});
