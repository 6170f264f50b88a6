// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import * as nbd from '../../../../protocol/nbd/constants.js';
import * as wire from '../../../../protocol/nbd/transmission.js';

const hex = (text: string) => Buffer.from(text.replaceAll(/\s/g, ''), 'hex');
const viewOf = (bytes: Uint8Array) =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Three bytes of noise in front show that `at` is honoured. */
const AT = 3;
const behind = (bytes: Uint8Array) => viewOf(Buffer.concat([hex('aaaaaa'), bytes]));

const READ = hex('25609513 0004 0000 1122334455667788 0000001234567000 00001000');
const READ_EXT = hex('21e41c71 0001 0006 ffffffff00000001 001fffffffffffff 0000000200000000');
const SIMPLE = hex('67446698 0000001c 1122334455667788');
const CHUNK = hex('668e33ef 0001 8001 1122334455667788 0000000f');
const CHUNK_EXT = hex('6e8a278c 0001 0006 1122334455667788 0000001234567000 0000000000000018');
const COOKIE = { cookieHigh: 0x11223344, cookieLow: 0x55667788 };
const HEAD = { ...COOKIE, flags: 4, type: 0, offset: 0x1234567000, length: 4096 };
const RECEIVED = { ...HEAD, offsetHigh: 0x12, offsetLow: 0x34567000 };

describe('requests', () => {
  it('decodes a request in place', () => {
    const head = wire.emptyRequestHead();
    expect(wire.decodeRequest(behind(READ), AT, head)).toBe(true);
    expect(head).toEqual(RECEIVED);
  });

  it('decodes an extended request in place', () => {
    const head = wire.emptyRequestHead();
    expect(wire.decodeExtendedRequest(behind(READ_EXT), AT, head)).toBe(true);
    expect(head).toEqual({
      flags: nbd.NBD_CMD_FLAG_FUA,
      type: nbd.NBD_CMD_WRITE_ZEROES,
      cookieHigh: 0xffffffff,
      cookieLow: 1,
      offset: Number.MAX_SAFE_INTEGER,
      offsetHigh: 0x1fffff,
      offsetLow: 0xffffffff,
      length: 0x2_0000_0000,
    });
  });

  it('reports a wrong magic, that of the other form too', () => {
    const head = wire.emptyRequestHead();
    expect(wire.decodeRequest(viewOf(hex(`25609514${'00'.repeat(24)}`)), 0, head)).toBe(false);
    expect(wire.decodeRequest(viewOf(READ_EXT), 0, head)).toBe(false);
    expect(
      wire.decodeExtendedRequest(viewOf(READ_EXT.fill(READ.subarray(0, 4), 0, 4)), 0, head),
    ).toBe(false);
    READ_EXT.set(hex('21e41c71'));
  });

  it('keeps an offset beyond 2^53 beyond every size', () => {
    const head = wire.emptyRequestHead();
    const bytes = hex('25609513 0000 0000 0000000000000000 ffffffffffffffff 00000001');
    wire.decodeRequest(viewOf(bytes), 0, head);
    expect(head.offset).toBeGreaterThan(Number.MAX_SAFE_INTEGER);
  });

  it('encodes both forms', () => {
    const compact = Buffer.alloc(28);
    wire.encodeRequest(viewOf(compact), 0, HEAD);
    expect(compact).toEqual(READ);
    const extended = Buffer.alloc(32);
    const head = wire.emptyRequestHead();
    wire.decodeExtendedRequest(viewOf(READ_EXT), 0, head);
    wire.encodeExtendedRequest(viewOf(extended), 0, head);
    expect(extended).toEqual(READ_EXT);
  });

  it('throws rather than read past the end of the bytes', () => {
    const head = wire.emptyRequestHead();
    expect(() => wire.decodeRequest(viewOf(READ.subarray(0, 27)), 0, head)).toThrow(RangeError);
  });
});

