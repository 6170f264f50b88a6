// SPDX-License-Identifier: MIT
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  blockSizes,
  CMD,
  counted,
  encodeInfoRequest,
  encodeOption,
  exportInfo,
  FLAG,
  INFO,
  OPT,
  type OptionReply,
  REP,
  u16,
  u32,
} from '../../support/nbd-wire.js';
import {
  DISK_SIZE,
  haggle,
  MIB,
  open,
  type SpecServer,
  startOwnServer,
  startSpecServer,
  writableExport,
} from './fixture.js';

let server: SpecServer;
beforeAll(async () => {
  server = await startSpecServer();
});
afterAll(() => server?.close());

const EXPORTS = ['disk', 'odd', 'ro', 'vast'];

function serverName({ data }: OptionReply): string {
  return data.subarray(4, 4 + data.readUInt32BE(0)).toString();
}

it('lists every export and then acknowledges', async () => {
  const client = await haggle(server);
  const replies = await client.option(OPT.LIST);
  expect(replies.at(-1)?.type).toBe(REP.ACK);
  const listed = replies.slice(0, -1);
  expect(listed.every(({ type }) => type === REP.SERVER)).toBe(true);
  expect(listed.map(serverName).sort()).toEqual(EXPORTS);
});

it('lists names no longer than their reply, and the description behind them', async () => {
  const client = await haggle(server);
  for (const reply of (await client.option(OPT.LIST)).slice(0, -1)) {
    const nameLength = reply.data.readUInt32BE(0);
    expect(nameLength).toBeLessThanOrEqual(reply.data.length - 4);
    const description = reply.data.subarray(4 + nameLength).toString();
    if (serverName(reply) === 'ro') expect(description).toBe('a read-only disk');
  }
});

it('refuses LIST that carries data', async () => {
  const client = await haggle(server);
  expect(await client.optionType(OPT.LIST, Buffer.alloc(1))).toBe(REP.ERR_INVALID);
});

it('sends no data with ACK', async () => {
  const client = await haggle(server);
  for (const option of [OPT.LIST, OPT.STRUCTURED_REPLY]) {
    expect((await client.option(option)).at(-1)?.data).toHaveLength(0);
  }
  const replies = await client.option(OPT.INFO, encodeInfoRequest('disk'));
  expect(replies.at(-1)).toMatchObject({ type: REP.ACK, data: Buffer.alloc(0) });
});

it('sends INFO_EXPORT of 12 bytes before it acknowledges INFO or GO', async () => {
  for (const option of [OPT.INFO, OPT.GO]) {
    const client = await haggle(server);
    const replies = await client.option(option, encodeInfoRequest('disk'));
    expect(replies.at(-1)?.type).toBe(REP.ACK);
    const infos = replies.filter(({ type }) => type === REP.INFO);
    const main = infos.filter(({ data }) => data.readUInt16BE(0) === INFO.EXPORT);
    expect(main.map(({ data }) => data.length)).toEqual([12]);
    expect(exportInfo(replies).size).toBe(BigInt(DISK_SIZE));
  }
});

it('answers INFO and GO for an unknown export with ERR_UNKNOWN and no information', async () => {
  const client = await haggle(server);
  for (const option of [OPT.INFO, OPT.GO]) {
    for (const name of ['none such', '', 'disk ', 'DISK']) {
      const replies = await client.option(option, encodeInfoRequest(name, [INFO.BLOCK_SIZE]));
      expect(replies.map(({ type }) => type)).toEqual([REP.ERR_UNKNOWN]);
    }
  }
});

it('ignores information requests that it does not understand', async () => {
  const client = await haggle(server);
  const wanted = [4, 100, 0xffff];
  const replies = await client.option(OPT.INFO, encodeInfoRequest('disk', wanted));
  expect(replies.at(-1)?.type).toBe(REP.ACK);
  const types = replies.slice(0, -1).map(({ data }) => data.readUInt16BE(0));
  expect(types.filter((type) => wanted.includes(type))).toEqual([]);
});

