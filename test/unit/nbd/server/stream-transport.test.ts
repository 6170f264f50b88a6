// SPDX-License-Identifier: MIT
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { queuedBytes } from '../../../../src/sys/socket-buffer.js';
import { CMD, encodeRequest } from '../../../support/nbd-wire.js';
import { RawNbd } from '../../../support/raw-nbd.js';
import { client, MIB, pattern, serve } from './served.js';

/** What a Node release looks like that offers no receiving into our own memory. */
function hideUserBuffer(socket: object): void {
  const { _handle: handle } = socket as { _handle: object };
  Object.defineProperty(handle, 'useUserBuffer', { value: undefined });
}

it.each([
  ['in the memory of the server', false],
  ['in chunks', true],
])('serves a socket that others accepted, receiving %s', async (_name, chunks) => {
  const { scope, server, backend } = await serve({ size: 8 * MIB });
  const own = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
    if (chunks) hideUserBuffer(socket);
    server.serve(socket, 'a test');
  });
  const path = join(await scope.tempDir(), 'own.sock');
  await new Promise<void>((resolve) => own.listen(path, resolve));
  scope.defer(() => own.close());
  const raw = await RawNbd.handshake(scope, path);
  await raw.go('disk');
  expect(server.connections()[0]).toMatchObject({ peer: 'a test', transport: 'stream' });
  const data = pattern(5 * MIB);
  raw.send(encodeRequest({ type: CMD.WRITE, offset: 3, data }));
  expect(await raw.reply()).toMatchObject({ error: 0 });
  expect(backend.content.subarray(3, 3 + data.length).equals(data)).toBe(true);
  for (let count = 0; count < 50; count++) {
    raw.send(encodeRequest({ type: CMD.READ, offset: 3, length: data.length }));
  }
  for (let count = 0; count < 50; count++) {
    expect((await raw.reply(data.length)).payload.equals(data)).toBe(true);
  }
  raw.endSending();
  expect(await raw.readToEnd()).toHaveLength(0);
});

describe('closing', () => {
  afterEach(() => {
    vi.useRealTimers();
  });

  /** From here on what waits for a deadline waits for ever. */
  const stopClocks = () => vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });

  it.each(['unix', 'inet'] as const)('does not wait for an idle client: %s', async (type) => {
    const served = await serve({}, {}, { sockets: { queuedBytes } });
    const { scope, server, socket } = served;
    const bound = await server.listen({ type: 'inet', host: '127.0.0.1', port: 0 });
    if (bound.type !== 'inet') throw new Error('not TCP');
    const raw = await RawNbd.handshake(scope, type === 'inet' ? bound : socket);
    await raw.go('disk');
    raw.send(encodeRequest({ type: CMD.READ, offset: 0, length: 512 }));
    await raw.reply(512);
    raw.ignoreEnd();
    stopClocks();
    await server.stop();
    expect(server.connections()).toEqual([]);
  });

  it('waits until a client has taken its last replies', async () => {
    let queued = 1;
    let looks = 0;
    let lookedOften: () => void = () => undefined;
    const often = new Promise<void>((resolve) => {
      lookedOften = resolve;
    });
    const look = (fd: number) => {
      if (++looks > 3) lookedOften();
      return queued + (queuedBytes(fd) ?? 0);
    };
    const served = await serve({}, {}, { sockets: { queuedBytes: look } });
    const raw = await client(served);
    raw.ignoreEnd();
    stopClocks();
    let stopped = false;
    const stopping = served.server.stop().then(() => {
      stopped = true;
    });
    await often;
    expect(stopped).toBe(false);
    queued = 0;
    await stopping;
  });
});
