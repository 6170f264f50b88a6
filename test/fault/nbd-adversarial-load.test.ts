// SPDX-License-Identifier: MIT
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  attack,
  MIB,
  RSS_MAX,
  seededRandom,
  startTarget,
  type Target,
} from '../support/nbd-survival.js';
import {
  CMD,
  encodeInfoRequest,
  encodeOption,
  encodeRequest,
  OPT,
  u32,
} from '../support/nbd-wire.js';
import { RawNbd } from '../support/raw-nbd.js';
import { type Scope, testScope } from '../support/temp.js';

/** More than one process gets on most systems without asking; the daemon has to ask. */
const CONNECTIONS = 1_000;
/** Connections opened at a time, below the length of the listener's queue. */
const BATCH = 50;

let target: Target;
beforeAll(async () => {
  target = await startTarget(`max-connections=${2 * CONNECTIONS}`);
});
afterAll(() => target?.close());

async function transmitting(scope: Scope): Promise<RawNbd> {
  const client = await RawNbd.handshake(scope, target.socket);
  await client.go('disk');
  return client;
}

async function openMany(scope: Scope, count: number): Promise<RawNbd[]> {
  const clients: RawNbd[] = [];
  while (clients.length < count) {
    const batch = Math.min(BATCH, count - clients.length);
    clients.push(...(await Promise.all(Array.from({ length: batch }, () => transmitting(scope)))));
  }
  return clients;
}

it('serves 1000 connections at once', async () => {
  await attack(target, async (scope) => {
    const clients = await openMany(scope, CONNECTIONS);
    const request = { type: CMD.READ, offset: 0, length: 4096 };
    for (const client of clients) client.send(encodeRequest(request));
    const replies = await Promise.all(clients.map((client) => client.reply(4096)));
    expect(replies.every(({ error, payload }) => error === 0 && payload.length === 4096)).toBe(
      true,
    );
  });
});

it('forgets 1000 connections that end with requests in flight', async () => {
  await attack(target, async (scope) => {
    const clients = await openMany(scope, CONNECTIONS);
    for (const client of clients) {
      client.send(encodeRequest({ type: CMD.READ, length: 65_536 }));
      client.destroy();
    }
  });
});

it('turns away connections above max-connections, until one of the others ends', async () => {
  const own = await startTarget('max-connections=5');
  testScope().defer(() => own.close());
  const scope = testScope();
  const clients = await Promise.all(
    Array.from({ length: 5 }, () => RawNbd.handshake(scope, own.socket)),
  );
  await clients[0]?.go('disk');
  const extra = await RawNbd.connect(scope, own.socket);
  await sleep(50);
  expect(extra.pendingBytes).toBe(0); // either closed, or waiting in the queue: not greeted
  expect(await clients[0]?.callError({ type: CMD.READ, length: 512 })).toBe(0);
  clients[4]?.destroy();
  extra.destroy();
  await expect
    .poll(() =>
      own.servesOthers().then(
        () => true,
        () => false,
      ),
    )
    .toBe(true);
});

it('serves a client that sends one byte at a time, and others beside it', async () => {
  await attack(target, async (scope) => {
    const client = await RawNbd.connect(scope, target.socket);
    await client.greeting();
    const bytes = Buffer.concat([
      u32(3),
      encodeOption(OPT.GO, encodeInfoRequest('disk')),
      encodeRequest({ type: CMD.WRITE, offset: 4096, data: Buffer.alloc(32, 0x42) }),
      encodeRequest({ type: CMD.READ, offset: 4096, length: 32 }),
    ]);
    for (const [at, byte] of bytes.entries()) {
      await client.sendAll(Buffer.of(byte));
      await sleep(1);
      if (at % 50 === 0) await target.servesOthers();
    }
    while ((await client.optionReply()).type !== 1);
    expect((await client.reply()).error).toBe(0);
    expect((await client.reply(32)).payload).toEqual(Buffer.alloc(32, 0x42));
  });
});

it('drops clients that do not finish the option phase within handshake-max-seconds', async () => {
  const own = await startTarget('handshake-max-seconds=1');
  testScope().defer(() => own.close());
  const scope = testScope();
  const silent = await RawNbd.connect(scope, own.socket);
  const chatty = await RawNbd.handshake(scope, own.socket);
  const served = await RawNbd.handshake(scope, own.socket);
  await served.go('disk');
  const chat = (async () => {
    for (;;) {
      await chatty.option(OPT.LIST);
      await sleep(20);
    }
  })();
  await expect(chat).rejects.toThrow('closed');
  await silent.readToEnd();
  expect(await served.callError({ type: CMD.READ, length: 512 })).toBe(0);
});

