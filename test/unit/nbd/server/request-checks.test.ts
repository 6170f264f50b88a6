// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import * as nbd from '../../../../protocol/nbd/constants.js';
import { emptyRequestHead } from '../../../../protocol/nbd/transmission.js';
import { NbdExport } from '../../../../src/nbd/server/export.js';
import { contextsOf } from '../../../../src/nbd/server/meta-contexts.js';
import { refuse } from '../../../../src/nbd/server/request-checks.js';
import {
  REPLY_EXTENDED,
  REPLY_SIMPLE,
  REPLY_STRUCTURED,
  type Session,
} from '../../../../src/nbd/server/session.js';
import { MemoryBackend } from './memory-backend.js';

const SIZE = 1024 * 1024;

function session(
  options: { writable?: boolean; form?: Session['form']; minimumBlock?: number } = {},
): Session {
  const exported = new NbdExport({
    id: 'e',
    name: 'e',
    nodeName: 'n',
    backend: new MemoryBackend({ size: SIZE }),
    writable: options.writable ?? true,
  });
  const { form = REPLY_STRUCTURED, minimumBlock = 1 } = options;
  const contexts = form === REPLY_SIMPLE ? [] : contextsOf(exported);
  return { export: exported, form, contexts, minimumBlock };
}

const head = (type: number, fields: { flags?: number; offset?: number; length?: number } = {}) => ({
  ...emptyRequestHead(),
  type,
  ...fields,
});

describe('refuse', () => {
  it('passes every command in its right form', () => {
    for (const type of [0, 1, 4, 5, 6, 7]) {
      expect(refuse(head(type, { offset: 4096, length: 4096 }), session())).toBeUndefined();
    }
    expect(refuse(head(nbd.NBD_CMD_FLUSH), session())).toBeUndefined();
  });

  it('passes FUA with every command', () => {
    for (const type of [0, 1, 4, 5, 6, 7]) {
      const request = head(type, { flags: nbd.NBD_CMD_FLAG_FUA, length: 512 });
      expect(refuse(request, session())).toBeUndefined();
    }
  });

  it('refuses commands that do not exist, and those of extensions that we lack', () => {
    for (const type of [nbd.NBD_CMD_RESIZE, 9, 0xffff]) {
      expect(refuse(head(type), session())?.error).toBe(nbd.NBD_EINVAL);
    }
  });

  it.each([
    ['DF on a write', nbd.NBD_CMD_WRITE, nbd.NBD_CMD_FLAG_DF],
    ['NO_HOLE on a trim', nbd.NBD_CMD_TRIM, nbd.NBD_CMD_FLAG_NO_HOLE],
    ['FAST_ZERO on a read', nbd.NBD_CMD_READ, nbd.NBD_CMD_FLAG_FAST_ZERO],
    ['REQ_ONE on a read', nbd.NBD_CMD_READ, nbd.NBD_CMD_FLAG_REQ_ONE],
    ['PAYLOAD_LEN without extended headers', nbd.NBD_CMD_WRITE, nbd.NBD_CMD_FLAG_PAYLOAD_LEN],
    ['an unknown flag', nbd.NBD_CMD_READ, 0x4000],
  ])('refuses %s', (_name, type, flags) => {
    expect(refuse(head(type, { flags, length: 512 }), session())?.error).toBe(nbd.NBD_EINVAL);
  });

  it('takes DF with structured replies, PAYLOAD_LEN with extended headers', () => {
    const df = head(nbd.NBD_CMD_READ, { flags: nbd.NBD_CMD_FLAG_DF, length: 512 });
    expect(refuse(df, session())).toBeUndefined();
    expect(refuse(df, session({ form: REPLY_SIMPLE }))?.error).toBe(nbd.NBD_EINVAL);
    const write = head(nbd.NBD_CMD_WRITE, { flags: nbd.NBD_CMD_FLAG_PAYLOAD_LEN, length: 512 });
    expect(refuse(write, session({ form: REPLY_EXTENDED }))).toBeUndefined();
  });

  it('answers what would write to a read-only export with EPERM', () => {
    for (const type of [nbd.NBD_CMD_WRITE, nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES]) {
      const refusal = refuse(head(type, { length: 512 }), session({ writable: false }));
      expect(refusal?.error).toBe(nbd.NBD_EPERM);
    }
    const cache = head(nbd.NBD_CMD_CACHE, { length: 512 });
    expect(refuse(cache, session({ writable: false }))).toBeUndefined();
  });

  it('answers ranges past the end with ENOSPC where the command writes, EINVAL elsewhere', () => {
    const past = { offset: SIZE - 512, length: 513 };
    const error = (type: number, fields: object) => refuse(head(type, fields), session())?.error;
    expect(error(nbd.NBD_CMD_WRITE, past)).toBe(nbd.NBD_ENOSPC);
    expect(error(nbd.NBD_CMD_WRITE_ZEROES, past)).toBe(nbd.NBD_ENOSPC);
    expect(error(nbd.NBD_CMD_READ, past)).toBe(nbd.NBD_EINVAL);
    expect(error(nbd.NBD_CMD_TRIM, past)).toBe(nbd.NBD_EINVAL);
    expect(error(nbd.NBD_CMD_READ, { offset: 2 ** 64, length: 1 })).toBe(nbd.NBD_EINVAL);
    expect(error(nbd.NBD_CMD_READ, { offset: SIZE, length: 0 })).toBeUndefined();
  });

  it('holds only clients that agreed on a block size to it', () => {
    const odd = head(nbd.NBD_CMD_READ, { offset: 1, length: 512 });
    expect(refuse(odd, session())).toBeUndefined();
    expect(refuse(odd, session({ minimumBlock: 512 }))?.error).toBe(nbd.NBD_EINVAL);
  });

  it('lets a trim have any range, which is advice', () => {
    const odd = head(nbd.NBD_CMD_TRIM, { offset: 1, length: 511 });
    expect(refuse(odd, session({ minimumBlock: 512, writable: true }))).toBeUndefined();
  });

  it('refuses a flush with a range', () => {
    const refusal = refuse(head(nbd.NBD_CMD_FLUSH, { length: 1 }), session());
    expect(refusal?.error).toBe(nbd.NBD_EINVAL);
  });

  it('refuses block status without a context and of no length', () => {
    const status = head(nbd.NBD_CMD_BLOCK_STATUS, { length: 512 });
    expect(refuse(status, session({ form: REPLY_SIMPLE }))?.error).toBe(nbd.NBD_EINVAL);
    const none = head(nbd.NBD_CMD_BLOCK_STATUS);
    expect(refuse(none, session())?.error).toBe(nbd.NBD_EINVAL);
  });
});
