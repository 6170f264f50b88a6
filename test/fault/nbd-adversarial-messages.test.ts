// SPDX-License-Identifier: MIT
import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  attack,
  MIB,
  seededRandom,
  startTarget,
  TARGET_SIZE,
  type Target,
} from '../support/nbd-survival.js';
import {
  CMD,
  CMD_FLAG,
  counted,
  ERROR_BIT,
  encodeExtendedRequest,
  encodeInfoRequest,
  encodeMetaQuery,
  encodeOption,
  encodeRequest,
  IHAVEOPT,
  OPT,
  REP,
  REQUEST_MAGIC,
  u16,
  u32,
  u64,
} from '../support/nbd-wire.js';
import { RawNbd } from '../support/raw-nbd.js';
import type { Scope } from '../support/temp.js';

let target: Target;
beforeAll(async () => {
  target = await startTarget();
});
afterAll(() => target?.close());

const EXTREMES = [0, 1, 2, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
const WIDE_EXTREMES = [
  0n,
  1n,
  BigInt(TARGET_SIZE) - 1n,
  BigInt(TARGET_SIZE),
  2n ** 32n,
  2n ** 53n - 1n,
  2n ** 53n + 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];
/** Options with data that is right. */
const OPTIONS: [number, Buffer][] = [
  [OPT.EXPORT_NAME, Buffer.from('disk')],
  [OPT.ABORT, Buffer.alloc(0)],
  [OPT.LIST, Buffer.alloc(0)],
  [OPT.STARTTLS, Buffer.alloc(0)],
  [OPT.INFO, encodeInfoRequest('disk', [0, 1, 2, 3])],
  [OPT.GO, encodeInfoRequest('disk', [3])],
  [OPT.STRUCTURED_REPLY, Buffer.alloc(0)],
  [OPT.LIST_META_CONTEXT, encodeMetaQuery('disk', ['base:', 'qemu:'])],
  [OPT.SET_META_CONTEXT, encodeMetaQuery('disk', ['base:allocation', 'qemu:allocation-depth'])],
  [OPT.EXTENDED_HEADERS, Buffer.alloc(0)],
];

const greeted = (scope: Scope): Promise<RawNbd> => RawNbd.handshake(scope, target.socket);

async function transmitting(scope: Scope, options: readonly number[] = []): Promise<RawNbd> {
  const client = await greeted(scope);
  for (const option of options) expect(await client.optionType(option)).toBe(REP.ACK);
  await client.go('disk');
  return client;
}

/** Sends every beginning of a message, each on a connection of its own that then ends. */
async function truncations(message: Buffer, open: () => Promise<RawNbd>): Promise<void> {
  for (let length = 0; length < message.length; length += 1) {
    const client = await open();
    client.send(message.subarray(0, length));
    client.endSending();
    await client.readToEnd();
  }
}

it('survives client flags that are cut or wrong', async () => {
  await attack(target, async (scope) => {
    await truncations(u32(3), async () => {
      const client = await RawNbd.connect(scope, target.socket);
      await client.greeting();
      return client;
    });
    for (let bit = 2; bit < 32; bit += 1) {
      const client = await RawNbd.handshake(scope, target.socket, 2 ** bit + 3);
      expect(await client.readToEnd()).toHaveLength(0);
    }
  });
});

it('survives every option cut at every byte', async () => {
  await attack(target, async (scope) => {
    for (const [option, data] of OPTIONS) {
      await truncations(encodeOption(option, data), () => greeted(scope));
    }
  });
});

it('closes on an option with a wrong magic number', async () => {
  await attack(target, async (scope) => {
    for (let at = 0; at < 8; at += 1) {
      const client = await greeted(scope);
      const bytes = encodeOption(OPT.LIST);
      bytes[at] = (bytes[at] ?? 0) ^ 1;
      client.send(bytes);
      await client.readToEnd();
    }
  });
});

it('takes no memory for the length that an option announces', async () => {
  await attack(target, async (scope) => {
    const before = (await target.daemon.memory()).rss;
    for (const option of [...OPTIONS.map(([one]) => one), 77]) {
      for (const length of [0x10_0000, 0x7fff_ffff, 0xffff_ffff]) {
        const client = await greeted(scope);
        client.send(u64(IHAVEOPT), u32(option), u32(length), Buffer.alloc(4096));
      }
    }
    await target.servesOthers();
    expect((await target.daemon.memory()).rss - before).toBeLessThan(64 * MIB);
  });
});

it('answers or closes on options with any 32-bit field at its extremes', async () => {
  await attack(target, async (scope) => {
    for (const [option, data] of OPTIONS) {
      for (let at = 0; at + 4 <= data.length; at += 1) {
        for (const value of EXTREMES) {
          const wrong = Buffer.from(data);
          wrong.writeUInt32BE(value, at);
          const client = await greeted(scope);
          await client.optionType(OPT.STRUCTURED_REPLY);
          client.send(encodeOption(option, wrong));
          client.endSending();
          await client.readToEnd();
          client.destroy();
        }
      }
    }
  });
});

it('goes on after options of the wrong length', async () => {
  await attack(target, async (scope) => {
    for (const option of [OPT.INFO, OPT.GO, OPT.LIST_META_CONTEXT, OPT.SET_META_CONTEXT]) {
      const client = await greeted(scope);
      await client.optionType(OPT.STRUCTURED_REPLY);
      for (let length = 0; length < 40; length += 1) {
        expect(await client.optionType(option, Buffer.alloc(length, 0xff))).toBeGreaterThan(
          ERROR_BIT,
        );
      }
      await client.go('disk');
    }
  });
});

it('survives names and queries that are no text, or as long as can be', async () => {
  await attack(target, async (scope) => {
    const client = await greeted(scope);
    await client.optionType(OPT.STRUCTURED_REPLY);
    const names = ['\0', '../../etc/passwd', '%n%s', '\u{1f600}'.repeat(1000), 'x'.repeat(4096)];
    for (const name of names) {
      for (const option of [OPT.INFO, OPT.GO]) {
        expect(await client.optionType(option, encodeInfoRequest(name))).toBeGreaterThan(ERROR_BIT);
      }
      await client.option(OPT.SET_META_CONTEXT, encodeMetaQuery('disk', [name, `base:${name}`]));
    }
    const broken = Buffer.concat([u32(4), Buffer.from([0xff, 0xfe, 0xc0, 0x80]), u16(0)]);
    expect(await client.optionType(OPT.GO, broken)).toBeGreaterThan(ERROR_BIT);
    const many = Buffer.concat([counted('disk'), u32(0x1000_0000), Buffer.alloc(4000)]);
    expect(await client.optionType(OPT.LIST_META_CONTEXT, many)).toBeGreaterThan(ERROR_BIT);
  });
});

it('survives requests cut at every byte', async () => {
  await attack(target, async (scope) => {
    const write = encodeRequest({ type: CMD.WRITE, data: Buffer.alloc(16) });
    await truncations(write, () => transmitting(scope));
    const wide = encodeExtendedRequest({ type: CMD.READ, length: 512 });
    await truncations(wide, () => transmitting(scope, [OPT.EXTENDED_HEADERS]));
  });
});

it('writes nothing of a write whose payload is cut', async () => {
  await attack(target, async (scope) => {
    for (const sent of [1, 4096, MIB - 1]) {
      const client = await transmitting(scope);
      client.send(encodeRequest({ type: CMD.WRITE, offset: MIB, length: MIB }));
      await client.sendAll(Buffer.alloc(sent, 0xbb));
      client.endSending();
      expect(await client.readToEnd()).toHaveLength(0);
    }
    expect((await readFile(target.imagePath)).includes(0xbb)).toBe(false);
  });
});

it('closes on a request with a wrong magic number, or that of the other header', async () => {
  await attack(target, async (scope) => {
    for (const magic of [0, REQUEST_MAGIC ^ 1, 0x12560953, 0x67446698, 0x21e41c71]) {
      const client = await transmitting(scope);
      client.send(encodeRequest({ magic, type: CMD.READ, length: 512 }), Buffer.alloc(64));
      await client.readToEnd();
    }
    const wide = await transmitting(scope, [OPT.EXTENDED_HEADERS]);
    wide.send(encodeRequest({ type: CMD.READ, length: 512 }), Buffer.alloc(64));
    await wide.readToEnd();
  });
});

it('answers every command with any offset and any length', async () => {
  await attack(target, async (scope) => {
    const client = await transmitting(scope, [OPT.STRUCTURED_REPLY]);
    const types = [CMD.READ, CMD.FLUSH, CMD.TRIM, CMD.CACHE, CMD.WRITE_ZEROES, CMD.BLOCK_STATUS];
    for (const type of [...types, CMD.RESIZE, 0xffff]) {
      for (const offset of WIDE_EXTREMES.slice(2)) {
        for (const length of [...EXTREMES, 32 * MIB, 32 * MIB + 1]) {
          const replies = await client.call({ type, offset, length });
          expect(replies.length).toBeGreaterThan(0);
        }
      }
    }
    expect(await client.callError({ type: CMD.READ, length: 512 })).toBe(0);
  });
});

it('answers every command with any flags', async () => {
  await attack(target, async (scope) => {
    const client = await transmitting(scope, [OPT.STRUCTURED_REPLY]);
    for (let type = 0; type < 12; type += 1) {
      if (type === CMD.DISC) continue;
      for (let bit = 0; bit < 16; bit += 1) {
        const data = Buffer.alloc(type === CMD.WRITE ? 512 : 0);
        const length = type === CMD.FLUSH ? 0 : 512;
        const replies = await client.call({ type, flags: 2 ** bit, offset: MIB, length, data });
        expect(replies.length).toBeGreaterThan(0);
      }
    }
  });
});

it('takes no memory for writes of lengths that nobody may send, and closes or skips them', async () => {
  await attack(target, async (scope) => {
    const before = (await target.daemon.memory()).rss;
    for (const length of [32 * MIB + 1, 0x7fff_ffff, 0xffff_ffff]) {
      for (let time = 0; time < 10; time += 1) {
        const client = await transmitting(scope);
        client.send(encodeRequest({ type: CMD.WRITE, length }), Buffer.alloc(4096));
      }
    }
    await target.servesOthers();
    expect((await target.daemon.memory()).rss - before).toBeLessThan(64 * MIB);
  });
});

it('answers extended requests with any offset, length and flags', async () => {
  await attack(target, async (scope) => {
    for (const type of [CMD.READ, CMD.FLUSH, CMD.TRIM, CMD.CACHE, CMD.WRITE_ZEROES, 99]) {
      const client = await transmitting(scope, [OPT.EXTENDED_HEADERS]);
      for (const offset of WIDE_EXTREMES.slice(2)) {
        for (const length of WIDE_EXTREMES) {
          const replies = await client.extendedCall({ type, offset, length });
          expect(replies.length).toBeGreaterThan(0);
        }
      }
    }
  });
});

it('closes on extended payloads of lengths that nobody may send', async () => {
  await attack(target, async (scope) => {
    for (const type of [CMD.WRITE, CMD.READ, CMD.BLOCK_STATUS, 99]) {
      for (const length of WIDE_EXTREMES.slice(4)) {
        const client = await transmitting(scope, [OPT.EXTENDED_HEADERS]);
        client.send(encodeExtendedRequest({ type, flags: CMD_FLAG.PAYLOAD_LEN, length }));
        await client.readToEnd();
      }
    }
  });
});

it('survives random bytes in every phase', async () => {
  await attack(target, async (scope) => {
    const random = seededRandom(20_220_701);
    for (let time = 0; time < 150; time += 1) {
      const noise = Buffer.from(Array.from({ length: random() % 2000 }, () => random() & 0xff));
      const client = time % 2 === 0 ? await greeted(scope) : await transmitting(scope);
      // Half of it looks right at the start, to come further.
      const begin = time % 2 === 0 ? u64(IHAVEOPT) : u32(REQUEST_MAGIC);
      client.send(time % 4 < 2 ? begin : Buffer.alloc(0), noise);
      client.endSending();
      await client.readToEnd();
    }
  });
});
