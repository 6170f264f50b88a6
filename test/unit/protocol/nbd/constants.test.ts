// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import * as nbd from '../../../../protocol/nbd/constants.js';

describe('NBD constants', () => {
  it('has the magics that spell words', () => {
    const text = (magic: bigint) => Buffer.from(magic.toString(16).padStart(16, '0'), 'hex');
    expect(text(nbd.NBD_MAGIC).toString()).toBe('NBDMAGIC');
    expect(text(nbd.NBD_OPTS_MAGIC).toString()).toBe('IHAVEOPT');
  });

  it('names options, replies, commands, chunk types and errors from their tables', () => {
    expect(nbd.optionName(7)).toBe('NBD_OPT_GO');
    expect(nbd.optionReplyName(2 ** 31 + 6)).toBe('NBD_REP_ERR_UNKNOWN');
    expect(nbd.commandName(6)).toBe('NBD_CMD_WRITE_ZEROES');
    expect(nbd.replyTypeName(0x8002)).toBe('NBD_REPLY_TYPE_ERROR_OFFSET');
    expect(nbd.nbdErrorName(28)).toBe('NBD_ENOSPC');
    expect(nbd.infoTypeName(3)).toBe('NBD_INFO_BLOCK_SIZE');
  });

  it('names flags', () => {
    expect(nbd.commandFlagNames(1 | 16)).toBe('NBD_CMD_FLAG_FUA|NBD_CMD_FLAG_FAST_ZERO');
    expect(nbd.transmissionFlagNames(1 | 256)).toBe('NBD_FLAG_HAS_FLAGS|NBD_FLAG_CAN_MULTI_CONN');
    expect(nbd.handshakeFlagNames(3)).toBe('NBD_FLAG_FIXED_NEWSTYLE|NBD_FLAG_NO_ZEROES');
  });
});
