// SPDX-License-Identifier: MIT
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import {
  NBD_META_QUERIES_MAX,
  NBD_OPTION_LENGTH_MAX,
  NBD_OPTION_SKIP_MAX,
  NBD_OPTION_UNSENT_MAX,
} from '../../../../src/base/limits.js';
import {
  encodeInfoRequest,
  encodeMetaQuery,
  encodeOption,
  IHAVEOPT,
  INFO,
  OPT,
  REP,
  u32,
  u64,
} from '../../../support/nbd-wire.js';
import { RawNbd } from '../../../support/raw-nbd.js';
import { serve } from './served.js';

async function haggle(options: Parameters<typeof serve>[1] = {}) {
  const served = await serve({}, options);
  return { served, raw: await RawNbd.handshake(served.scope, served.socket) };
}

describe('limits of the option phase', () => {
  it('refuses and skips option data above its limit, and goes on', async () => {
    const { raw } = await haggle();
    expect(await raw.optionType(OPT.INFO, Buffer.alloc(NBD_OPTION_LENGTH_MAX + 1))).toBe(
      REP.ERR_TOO_BIG,
    );
    expect(await raw.optionType(OPT.INFO, Buffer.alloc(NBD_OPTION_LENGTH_MAX))).toBe(
      REP.ERR_INVALID,
    );
    await raw.go('disk');
  });

  it('drops a client that announces more than would be skipped', async () => {
    const { raw } = await haggle();
    raw.send(u64(IHAVEOPT), u32(OPT.INFO), u32(NBD_OPTION_SKIP_MAX + 1));
    expect(await raw.readToEnd()).toHaveLength(0);
  });

  it('refuses more queries than its limit', async () => {
    const { raw } = await haggle();
    await raw.optionType(OPT.STRUCTURED_REPLY);
    const queries = (count: number) => encodeMetaQuery('disk', Array(count).fill('base:'));
    expect(await raw.optionType(OPT.LIST_META_CONTEXT, queries(NBD_META_QUERIES_MAX))).toBe(
      REP.ACK,
    );
    expect(await raw.optionType(OPT.LIST_META_CONTEXT, queries(NBD_META_QUERIES_MAX + 1))).toBe(
      REP.ERR_TOO_BIG,
    );
  });

  it('answers no further option while replies to others are not read', async () => {
    const { served, raw } = await haggle({ description: 'x'.repeat(4000) });
    raw.stopReading();
    const count = 2000;
    raw.send(...Array.from({ length: count }, () => encodeOption(OPT.LIST)));
    const unsent = (): number => served.server.connections()[0]?.unsentBytes ?? 0;
    await expect.poll(unsent).toBeGreaterThan(NBD_OPTION_UNSENT_MAX);
    for (let turns = 0; turns < 200; turns++) await nextTurn();
    expect(unsent()).toBeLessThan(2 * 1024 * 1024);
    raw.resumeReading();
    for (let index = 0; index < 2 * count; index++) await raw.optionReply();
    await raw.go('disk');
  });
});

describe('negotiated state', () => {
  it('forgets the selected contexts when another selection fails', async () => {
    const { served, raw } = await haggle();
    await raw.optionType(OPT.STRUCTURED_REPLY);
    await raw.setMetaContexts('disk', ['base:allocation']);
    const unknown = encodeMetaQuery('other', ['base:allocation']);
    expect(await raw.optionType(OPT.SET_META_CONTEXT, unknown)).toBe(REP.ERR_UNKNOWN);
    await raw.go('disk');
    expect(served.server.connections()[0]?.contexts).toEqual([]);
  });

  it('does not carry contexts of one export over to another', async () => {
    const { served, raw } = await haggle();
    const { backend } = served;
    served.server.addExport({ id: 'b', name: 'b', nodeName: 'n', backend, writable: false });
    await raw.optionType(OPT.STRUCTURED_REPLY);
    await raw.setMetaContexts('b', ['base:allocation']);
    await raw.go('disk');
    expect(served.server.connections()[0]?.contexts).toEqual([]);
  });

  it('names what it refuses', async () => {
    const { raw } = await haggle();
    const [reply] = await raw.option(OPT.GO, encodeInfoRequest('nothing'));
    expect(reply).toMatchObject({ type: REP.ERR_UNKNOWN });
    expect(reply?.data.toString()).toBe("export 'nothing' not present");
  });

  it('sends the description and the name to who asks for them', async () => {
    const { raw } = await haggle({ description: 'a disk' });
    const { infos } = await raw.go('disk', [INFO.NAME, INFO.DESCRIPTION]);
    expect(infos.get(INFO.NAME)?.toString()).toBe('disk');
    expect(infos.get(INFO.DESCRIPTION)?.toString()).toBe('a disk');
  });
});