describe('replies', () => {
  it('encodes a simple reply', () => {
    const bytes = Buffer.alloc(16);
    wire.encodeSimpleReply(viewOf(bytes), 0, COOKIE, nbd.NBD_ENOSPC);
    expect(bytes).toEqual(SIMPLE);
  });

  it('encodes chunk heads of both forms', () => {
    const bytes = Buffer.alloc(20);
    wire.encodeStructuredReply(viewOf(bytes), 0, COOKIE, { flags: 1, type: 0x8001, length: 15 });
    expect(bytes).toEqual(CHUNK);
    const extended = Buffer.alloc(32);
    wire.encodeExtendedReply(viewOf(extended), 0, RECEIVED, { flags: 1, type: 6, length: 24 });
    expect(extended).toEqual(CHUNK_EXT);
  });

  it('decodes each form into one head', () => {
    const head = wire.emptyReplyHead();
    wire.decodeExtendedReply(behind(CHUNK_EXT), AT, head);
    const chunk = { ...COOKIE, flags: 1, error: 0 };
    expect(head).toEqual({ ...chunk, type: 6, offset: 0x1234567000, length: 24 });
    wire.decodeStructuredReply(behind(CHUNK), AT, head);
    expect(head).toEqual({ ...chunk, type: 0x8001, offset: 0, length: 15 });
    wire.decodeSimpleReply(behind(SIMPLE), AT, head);
    expect(head).toEqual({ ...COOKIE, flags: 0, type: 0, error: 28, offset: 0, length: 0 });
  });
});

describe('tables and straight-line codecs agree', () => {
  it('on requests', () => {
    const row = wire.NBD_REQUEST.decode(READ);
    expect(row).toEqual({
      magic: nbd.NBD_REQUEST_MAGIC,
      flags: HEAD.flags,
      type: HEAD.type,
      cookie: 0x1122334455667788n,
      offset: BigInt(HEAD.offset),
      length: HEAD.length,
    });
    expect(wire.NBD_EXTENDED_REQUEST.decode(READ_EXT)).toMatchObject({
      offset: BigInt(Number.MAX_SAFE_INTEGER),
      length: 0x2_0000_0000n,
    });
  });

  it('on replies', () => {
    const cookie = 0x1122334455667788n;
    expect(wire.NBD_SIMPLE_REPLY.decode(SIMPLE)).toMatchObject({ error: 28, cookie });
    expect(wire.NBD_STRUCTURED_REPLY.decode(CHUNK)).toMatchObject({ type: 0x8001, length: 15 });
    expect(wire.NBD_EXTENDED_REPLY.decode(CHUNK_EXT)).toMatchObject({
      cookie,
      offset: 0x1234567000n,
      length: 24n,
    });
  });
});

describe('payloads', () => {
  it('have the sizes of the specification', () => {
    expect(wire.NBD_OFFSET_HOLE.decode(hex('0000000000001000 00000200'))).toEqual({
      offset: 4096n,
      length: 512,
    });
    expect(wire.NBD_ERROR_CHUNK.decode(hex('00000005 0003'))).toEqual({
      error: 5,
      messageLength: 3,
    });
    expect(wire.NBD_EXTENT.decode(hex('00010000 00000003'))).toEqual({ length: 65536, flags: 3 });
    expect(wire.NBD_BLOCK_STATUS_HEAD.decode(hex('00000001'))).toEqual({ contextId: 1 });
    expect(wire.NBD_BLOCK_STATUS_EXT_HEAD.decode(hex('00000001 00000002'))).toEqual({
      contextId: 1,
      count: 2,
    });
    expect(wire.NBD_EXTENT_EXT.decode(hex('0000000200000000 0000000000000003'))).toEqual({
      length: 0x2_0000_0000n,
      flags: 3n,
    });
    expect(wire.NBD_BLOCK_STATUS_PAYLOAD.decode(hex('0000000000100000'))).toEqual({
      effectLength: 1048576n,
    });
  });
});