it('sends each kind of information once', async () => {
  const client = await haggle(server);
  const wanted = [INFO.NAME, INFO.DESCRIPTION, INFO.BLOCK_SIZE];
  const replies = await client.option(OPT.INFO, encodeInfoRequest('ro', wanted));
  const types = replies.slice(0, -1).map(({ data }) => data.readUInt16BE(0));
  expect(new Set(types).size).toBe(types.length);
  expect([...types].sort()).toEqual([INFO.EXPORT, ...wanted]);
});

it('sends the information items in the layout of the specification', async () => {
  const client = await haggle(server);
  const wanted = [INFO.NAME, INFO.DESCRIPTION, INFO.BLOCK_SIZE];
  const { infos } = exportInfo(await client.option(OPT.INFO, encodeInfoRequest('ro', wanted)));
  expect(infos.get(INFO.NAME)?.toString()).toBe('ro');
  expect(infos.get(INFO.DESCRIPTION)?.toString()).toBe('a read-only disk');
  expect(infos.get(INFO.BLOCK_SIZE)).toHaveLength(12);
});

it('tells GO the same as the INFO before it', async () => {
  for (const name of EXPORTS) {
    const client = await haggle(server);
    await client.optionType(OPT.STRUCTURED_REPLY);
    const data = encodeInfoRequest(name, [INFO.BLOCK_SIZE, INFO.NAME, INFO.DESCRIPTION]);
    const told = async (option: number): Promise<string[]> =>
      (await client.option(option, data)).map((reply) => reply.data.toString('hex')).sort();
    expect(await told(OPT.INFO)).toEqual(await told(OPT.GO));
  }
});

it('refuses INFO and GO whose lengths contradict each other', async () => {
  const client = await haggle(server);
  const wrong = [
    Buffer.alloc(0),
    u32(4),
    Buffer.concat([u32(5), Buffer.from('disk')]),
    counted('disk'),
    Buffer.concat([counted('disk'), Buffer.alloc(1)]),
    Buffer.concat([counted('disk'), u16(1)]),
    Buffer.concat([counted('disk'), u16(0), u16(3)]),
    Buffer.concat([u32(0xffff_ffff), Buffer.from('disk'), u16(0)]),
  ];
  for (const option of [OPT.INFO, OPT.GO]) {
    for (const data of wrong) expect(await client.optionType(option, data)).toBe(REP.ERR_INVALID);
  }
  await client.go('disk');
});

it('refuses a name longer than 4096 bytes and goes on', async () => {
  const client = await haggle(server);
  const type = await client.optionType(OPT.INFO, encodeInfoRequest('n'.repeat(4097)));
  expect(type).toBeGreaterThanOrEqual(REP.ERR_UNSUP);
  await client.go('disk');
});

it('keeps every string below 4096 bytes and without NUL', async () => {
  const client = await haggle(server);
  const long = await client.option(OPT.INFO, encodeInfoRequest('n'.repeat(4096)));
  const odd = await client.option(OPT.GO, encodeInfoRequest('a\0b'));
  const bad = await client.option(OPT.INFO, Buffer.alloc(3));
  const listed = (await client.option(OPT.LIST)).slice(0, -1).map(({ data }) => data.subarray(4));
  const messages = [...long, ...odd, ...bad].map(({ data }) => data);
  for (const text of [...messages, ...listed]) {
    expect(text.length).toBeLessThanOrEqual(4096);
    expect(text.includes(0)).toBe(false);
    expect(Buffer.from(text.toString('utf8'))).toEqual(text);
  }
});

it('refuses STRUCTURED_REPLY that carries data', async () => {
  const client = await haggle(server);
  expect(await client.optionType(OPT.STRUCTURED_REPLY, Buffer.alloc(1))).toBe(REP.ERR_INVALID);
  const info = await client.go('disk');
  expect(info.flags & FLAG.SEND_DF).toBe(0);
});

