// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { BufferPool } from '../../../../src/base/buffer-pool.js';
import { NBD_RECEIVE_SMALL } from '../../../../src/base/limits.js';
import { Inbox } from '../../../../src/nbd/server/inbox.js';
import { MemoryBudget } from '../../../../src/nbd/server/memory-budget.js';

function setUp() {
  const pool = new BufferPool();
  const inbox = new Inbox(new MemoryBudget(pool));
  const receive = (bytes: Buffer) => {
    for (let at = 0; at < bytes.byteLength; ) {
      const length = bytes.copy(inbox.target(), 0, at);
      inbox.received(length);
      at += length;
    }
  };
  const unread = () => inbox.buffer.bytes.subarray(inbox.start, inbox.start + inbox.unread);
  return { pool, inbox, receive, unread };
}

describe('Inbox', () => {
  it('keeps what was not consumed, wherever the buffer moves to', () => {
    const { inbox, receive, unread } = setUp();
    const all = Buffer.from(Array.from({ length: 300_000 }, (_, index) => index % 251));
    let taken = 0;
    for (let at = 0; at < all.byteLength; at += 9_973) {
      receive(all.subarray(at, at + 9_973));
      const length = Math.max(0, inbox.unread - 1234);
      expect(unread().equals(all.subarray(taken, taken + inbox.unread))).toBe(true);
      inbox.consume(length);
      taken += length;
    }
  });

  it('makes room for a message that is larger than the buffer', () => {
    const { inbox, receive, unread } = setUp();
    receive(Buffer.from('head'));
    inbox.need = 60_000;
    receive(Buffer.alloc(60_000 - 4, 7));
    expect(unread().subarray(0, 4).toString()).toBe('head');
    expect(inbox.unread).toBe(60_000);
  });

  it('leaves a buffer that somebody still reads to them', () => {
    const { pool, inbox, receive } = setUp();
    receive(Buffer.from('payload'));
    const { buffer } = inbox;
    buffer.retain();
    inbox.consume(7);
    receive(Buffer.from('overwrites'));
    expect(buffer.bytes.subarray(0, 7).toString()).toBe('payload');
    buffer.release();
    inbox.close();
    expect(pool.taken).toBe(0);
  });

  it('grows for a busy connection and shrinks for a quiet one', () => {
    const { inbox, receive } = setUp();
    receive(Buffer.alloc(NBD_RECEIVE_SMALL));
    inbox.consume(inbox.unread);
    expect(inbox.target().byteLength).toBeGreaterThan(4 * NBD_RECEIVE_SMALL);
    for (let count = 0; count < 100; count++) {
      receive(Buffer.alloc(28));
      inbox.consume(28);
    }
    expect(inbox.target().byteLength).toBe(NBD_RECEIVE_SMALL);
  });

  it('receives little when a large payload is about to come', () => {
    const { inbox } = setUp();
    inbox.short = true;
    expect(inbox.target().byteLength).toBe(4096);
  });

  it('never offers an empty target', () => {
    const { inbox, receive } = setUp();
    receive(Buffer.alloc(NBD_RECEIVE_SMALL));
    expect(inbox.target().byteLength).toBeGreaterThan(0);
  });
});
