// SPDX-License-Identifier: MIT
/** Many clients, any mix of commands, against a model in memory. */
import { readFile } from 'node:fs/promises';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NBD_STATE_ZERO } from '../../protocol/nbd/constants.js';
import { NbdClient } from '../../src/nbd.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const KIB = 1024;
const CLIENTS = 6;
/** Bytes that each client has for itself: not a multiple of a block, so that neighbours share some. */
const REGION = 300 * KIB + 123;
const SIZE = CLIENTS * REGION + 77;

const step = fc.record({
  kind: fc.constantFrom(
    ...(['write', 'fua', 'read', 'zeroes', 'no-hole', 'trim', 'flush', 'cache', 'status'] as const),
  ),
  offset: fc.nat(REGION - 1),
  length: fc.integer({ min: 1, max: 120 * KIB }),
  fill: fc.integer({ min: 0, max: 255 }),
});
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

/** What the export must hold; a trimmed range may hold anything until it is written again. */
interface Model {
  readonly content: Buffer;
  readonly unknown: Uint8Array;
}

async function perform(client: NbdClient, model: Model, base: number, one: Step): Promise<void> {
  const offset = base + one.offset;
  const length = Math.min(one.length, REGION - one.offset);
  const end = offset + length;
  switch (one.kind) {
    case 'write':
    case 'fua':
      await client.write(offset, Buffer.alloc(length, one.fill), { fua: one.kind === 'fua' });
      model.content.fill(one.fill, offset, end);
      model.unknown.fill(0, offset, end);
      return;
    case 'zeroes':
    case 'no-hole':
      await client.writeZeroes(offset, length, { noHole: one.kind === 'no-hole' });
      model.content.fill(0, offset, end);
      model.unknown.fill(0, offset, end);
      return;
    case 'trim':
      await client.trim(offset, length);
      model.unknown.fill(1, offset, end);
      return;
    case 'flush':
      return client.flush();
    case 'cache':
      return client.cache(offset, length);
    case 'status':
      return checkStatus(client, model, offset, length);
    default:
      await checkRead(client, model, offset, length);
  }
}

async function checkRead(
  client: NbdClient,
  model: Model,
  offset: number,
  length: number,
): Promise<void> {
  const buffer = Buffer.alloc(length, 0xee);
  await client.read(offset, buffer);
  expect(differs(model, offset, buffer)).toBe(-1);
}

/** Position of the first byte that is known and other than it should be; -1 for none. */
function differs({ content, unknown }: Model, offset: number, got: Buffer): number {
  if (got.equals(content.subarray(offset, offset + got.byteLength))) return -1;
  for (let at = 0; at < got.byteLength; at++) {
    if (unknown[offset + at] === 0 && got[at] !== content[offset + at]) return offset + at;
  }
  return -1;
}

/** What is called a hole that reads as zeroes must be zeroes. */
async function checkStatus(
  client: NbdClient,
  model: Model,
  offset: number,
  length: number,
): Promise<void> {
  let at = offset;
  for (const extent of await client.blockStatus(offset, length)) {
    const size = Math.min(extent.length, offset + length - at);
    if ((extent.flags & NBD_STATE_ZERO) !== 0)
      expect(differs(model, at, Buffer.alloc(size))).toBe(-1);
    at += size;
    if (at >= offset + length) break;
  }
}

describe('many clients at once', () => {
  it('see what they wrote, whatever they do and in whatever order', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.array(step, { minLength: 5, maxLength: 40 }), {
          minLength: CLIENTS,
          maxLength: CLIENTS,
        }),
        fc.constantFrom('', ',cache.direct=on'),
        async (plans, fileOptions) => {
          const scope = testScope();
          try {
            const served = await serveImage(scope, { size: SIZE, fileOptions });
            const model = { content: Buffer.alloc(SIZE), unknown: new Uint8Array(SIZE) };
            await Promise.all(
              plans.map((plan, index) => runClient(served.socketPath, model, index, plan)),
            );
            await served.daemon.stop();
            expect(differs(model, 0, await readFile(served.path))).toBe(-1);
          } finally {
            await scope.close();
          }
        },
      ),
      { numRuns: 12 },
    );
  }, 120_000);
});

async function runClient(
  path: string,
  model: Model,
  index: number,
  plan: readonly Step[],
): Promise<void> {
  const client = await NbdClient.connect({
    address: { type: 'unix', path },
    exportName: 'disk',
    connections: 1,
  });
  try {
    // Pairs of reads beside each other keep several requests in flight on one connection.
    for (const one of plan) {
      await Promise.all([
        perform(client, model, index * REGION, one),
        client.read(index * REGION, Buffer.alloc(KIB)),
      ]);
    }
  } finally {
    await client.close();
  }
}
