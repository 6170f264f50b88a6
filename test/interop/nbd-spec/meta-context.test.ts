// SPDX-License-Identifier: MIT
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  CMD,
  contextsOf,
  counted,
  ERROR,
  encodeMetaQuery,
  OPT,
  REP,
  u32,
} from '../../support/nbd-wire.js';
import type { RawNbd } from '../../support/raw-nbd.js';
import { haggle, open, type SpecServer, startSpecServer } from './fixture.js';

let server: SpecServer;
beforeAll(async () => {
  server = await startSpecServer();
});
afterAll(() => server?.close());

const BASE = 'base:allocation';

async function structured(): Promise<RawNbd> {
  const client = await haggle(server);
  expect(await client.optionType(OPT.STRUCTURED_REPLY)).toBe(REP.ACK);
  return client;
}

/** Names that the server lists for queries. */
async function list(client: RawNbd, queries: readonly string[]): Promise<string[]> {
  const replies = await client.option(OPT.LIST_META_CONTEXT, encodeMetaQuery('disk', queries));
  expect(replies.at(-1)?.type).toBe(REP.ACK);
  return contextsOf(replies).map(([, name]) => name);
}

/** Names that the server selects for queries. */
async function select(client: RawNbd, queries: readonly string[]): Promise<string[]> {
  return [...(await client.setMetaContexts('disk', queries)).values()];
}

/** Data of both options that contradicts itself. */
const MALFORMED = [
  Buffer.alloc(0),
  u32(4),
  counted('disk'),
  Buffer.concat([counted('disk'), u32(1)]),
  Buffer.concat([counted('disk'), u32(1), u32(100), Buffer.from(BASE)]),
  Buffer.concat([counted('disk'), u32(2), counted(BASE)]),
  Buffer.concat([counted('disk'), u32(0), Buffer.alloc(1)]),
  Buffer.concat([u32(0xffff_fff0), Buffer.from('disk'), u32(0)]),
];

it('lists all contexts for no query, each as namespace, colon and leaf in valid UTF-8', async () => {
  const client = await structured();
  const replies = await client.option(OPT.LIST_META_CONTEXT, encodeMetaQuery('disk', []));
  expect(contextsOf(replies).map(([, name]) => name)).toContain(BASE);
  for (const { data } of replies.slice(0, -1)) {
    const name = data.subarray(4);
    expect(Buffer.from(name.toString('utf8')).equals(name)).toBe(true);
    expect(name.toString()).toMatch(/^[^\s:]+:/);
    expect(name.includes(0)).toBe(false);
    expect(name.length).toBeLessThanOrEqual(4096);
  }
});

it('sets the ID of a listed context to zero', async () => {
  const client = await structured();
  const replies = await client.option(OPT.LIST_META_CONTEXT, encodeMetaQuery('disk', []));
  for (const [id] of contextsOf(replies)) expect(id).toBe(0);
});

it('lists what a query names, and everything of base: for its wildcard', async () => {
  const client = await structured();
  expect(await list(client, [BASE])).toEqual([BASE]);
  expect(await list(client, ['base:'])).toEqual([BASE]);
});

it('sends nothing but ACK when no query finds a context', async () => {
  const client = await structured();
  const data = encodeMetaQuery('disk', ['base:none-such', 'x-foreign:thing']);
  const replies = await client.option(OPT.LIST_META_CONTEXT, data);
  expect(replies.map(({ type }) => type)).toEqual([REP.ACK]);
});

it('ignores queries of unknown namespaces and unknown leaves of base:', async () => {
  const client = await structured();
  const queries = ['x-foreign:thing', 'nbd-server:', 'base:none-such', BASE, 'zzz:'];
  expect(await list(client, queries)).toEqual([BASE]);
  expect(await select(client, queries)).toEqual([BASE]);
});

