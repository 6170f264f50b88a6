// SPDX-License-Identifier: MIT
import { createServer } from 'node:net';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { CMD, encodeRequest } from '../../../support/nbd-wire.js';
import { RawNbd } from '../../../support/raw-nbd.js';
import { MIB, pattern, serve } from './served.js';

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