it('sets HAS_FLAGS, and flags only of what it supports', async () => {
  const unknown = ~0x1fff & 0xffff;
  for (const name of EXPORTS) {
    const { info } = await open(server, name, { structured: true });
    expect(info.flags & FLAG.HAS_FLAGS).toBe(FLAG.HAS_FLAGS);
    expect(info.flags & (unknown | FLAG.SEND_RESIZE | FLAG.BLOCK_STATUS_PAYLOAD)).toBe(0);
    if ((info.flags & FLAG.SEND_WRITE_ZEROES) === 0) {
      expect(info.flags & FLAG.SEND_FAST_ZERO).toBe(0);
    }
  }
});

it('supports every command whose flag it sets', async () => {
  const { client, info } = await open(server, 'disk', { structured: true });
  const commands: [number, number][] = [
    [FLAG.SEND_FLUSH, CMD.FLUSH],
    [FLAG.SEND_TRIM, CMD.TRIM],
    [FLAG.SEND_WRITE_ZEROES, CMD.WRITE_ZEROES],
    [FLAG.SEND_CACHE, CMD.CACHE],
  ];
  for (const [flag, type] of commands) {
    expect(info.flags & flag).toBe(flag);
    const where = type === CMD.FLUSH ? {} : { offset: 3 * MIB, length: 4096 };
    expect(await client.callError({ type, ...where })).toBe(0);
  }
});

it('sets SEND_DF exactly when structured replies were negotiated', async () => {
  const compact = await open(server, 'disk');
  expect(compact.info.flags & FLAG.SEND_DF).toBe(0);
  const structured = await open(server, 'disk', { structured: true });
  expect(structured.info.flags & FLAG.SEND_DF).toBe(FLAG.SEND_DF);
});

it('advertises block sizes within the limits of the specification', async () => {
  for (const name of EXPORTS) {
    const { info } = await open(server, name, { infos: [INFO.BLOCK_SIZE] });
    const [min, preferred, max] = blockSizes(info) ?? [0, 0, 0];
    const powerOfTwo = (value: number): boolean => value > 0 && (value & (value - 1)) === 0;
    expect(powerOfTwo(min) && min <= 65_536).toBe(true);
    expect(powerOfTwo(preferred) && preferred >= Math.max(min, 512)).toBe(true);
    expect(max).toBeGreaterThanOrEqual(Math.max(preferred, MIB));
    expect(info.size % BigInt(min)).toBe(0n);
  }
});

it('tells a client that asks of a block size that is not the default', async () => {
  const own = await startOwnServer((dir) => [
    ...['--blockdev', `driver=file,node-name=file,filename=${dir}/disk.raw`],
    ...writableExport('coarse', 'driver=blkdebug,image=file,align=4096'),
  ]);
  const { info } = await open(own, 'coarse', { infos: [INFO.BLOCK_SIZE] });
  expect(blockSizes(info)?.[0]).toBe(4096);
});

it('leaves data alone that a client unaware of the block size writes around', async () => {
  const own = await startOwnServer((dir) => [
    ...['--blockdev', `driver=file,node-name=file,filename=${dir}/disk.raw`],
    ...writableExport('coarse', 'driver=blkdebug,image=file,align=4096'),
  ]);
  const client = await haggle(own);
  client.send(encodeOption(OPT.EXPORT_NAME, Buffer.from('coarse')));
  await client.read(10);
  const error = await client.callError({
    type: CMD.WRITE,
    offset: 100,
    data: Buffer.alloc(10, 0x77),
  });
  const [read] = await client.call({ type: CMD.READ, offset: 0, length: 4096 });
  const expected = Buffer.alloc(4096, 0x11);
  if (error === 0) expected.fill(0x77, 100, 110);
  expect(read?.payload).toEqual(expected);
});

it('takes clients that ask for no block size, with single bytes and 32 MiB payloads', async () => {
  const { client } = await open(server, 'odd');
  expect(await client.callError({ type: CMD.READ, offset: 999_999, length: 1 })).toBe(0);
  const { client: vast } = await open(server, 'vast');
  expect(await vast.callError({ type: CMD.READ, length: 32 * MIB })).toBe(0);
  expect(await vast.callError({ type: CMD.WRITE, data: Buffer.alloc(32 * MIB) })).toBe(0);
});
