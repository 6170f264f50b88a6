// SPDX-License-Identifier: MIT
import { readdirSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { BlockError } from '../../../../src/base/errors.js';
import { native } from '../../../../src/sys/linux.js';
import { patternBytes } from '../../../support/images.js';
import { CHUNK, CMD, ERROR, encodeRequest } from '../../../support/nbd-wire.js';
import type { RawNbd } from '../../../support/raw-nbd.js';
import { testScope } from '../../../support/temp.js';
import { type UsedNode, useNode } from '../../block/driver/test-graph.js';
import { MemoryBackend } from './memory-backend.js';
import { client, MIB, type Served, serve } from './served.js';

const SIZE = 8 * MIB;
const RUNS = 40;

interface ServedFile extends Served {
  readonly content: Buffer;
  readonly used: UsedNode;
}

/** An export of a raw node above a file; the second half of the file is behind `window`. */
async function serveFile(content = patternBytes(SIZE, 1), window = 0): Promise<ServedFile> {
  const path = join(await testScope().tempDir(), 'disk');
  await writeFile(path, Buffer.concat([Buffer.alloc(window, 0xaa), content]));
  const used = await useNode({
    driver: 'raw',
    'node-name': 'disk',
    file: { driver: 'file', filename: path },
    offset: window,
  });
  onTestFinished(() => used.close());
  return { ...(await serve({}, { backend: used.backend })), content, used };
}

function sendfileCalls(): { count: number } {
  const spy = vi.spyOn(native, 'sendfile');
  onTestFinished(() => spy.mockRestore());
  return {
    get count() {
      return spy.mock.calls.length;
    },
  };
}

const read = (offset: number, length: number, cookie = 0): Buffer =>
  encodeRequest({ type: CMD.READ, offset, length, cookie: BigInt(cookie) });

describe('reads that go from the file to the socket', () => {
  it.each([0, 512])('bring the bytes of the file, behind an offset of %i', async (window) => {
    const calls = sendfileCalls();
    const served = await serveFile(patternBytes(SIZE, 2), window);
    const raw = await client(served);
    raw.send(read(5, MIB));
    const { payload } = await raw.reply(MIB);
    expect(payload.equals(served.content.subarray(5, 5 + MIB))).toBe(true);
    expect(calls.count).toBe(1);
  });

  it('are counted as one operation, however much the socket took', async () => {
    const served = await serveFile();
    const raw = await client(served);
    raw.stopReading();
    raw.send(read(0, MIB), read(0, MIB), read(0, MIB));
    raw.resumeReading();
    for (let count = 0; count < 3; count++) await raw.reply(MIB);
    const { operations, bytes } = served.used.node.stats.read;
    expect({ operations, bytes }).toEqual({ operations: 3, bytes: 3 * MIB });
    expect(served.exported.counters.readBytes).toBe(3 * MIB);
  });

  it('still show holes as holes', async () => {
    const content = Buffer.alloc(SIZE);
    patternBytes(MIB, 3).copy(content, MIB);
    const served = await serveFile(content);
    const raw = await client(served, { structured: true });
    raw.send(read(0, MIB), read(MIB, MIB));
    expect((await raw.reply()).type).toBe(CHUNK.OFFSET_HOLE);
    expect((await raw.reply()).type).toBe(CHUNK.OFFSET_DATA);
  });

  it('wait while the node is drained, and a drain waits for what clients have not read', async () => {
    const calls = sendfileCalls();
    const served = await serveFile();
    const raw = await client(served);
    raw.stopReading();
    raw.send(read(0, MIB));
    await expect.poll(() => calls.count).toBe(1);
    served.used.node.drainBegin();
    let idle = false;
    const pending = Promise.resolve(served.used.node.whenIdle()).then(() => {
      idle = true;
    });
    for (let turns = 0; turns < 10; turns++) await new Promise((next) => setTimeout(next, 1));
    expect(idle).toBe(false);
    raw.resumeReading();
    const first = await raw.reply(MIB);
    expect(first.payload.equals(served.content.subarray(0, MIB))).toBe(true);
    await pending;
    raw.send(read(MIB, MIB));
    await expect.poll(() => served.server.connections()[0]?.requestsInFlight).toBe(1);
    expect(calls.count).toBe(1);
    served.used.node.drainEnd();
    const second = await raw.reply(MIB);
    expect(second.payload.equals(served.content.subarray(MIB, 2 * MIB))).toBe(true);
  });

  it('end the connection when a reply is broken off', async () => {
    const backend = new MemoryBackend({ size: SIZE });
    const broken = Object.assign(backend, {
      send: () => {
        throw new BlockError('DF_IO', 'the disk is gone');
      },
    });
    const served = await serve({}, { backend: broken });
    const raw = await client(served);
    raw.send(read(0, MIB));
    expect(await raw.readToEnd()).toHaveLength(0);
  });

  it('never mix with other replies, whatever the socket takes', async () => {
    const served = await serveFile();
    const real = native.sendfile;
    let limit = Number.POSITIVE_INFINITY;
    const spy = vi.spyOn(native, 'sendfile');
    onTestFinished(() => spy.mockRestore());
    spy.mockImplementation((out, file, at, length) => real(out, file, at, Math.min(length, limit)));
    const descriptors = (): number => readdirSync('/proc/self/fd').length;
    const before = descriptors();
    const step = fc.record({
      offset: fc.integer({ min: 0, max: SIZE - 3 * MIB }),
      length: fc.constantFrom(1, 512, 4096, 65536, 65537, 131071, 131072, 300_000, MIB, 3 * MIB),
      limit: fc.constantFrom(1, 4096, 100_000, Number.POSITIVE_INFINITY),
      pause: fc.boolean(),
    });
    const run = fc.record({
      structured: fc.boolean(),
      first: fc.constantFrom(1, 4096, 100_000, Number.POSITIVE_INFINITY),
      others: fc.array(step, { minLength: 1, maxLength: 24 }),
      cutOff: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(run, async ({ structured, first, others, cutOff }) => {
        // Nothing is before this one: it goes directly.
        const steps = [{ offset: 7, length: MIB, limit: first, pause: false }, ...others];
        const raw = await client(served, { structured });
        for (const [index, { offset, length, ...how }] of steps.entries()) {
          limit = how.limit;
          if (how.pause) raw.stopReading();
          raw.send(read(offset, length, index), read(SIZE, 1, 1000 + index));
          if (!how.pause) await new Promise((next) => setImmediate(next));
        }
        raw.resumeReading();
        if (!cutOff) await expectReplies(raw, served, steps, structured);
        raw.destroy();
        await expect.poll(() => served.server.connections().length).toBe(0);
      }),
      { numRuns: RUNS },
    );
    // The system may evict pages at any time; then a read is copied.
    expect(spy.mock.calls.length).toBeGreaterThan(RUNS / 4);
    expect(descriptors()).toBeLessThanOrEqual(before);
  });
});

async function expectReplies(
  raw: RawNbd,
  { content }: ServedFile,
  steps: readonly { offset: number; length: number }[],
  structured: boolean,
): Promise<void> {
  const got = steps.map(({ length }) => Buffer.alloc(length));
  for (let open = 2 * steps.length; open > 0; ) {
    const reply = await raw.reply((cookie) => steps[Number(cookie)]?.length ?? 0);
    const index = Number(reply.cookie);
    if (index >= 1000) {
      expect(reply.error).toBe(ERROR.EINVAL);
      open--;
      continue;
    }
    const { offset = 0 } = steps[index] ?? {};
    const data = structured ? reply.payload.subarray(8) : reply.payload;
    const at = structured ? Number(reply.payload.readBigUInt64BE(0)) - offset : 0;
    data.copy(got[index] ?? Buffer.alloc(0), at);
    if ((reply.flags & 1) !== 0) open--;
  }
  for (const [index, { offset, length }] of steps.entries()) {
    expect(got[index]?.equals(content.subarray(offset, offset + length))).toBe(true);
  }
}