it('selects nothing for the wildcard base: or an empty leaf', async () => {
  const client = await structured();
  expect(await select(client, ['base:'])).toEqual([]);
  expect(await select(client, ['qemu:'])).toEqual([]);
});

it('selects nothing for zero queries', async () => {
  const client = await structured();
  expect(await select(client, [BASE])).toEqual([BASE]);
  expect(await select(client, [])).toEqual([]);
  await client.go('disk');
  expect(await client.callError({ type: CMD.BLOCK_STATUS, length: 512 })).toBe(ERROR.EINVAL);
});

it('gives every selected context an ID of its own, once', async () => {
  const client = await structured();
  const queries = [BASE, BASE, 'qemu:allocation-depth'];
  const replies = await client.option(OPT.SET_META_CONTEXT, encodeMetaQuery('disk', queries));
  const selected = contextsOf(replies);
  expect(new Set(selected.map(([id]) => id)).size).toBe(selected.length);
  expect(new Set(selected.map(([, name]) => name)).size).toBe(selected.length);
});

it('replaces the selection by the last SET_META_CONTEXT, even by one that fails', async () => {
  for (const data of [
    encodeMetaQuery('disk', []),
    Buffer.alloc(3),
    encodeMetaQuery('none', [BASE]),
  ]) {
    const client = await structured();
    expect(await select(client, [BASE])).toEqual([BASE]);
    await client.option(OPT.SET_META_CONTEXT, data);
    await client.go('disk');
    expect(await client.callError({ type: CMD.BLOCK_STATUS, length: 512 })).toBe(ERROR.EINVAL);
  }
});

it('fails malformed queries with ERR_INVALID and goes on', async () => {
  const client = await structured();
  for (const option of [OPT.LIST_META_CONTEXT, OPT.SET_META_CONTEXT]) {
    for (const data of MALFORMED)
      expect(await client.optionType(option, data)).toBe(REP.ERR_INVALID);
  }
  expect(await select(client, [BASE])).toEqual([BASE]);
});

it('fails more queries than its data can hold', async () => {
  const client = await structured();
  const data = Buffer.concat([counted('disk'), u32(0xffff_ffff)]);
  for (const option of [OPT.LIST_META_CONTEXT, OPT.SET_META_CONTEXT]) {
    const type = await client.optionType(option, data);
    expect([REP.ERR_INVALID, REP.ERR_TOO_BIG]).toContain(type);
  }
});

it('takes many queries, or fails them with ERR_TOO_BIG', async () => {
  const client = await structured();
  const data = encodeMetaQuery(
    'disk',
    Array.from({ length: 2000 }, (_, at) => `x-many:${at}`),
  );
  for (const option of [OPT.LIST_META_CONTEXT, OPT.SET_META_CONTEXT]) {
    expect([REP.ACK, REP.ERR_TOO_BIG]).toContain(await client.optionType(option, data));
  }
});

it('refuses SET_META_CONTEXT before structured replies with ERR_INVALID', async () => {
  const client = await haggle(server);
  const data = encodeMetaQuery('disk', [BASE]);
  const type = await client.optionType(OPT.SET_META_CONTEXT, data);
  expect([REP.ERR_INVALID, REP.ERR_EXT_HEADER_REQD]).toContain(type);
  const listing = await client.optionType(OPT.LIST_META_CONTEXT, data);
  expect([REP.ACK, REP.ERR_INVALID, REP.ERR_EXT_HEADER_REQD]).toContain(listing);
});

it('refuses BLOCK_STATUS with EINVAL when no context was selected for this export', async () => {
  const { client } = await open(server, 'disk', { structured: true });
  expect(await client.callError({ type: CMD.BLOCK_STATUS, length: 512 })).toBe(ERROR.EINVAL);
  const other = await structured();
  await other.setMetaContexts('ro', [BASE]);
  await other.go('disk');
  expect(await other.callError({ type: CMD.BLOCK_STATUS, length: 512 })).toBe(ERROR.EINVAL);
});
