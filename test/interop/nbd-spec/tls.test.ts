// SPDX-License-Identifier: MIT
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  encodeInfoRequest,
  encodeMetaQuery,
  encodeOption,
  OPT,
  REP,
} from '../../support/nbd-wire.js';
import { haggle, type SpecServer, startSpecServer } from './fixture.js';

let server: SpecServer;
beforeAll(async () => {
  server = await startSpecServer();
});
afterAll(() => server?.close());

it('refuses STARTTLS while TLS is off, as policy or as unsupported', async () => {
  const client = await haggle(server);
  for (let time = 0; time < 2; time += 1) {
    expect([REP.ERR_POLICY, REP.ERR_UNSUP]).toContain(await client.optionType(OPT.STARTTLS));
  }
  await client.go('disk');
});

it('refuses STARTTLS that carries data', async () => {
  const client = await haggle(server);
  const type = await client.optionType(OPT.STARTTLS, Buffer.alloc(4));
  expect([REP.ERR_INVALID, REP.ERR_POLICY, REP.ERR_UNSUP]).toContain(type);
  await client.go('disk');
});

it('refuses STARTTLS of a client that did not set fixed newstyle', async () => {
  const client = await haggle(server, 0);
  client.send(encodeOption(OPT.STARTTLS));
  client.endSending();
  const answer = await client.readToEnd(); // an error, or nothing: such a client knows no replies
  if (answer.length > 0) expect(answer.readUInt32BE(12)).toBeGreaterThanOrEqual(REP.ERR_UNSUP);
});

it('never asks for TLS while TLS is off', async () => {
  const client = await haggle(server);
  const tries: [number, Buffer][] = [
    [OPT.LIST, Buffer.alloc(0)],
    [OPT.INFO, encodeInfoRequest('disk')],
    [OPT.INFO, encodeInfoRequest('none such')],
    [OPT.STRUCTURED_REPLY, Buffer.alloc(0)],
    [OPT.LIST_META_CONTEXT, encodeMetaQuery('disk', [])],
    [OPT.SET_META_CONTEXT, encodeMetaQuery('none such', [])],
    [OPT.EXTENDED_HEADERS, Buffer.alloc(0)],
    [99, Buffer.alloc(0)],
    [OPT.GO, encodeInfoRequest('none such')],
    [OPT.GO, encodeInfoRequest('disk')],
  ];
  for (const [option, data] of tries) {
    expect(await client.optionType(option, data)).not.toBe(REP.ERR_TLS_REQD);
  }
});
