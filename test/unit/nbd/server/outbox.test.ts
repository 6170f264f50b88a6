// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { BufferPool } from '../../../../src/base/buffer-pool.js';
import { MemoryBudget } from '../../../../src/nbd/server/memory-budget.js';
import { Outbox } from '../../../../src/nbd/server/outbox.js';

function setUp() {
  const pool = new BufferPool();
  const written: string[] = [];
  const sink = {
    taking: true,
    writes: 0,
    write(part: Buffer) {
      sink.writes++;
      written.push(part.toString());
      return sink.taking;
    },
    writeAll(parts: Buffer[]) {
      sink.writes++;
      written.push(...parts.map(String));
      return sink.taking;
    },
  };
  const outbox = new Outbox(new MemoryBudget(pool), sink);
  const put = (text: string) => {
    const at = outbox.reserve(text.length);
    outbox.arena.bytes.write(text, at);
    outbox.commit(text.length);
  };
  const own = (text: string) => {
    const buffer = pool.take(100);
    buffer.bytes.write(text, 10);
    outbox.append(buffer, 10, 10 + text.length);
  };
  return { pool, sink, outbox, put, own, text: () => written.join('') };
}

describe('Outbox', () => {
  it('sends small replies of one turn in one write, and keeps no memory afterwards', () => {
    const { pool, sink, outbox, put, text } = setUp();
    put('one ');
    put('two');
    expect(sink.writes).toBe(0);
    outbox.flush();
    expect(sink.writes).toBe(1);
    expect(text()).toBe('one two');
    expect(pool.taken).toBe(0);
  });

  it('keeps the order of joined and own buffers', () => {
    const { pool, outbox, put, own, text } = setUp();
    put('a');
    own('B');
    own('C');
    put('d');
    outbox.flush();
    expect(text()).toBe('aBCd');
    expect(pool.taken).toBe(0);
  });

  it('holds a place for a reply that is not ready, while others pass', () => {
    const { pool, outbox, put, text } = setUp();
    put('a');
    outbox.reserve(4);
    const region = outbox.detach(4);
    put('b');
    outbox.flush();
    expect(text()).toBe('ab');
    region.buffer.bytes.write('late', region.start);
    outbox.append(region.buffer, region.start, region.start + region.size);
    outbox.flush();
    expect(text()).toBe('ablate');
    expect(pool.taken).toBe(0);
  });

  it('writes nothing more while the transport is busy, and goes on when it is not', () => {
    const { pool, sink, outbox, put, own, text } = setUp();
    sink.taking = false;
    put('first');
    outbox.flush();
    expect(outbox.blocked).toBe(true);
    put('second');
    own('third');
    outbox.flush();
    expect(text()).toBe('first');
    expect(outbox.unsentBytes).toBe('firstsecondthird'.length);
    sink.taking = true;
    outbox.sent();
    expect(text()).toBe('firstsecondthird');
    expect(outbox.unsentBytes).toBe(0);
    expect(pool.taken).toBe(0);
  });

  it('wakes who waits for room', async () => {
    const { sink, outbox, put } = setUp();
    sink.taking = false;
    put('much');
    outbox.flush();
    const waiting = outbox.whenBelow(0);
    sink.taking = true;
    outbox.sent();
    await waiting;
  });

  it('drops everything when the transport is gone, also what comes later', async () => {
    const { pool, sink, outbox, put, own } = setUp();
    sink.taking = false;
    put('a');
    outbox.flush();
    own('b');
    put('c');
    const waiting = outbox.whenBelow(0);
    outbox.close();
    await waiting;
    own('d');
    put('e');
    outbox.flush();
    expect(sink.writes).toBe(1);
    expect(pool.taken).toBe(0);
  });

  it('begins another arena when one is full', () => {
    const { pool, outbox, put, text } = setUp();
    const part = 'x'.repeat(100_000);
    for (let count = 0; count < 5; count++) put(part);
    outbox.flush();
    expect(text()).toHaveLength(500_000);
    expect(pool.taken).toBe(0);
  });
});
