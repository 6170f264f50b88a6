// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import * as nbd from '../../../../protocol/nbd/constants.js';
import * as handshake from '../../../../protocol/nbd/handshake.js';

const hex = (text: string) => Buffer.from(text.replaceAll(/\s/g, ''), 'hex');

describe('option phase structs', () => {
  it('greets as the specification shows', () => {
    const bytes = handshake.NBD_GREETING.toBytes({
      magic: nbd.NBD_MAGIC,
      optsMagic: nbd.NBD_OPTS_MAGIC,
      handshakeFlags: 3,
    });
    expect(Buffer.from(bytes)).toEqual(hex('4e42444d41474943 49484156454f5054 0003'));
  });

  it('reads an option head', () => {
    expect(handshake.NBD_OPTION.decode(hex('49484156454f5054 00000007 0000000a'))).toEqual({
      magic: nbd.NBD_OPTS_MAGIC,
      option: nbd.NBD_OPT_GO,
      length: 10,
    });
  });

  it('answers an option', () => {
    const bytes = handshake.NBD_OPTION_REPLY.toBytes({
      magic: nbd.NBD_REP_MAGIC,
      option: nbd.NBD_OPT_LIST,
      type: nbd.NBD_REP_ERR_POLICY,
      length: 5,
    });
    expect(Buffer.from(bytes)).toEqual(hex('0003e889045565a9 00000003 80000002 00000005'));
  });

  it('describes an export and its block sizes', () => {
    const info = handshake.NBD_INFO_EXPORT_PAYLOAD.toBytes({
      type: nbd.NBD_INFO_EXPORT,
      size: 0x1122334455667788n,
      transmissionFlags: 0x0d6d,
    });
    expect(Buffer.from(info)).toEqual(hex('0000 1122334455667788 0d6d'));
    const sizes = handshake.NBD_INFO_BLOCK_SIZE_PAYLOAD.toBytes({
      type: nbd.NBD_INFO_BLOCK_SIZE,
      minimum: 1,
      preferred: 4096,
      maximum: 1 << 25,
    });
    expect(Buffer.from(sizes)).toEqual(hex('0003 00000001 00001000 02000000'));
  });

  it('answers EXPORT_NAME in ten bytes', () => {
    const bytes = handshake.NBD_EXPORT_NAME_REPLY.toBytes({ size: 512n, transmissionFlags: 1 });
    expect(Buffer.from(bytes)).toEqual(hex('0000000000000200 0001'));
  });
});