it('bounds what it holds for a client that never reads its replies', async () => {
  await attack(target, async (scope) => {
    const client = await transmitting(scope);
    client.stopReading();
    const count = 600;
    for (let at = 0; at < count; at += 1) {
      client.send(encodeRequest({ type: CMD.READ, cookie: BigInt(at), offset: MIB, length: MIB }));
    }
    for (let time = 0; time < 20; time += 1) await target.servesOthers();
    expect((await target.daemon.memory()).peak).toBeLessThan(RSS_MAX);
    client.resumeReading();
    for (let at = 0; at < count; at += 1) expect((await client.reply(MIB)).error).toBe(0);
  });
});

it('bounds what it holds for 40 such clients, and serves others', async () => {
  await attack(target, async (scope) => {
    for (const client of await openMany(scope, 40)) {
      client.stopReading();
      for (let at = 0; at < 64; at += 1) {
        client.send(encodeRequest({ type: CMD.READ, offset: MIB, length: MIB }));
      }
    }
    for (let time = 0; time < 20; time += 1) await target.servesOthers();
    expect((await target.daemon.memory()).peak).toBeLessThan(RSS_MAX);
  });
});

it('bounds what it holds of a flood of small requests whose replies nobody reads', async () => {
  await attack(target, async (scope) => {
    const client = await transmitting(scope);
    client.stopReading();
    const block = Buffer.concat(
      Array.from({ length: 1000 }, () =>
        encodeRequest({ type: CMD.READ, offset: MIB, length: 512 }),
      ),
    );
    const blocks = 200;
    for (let at = 0; at < blocks; at += 1) client.send(block);
    for (let time = 0; time < 20; time += 1) await target.servesOthers();
    expect((await target.daemon.memory()).peak).toBeLessThan(RSS_MAX);
    client.resumeReading();
    for (let at = 0; at < blocks * 10; at += 1) {
      await client.read(100 * (16 + 512));
    }
  });
});

it('bounds what it holds of writes that stop half way, and serves others', async () => {
  await attack(target, async (scope) => {
    const half = Buffer.alloc(MIB);
    for (const client of await openMany(scope, 60)) {
      client.send(encodeRequest({ type: CMD.WRITE, offset: 0, length: 32 * MIB }), half);
    }
    for (let time = 0; time < 10; time += 1) await target.servesOthers();
    const writer = await transmitting(scope);
    const data = Buffer.alloc(MIB, 0x17);
    expect(await writer.callError({ type: CMD.WRITE, offset: 8 * MIB, data })).toBe(0);
    expect((await target.daemon.memory()).peak).toBeLessThan(RSS_MAX);
  });
});

it('survives clients that vanish at any moment', async () => {
  await attack(target, async (scope) => {
    const random = seededRandom(424_242);
    const conversation = Buffer.concat([
      u32(3),
      encodeOption(OPT.STRUCTURED_REPLY),
      encodeOption(OPT.GO, encodeInfoRequest('disk')),
      ...Array.from({ length: 20 }, (_, at) =>
        encodeRequest({ type: CMD.WRITE, offset: at * 4096, data: Buffer.alloc(2048) }),
      ),
      ...Array.from({ length: 20 }, () => encodeRequest({ type: CMD.READ, length: MIB })),
    ]);
    for (let time = 0; time < 200; time += 1) {
      const client = await RawNbd.connect(scope, target.socket);
      await client.sendAll(conversation.subarray(0, random() % conversation.length));
      client.destroy();
    }
  });
});

it('sends whole replies, or none, to a client that closed its sending side', async () => {
  await attack(target, async (scope) => {
    const client = await transmitting(scope);
    const count = 50;
    for (let at = 0; at < count; at += 1) {
      client.send(encodeRequest({ type: CMD.READ, cookie: BigInt(at), length: 4096 }));
    }
    client.endSending();
    const bytes = await client.readToEnd();
    // Nothing is owed to a client that left so, but what comes has to be whole.
    expect(bytes.length % (16 + 4096)).toBe(0);
  });
});
